"""Say what a step's time goes into, by class of operation."""

from __future__ import annotations

import re
import time
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.training.ways import Run
from pytest_sdbench.base.environment import synchronise

CLASSES = (
    ("optimiser", r"adam|multi_tensor|_foreach|lerp|l2norm|linalg_vector_norm"),
    ("attention", r"scaled_dot_product|flash|fmha|attention|softmax"),
    (
        "matmul and conv",
        r"conv|gemm|matmul|addmm|\bmm\b|::mm|bmm|cutlass|xmma|wgrad|dgrad|fprop|nvjet|splitk|implicit",
    ),
    ("data", r"memcpy|memset|copy|::to\b|contiguous|clone|index|::cat|cat_?array"),
)
"""Names of operations (CPU) or kernels (CUDA); the first that fits counts, and what fits none is the next."""
REST = "norms and elementwise"
IDLE = "idle or host"


def classify(name: str) -> str:
    """Return the class of an operation or a kernel."""
    return next((kind for kind, pattern in CLASSES if re.search(pattern, name.lower())), REST)


def breakdown(run: Run, device: torch.device, steps: int = 1) -> dict[str, float]:
    """Return seconds per step of each class, the largest first.

    On CUDA they are sums over kernels, and what is left of the window is idle; on a CPU they are the own
    times of operations, and what is left is Python's.
    """
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    synchronise(str(device))
    with profile(activities=activities) as profiler:
        began = time.perf_counter()
        for _ in range(steps):
            run.step()
        synchronise(str(device))
        window = time.perf_counter() - began
    found: dict[str, float] = {}
    for event in profiler.key_averages():
        entry: Any = event
        on_device = str(entry.device_type).endswith("CUDA")
        if on_device != cuda or entry.key.startswith(("ProfilerStep", "Optimizer.")):
            continue
        micro = entry.self_device_time_total if cuda else entry.self_cpu_time_total
        kind = classify(entry.key)
        found[kind] = found.get(kind, 0.0) + micro / 1e6 / steps
    found[IDLE] = max(0.0, window / steps - sum(found.values()))
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))
