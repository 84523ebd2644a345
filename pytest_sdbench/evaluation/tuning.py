"""Arrange a device and a pipeline for speed: batch, workers, compilation, memory layout."""

from __future__ import annotations

import ctypes
import math
import sys
import threading
import warnings
from dataclasses import dataclass
from typing import Any

from pytest_sdbench.protocols.protocol import Protocol, SequentialSeeds
from pytest_sdbench.store.shards import SHARD

_PIXELS = 1 << 20
"""Pixels in a CPU's batch: more gain nothing there. 64 pictures of 64x64, 4 of 512x512."""


_SMALL = 128
"""Pixels to a side up to which several workers of one thread each beat one worker with all threads."""


_WORTH_COMPILING = 5000
"""Images from which `torch.compile` pays for the minutes that it takes on an accelerator."""


@dataclass(frozen=True)
class Tuning:
    """How images are made. None of it moves a score by more than rounding."""

    batch_size: int | None = None
    """None: on an accelerator the largest that fits, on a CPU what measures fastest."""
    workers: int | None = None
    """Workers beside each other on a CPU; None: for small images one for each thread that torch may use."""
    channels_last: bool = True
    """Whether convolutions on a CPU get the memory layout that they like."""
    remember_text: bool = True
    """Whether what depends on the text alone is computed once, and not in every step."""
    keep_memory: bool = True
    """Whether the C library keeps what was freed for the next batch (glibc; elsewhere without effect)."""
    overlap: bool | None = None
    """Whether decoding, measuring and writing run beside the U-Net; None: on an accelerator."""
    compile: bool | None = None
    """Whether the U-Net goes through `torch.compile`; None: on an accelerator, for thousands of images."""


def default_batch_size(protocol: Protocol, device: str = "cpu") -> int:
    """Return the batch size to begin with; where memory runs out it is halved."""
    if not device.startswith("cpu"):
        return SHARD
    if isinstance(protocol.seeds, SequentialSeeds):
        return 1  # the bits of the published loop
    return max(1, min(SHARD, _PIXELS // protocol.sampling.resolution**2))


def worker_count(protocol: Protocol, n: int, device: str, tuning: Tuning) -> int:
    """Return how many shards are made beside each other."""
    import torch

    if not device.startswith("cpu") or isinstance(protocol.seeds, SequentialSeeds):
        return 1
    if tuning.workers is not None:
        return tuning.workers
    small = protocol.sampling.resolution <= _SMALL
    return max(1, min(torch.get_num_threads(), math.ceil(n / SHARD))) if small else 1


def _keep_memory() -> None:
    """Have glibc keep freed memory, in one heap for all threads.

    By default a large block goes back to the system when it is freed, and the next batch faults it in page
    by page: a seventh of a small U-Net's time. What stays is what the largest batch took.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    # M_MMAP_THRESHOLD (its largest value), M_TRIM_THRESHOLD, M_TOP_PAD, M_ARENA_MAX of malloc.h
    for option, value in ((-3, 32 << 20), (-1, (1 << 31) - 1), (-2, 64 << 20), (-8, 1)):
        mallopt(option, value)


def arrange(pipeline: Any, tuning: Tuning, *, full_batch: int = 0, images: int = 0) -> None:
    """Lay the U-Net out as convolutions on a CPU like it, and project the text once for all steps.

    On an accelerator the U-Net of a long run is compiled, for batches of `full_batch` images; each shorter
    one at the end would cost another compilation. A pipeline may be arranged again.
    """
    import torch

    unet = getattr(pipeline, "unet", None)
    if not isinstance(unet, torch.nn.Module):
        return
    on_cpu = pipeline.device.type == "cpu"
    if on_cpu and tuning.channels_last:
        unet.to(memory_format=torch.channels_last)
    compiled = not on_cpu and images >= _WORTH_COMPILING if tuning.compile is None else tuning.compile
    if compiled:
        _compile(unet, full_batch)
    elif tuning.remember_text:
        for name, module in unet.named_modules():
            if name.endswith((".attn2.to_k", ".attn2.to_v")):
                _remember(module)


class NotCompiled(UserWarning):
    """A U-Net that could not be compiled here, and runs as it is."""


def _compile(unet: Any, full_batch: int) -> None:
    """Compile a U-Net for one batch size, with or without guidance; others go the plain way.

    So do all where the compiler fails: not every machine with an accelerator has one that works. Without CUDA
    graphs: a full batch keeps a device busy without, and a graph's outputs live in memory that its next call
    overwrites, while PNDM keeps the last four.
    """
    import torch
    from torch._dynamo.exc import TorchDynamoException

    if "forward" in vars(unet):
        return
    plain = unet.forward
    fast: Any = torch.compile(plain, dynamic=False)

    def forward(sample: Any, *rest: Any, **named: Any) -> Any:
        nonlocal fast
        if fast is not None and len(sample) in (full_batch, 2 * full_batch):
            try:
                return fast(sample, *rest, **named)
            except TorchDynamoException as error:
                fast = None
                # The first line names the compiler, the second what it says.
                cause = " ".join(str(error).strip().splitlines()[:2])
                told = f"torch.compile fails here, the U-Net runs without: {cause}"
                warnings.warn(told, NotCompiled, stacklevel=2)
        return plain(sample, *rest, **named)

    unet.forward = forward


class _Last(threading.local):
    """The last text that a thread asked about, and what came of it."""

    states: Any = None
    output: Any = None


def _remember(module: Any) -> None:
    """Have a module give its last output again for the same tensor.

    Keys and values of cross-attention depend on the text alone, which is one tensor through all steps of a
    batch: that saves a tenth of a small U-Net's time, and not a bit changes.
    """
    if "forward" in vars(module):
        return  # this pipeline was arranged before
    forward, last = module.forward, _Last()

    def remembered(states: Any) -> Any:
        if last.states is not states:
            last.states, last.output = states, forward(states)
        return last.output

    module.forward = remembered
