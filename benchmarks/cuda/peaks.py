"""Measure what a device can do at the most: matrix products and copies."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from pytest_sdbench.base.environment import synchronise


def matmul_peak(device: torch.device, dtype: torch.dtype, *, seconds: float = 1.5) -> float:
    """Return the most floating-point operations per second that a square matrix product reached."""
    best, sizes = 0.0, (4096, 8192, 16384) if device.type == "cuda" else (256, 512)
    for size in sizes:
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = left @ right
        fastest = _fastest(lambda a=left, b=right, c=out: torch.mm(a, b, out=c), device, seconds / len(sizes))  # type: ignore[misc]
        best = max(best, 2 * size**3 / fastest)
    return best


def copy_peak(device: torch.device, *, seconds: float = 0.3) -> float:
    """Return the most bytes per second, read and written, of copying a tensor larger than any cache."""
    source = torch.empty(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return moved / _fastest(lambda: target.copy_(source), device, seconds)


def _fastest(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    call()
    synchronise(str(device))
    best, end = float("inf"), time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        call()
        synchronise(str(device))
        best = min(best, time.perf_counter() - began)
    return best
