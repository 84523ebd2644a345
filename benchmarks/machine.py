"""Say what a machine is, and how much memory a process has taken."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pytest_sdbench.base.environment import timed_on


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


def resident() -> tuple[int, int]:
    """Return the resident bytes of this process and the most there were; (0, 0) where Linux does not tell."""
    status = Path("/proc/self/status")
    text = status.read_text(encoding="utf-8") if status.exists() else ""
    kilobytes = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", text))
    return 1024 * int(kilobytes.get("VmRSS", 0)), 1024 * int(kilobytes.get("VmHWM", 0))


def forget_peak() -> None:
    """Start the count of the most resident bytes anew, where Linux lets us."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
