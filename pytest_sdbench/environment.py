"""Describe the machine and the libraries of a run, for reports and records."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("torch", "diffusers", "transformers", "open_clip_torch", "torch-fidelity", "pytest-sdbench")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a score depends on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def device_name(device: str) -> str:
    """Return a device's name as its maker calls it."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(torch.device(device)))
    if device == "cpu":
        return _cpu_name()
    return device


def _cpu_name() -> str:
    """Return the processor's model; `platform.processor()` is empty or just the architecture on Linux."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
