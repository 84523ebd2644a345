"""Say what a machine is, and measure what it can do: matrix multiplications, copies, memory."""

from __future__ import annotations

import datetime
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pytest_sdbench.base.environment import timed_on


def wait(device: torch.device) -> None:
    """Return when the device has done everything it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def facts(device: str, libraries: Sequence[str], load_before: float) -> dict[str, Any]:
    """Return when, on what and with which libraries something was measured.

    `load` is the average number of running processes at the beginning and at the end: contention if above
    the cores.
    """
    return {
        "device": timed_on(device),
        "cores": os.cpu_count() or 1,
        "versions": {name: version(name) for name in libraries},
        "date": datetime.date.today().isoformat(),
        "load": (load_before, os.getloadavg()[0]),
    }


def libraries_and_load(facts: Mapping[str, Any]) -> str:
    """Return versions, date and load of facts as text."""
    libraries = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    before, after = facts["load"]
    return f"{libraries}. {facts['date']}, load average {before:.1f} to {after:.1f}."


def matmul_peak(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.5) -> float:
    """Return the most floating-point operations per second that a square matrix multiplication reached."""
    best = 0.0
    for size in (4096, 8192, 16384) if device.type == "cuda" else (512, 1024):
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        each = _fastest(lambda a=left, b=right, c=out: torch.mm(a, b, out=c), device, seconds / 3)  # type: ignore[misc]
        best = max(best, 2 * size**3 / each)
    return best


def copy_peak(device: torch.device, *, seconds: float = 0.3) -> float:
    """Return the most bytes per second, read and written, of copying a tensor larger than any cache."""
    source = torch.empty(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    return (
        2 * source.numel() * source.element_size() / _fastest(lambda: target.copy_(source), device, seconds)
    )


def resident() -> tuple[int, int]:
    """Return the resident bytes of this process and the most there were; (0, 0) where Linux does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return 0, 0
    now, most = (re.search(rf"{key}:\s+(\d+) kB", status) for key in ("VmRSS", "VmHWM"))
    return (int(now[1]) * 1024 if now else 0), (int(most[1]) * 1024 if most else 0)


def forget_peak() -> None:
    """Start the count of the most resident bytes anew, where Linux lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return


def _fastest(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    call()
    wait(device)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        call()
        wait(device)
        best = min(best, time.perf_counter() - began)
    return best
