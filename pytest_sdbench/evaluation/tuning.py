"""Arrange a device and a pipeline for speed: batch size, workers, memory layout, compilation.

`arranged` gives a pipeline back as it found it: forwards, memory layout and all. What cannot be undone,
`keep_memory`, is for processes that make images and then end.
"""

from __future__ import annotations

import ctypes
import math
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.protocols.sections import SequentialSeeds
from pytest_sdbench.store.shard_format import SHARD

_PIXELS = 1 << 20
"""Pixels in a CPU's batch: more gain nothing there. 64 pictures of 64x64, 4 of 512x512."""

_DECODED = 1 << 16
"""Pixels that a CPU decodes at a time: what the decoder makes of more does not fit its caches."""

_DECODED_ON_ACCELERATOR = 1 << 22
"""The same on an accelerator: 16 pictures of 512x512. Its widest tensor then has 2^30 numbers; not every
kernel of torch takes more than 2^31, and 64 pictures would take, by reckoning, 30 GB beside the U-Net."""

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
    keep_memory: bool = False
    """Whether the process keeps freed memory for good; a seventh faster on a CPU, see `keep_memory`."""
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


def default_decoding(protocol: Protocol, device: str) -> int:
    """Return how many pictures the VAE decodes at a time; where memory runs out it is halved."""
    pixels = _DECODED if device.startswith("cpu") else _DECODED_ON_ACCELERATOR
    return max(1, min(SHARD, pixels // protocol.sampling.resolution**2))


def worker_count(protocol: Protocol, n: int, device: str, tuning: Tuning) -> int:
    """Return how many shards are made beside each other."""
    import torch

    if not device.startswith("cpu") or isinstance(protocol.seeds, SequentialSeeds):
        return 1
    if tuning.workers is not None:
        return tuning.workers
    small = protocol.sampling.resolution <= _SMALL
    return max(1, min(torch.get_num_threads(), math.ceil(n / SHARD))) if small else 1


def keep_memory() -> None:
    """Have glibc keep freed memory, in one heap for all threads; without effect elsewhere.

    By default a large block goes back to the system when it is freed, and the next batch faults it in page
    by page: a seventh of a small U-Net's time. What stays is what the largest batch took. This cannot be
    undone: a process that runs other people's tests is no place for it.
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


@contextmanager
def arranged(pipeline: Any, tuning: Tuning, *, full_batch: int = 0, images: int = 0) -> Iterator[None]:
    """Lay the U-Net out as convolutions on a CPU like it, and project the text once for all steps.

    On an accelerator the U-Net of a long run is compiled, for batches of `full_batch` images; each shorter
    one at the end would cost another compilation. At the end the pipeline is as it was.
    """
    import torch

    unet = getattr(pipeline, "unet", None)
    with ExitStack() as undo:
        if isinstance(unet, torch.nn.Module):
            on_cpu = pipeline.device.type == "cpu"
            if on_cpu and tuning.channels_last:
                undo.enter_context(_channels_last(unet))
            compiled = tuning.compile
            if compiled is None:
                compiled = not on_cpu and images >= _WORTH_COMPILING
            if compiled:
                undo.enter_context(_forward(unet, lambda plain: _compiled(plain, full_batch)))
            elif tuning.remember_text:
                for name, module in unet.named_modules():
                    if name.endswith((".attn2.to_k", ".attn2.to_v")):
                        undo.enter_context(_forward(module, _remembering))
        yield


@contextmanager
def _channels_last(module: Any) -> Iterator[None]:
    """Have a module's convolutions in the layout [N, H, W, C], and at the end each as it was."""
    import torch

    before = [(each, each.stride()) for each in chain(module.parameters(), module.buffers())]
    module.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for each, stride in before:
            if each.stride() != stride:
                place = torch.empty_strided(each.shape, stride, dtype=each.dtype, device=each.device)
                each.data = place.copy_(each.data)


@contextmanager
def _forward(module: Any, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """Wrap a module's forward; one that somebody has wrapped before is left alone."""
    if "forward" in vars(module):
        yield
        return
    module.forward = wrap(module.forward)
    try:
        yield
    finally:
        del module.forward


class NotCompiled(UserWarning):
    """A U-Net that could not be compiled here, and runs as it is."""


def _compiled(plain: Any, full_batch: int) -> Any:
    """Compile a U-Net's forward for one batch size, with or without guidance; others go the plain way.

    So do all where the compiler fails: not every machine with an accelerator has one that works. Without CUDA
    graphs: a full batch keeps a device busy without, and a graph's outputs live in memory that its next call
    overwrites, while PNDM keeps the last four.
    """
    import torch
    from torch._dynamo.exc import TorchDynamoException

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
                what = f"torch.compile fails here, the U-Net runs without: {cause}"
                warnings.warn(what, NotCompiled, stacklevel=2)
        return plain(sample, *rest, **named)

    return forward


def _remembering(forward: Any) -> Any:
    """Return a forward that gives its last output again for the same tensor.

    Keys and values of cross-attention depend on the text alone, which is one tensor through all steps of a
    batch: that saves a tenth of a small U-Net's time, and not a bit changes.
    """
    last = threading.local()

    def remembered(states: Any) -> Any:
        if getattr(last, "states", None) is not states:
            last.states, last.output = states, forward(states)
        return last.output

    return remembered
