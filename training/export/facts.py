"""What is known of a finished run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """What a card tells of a run besides its recipe."""

    folder: Path
    seen: int
    """Images."""
    hardware: str
    seconds: float | None
    pairs: int | None = None
    skipped: int = 0
