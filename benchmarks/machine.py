"""Say what a machine is, and measure what it can do: matrix multiplications, and memory."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pytest_sdbench.base.environment import synchronise, timed_on


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
    best, sizes = 0.0, (4096, 8192, 16384) if device.type == "cuda" else (512, 1024)
    for size in sizes:
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = left @ right  # the first call is slower
        synchronise(str(device))
        end = time.perf_counter() + seconds / len(sizes)
        while (began := time.perf_counter()) < end:
            torch.mm(left, right, out=out)
            synchronise(str(device))
            best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


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
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
