"""Run what must not share a process with the measurement: to be killed, or to have company."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.report import ROOT

_TOLD = 3000
"""Characters of a process's output that an error repeats: a traceback of torch."""


@contextmanager
def running(
    code: str, output: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python code in a process that is gone at the end, however that comes.

    What it prints is appended to the file `output`.
    """
    with output.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def failed(what: str, output: Path) -> RuntimeError:
    """Return an error with the last words of a process."""
    told = output.read_text(encoding="utf-8", errors="replace")[-_TOLD:].strip()
    error = RuntimeError(f"{what}: {told.splitlines()[-1] if told else 'it said nothing'}")
    error.add_note(told)
    return error
