"""What a page says of a run besides its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_sdbench.report import history


@dataclass(frozen=True)
class Run:
    """Where a run came from, and what is kept of it."""

    command: str = ""
    """Runs it again; empty where it is not known."""
    stores: tuple[Path | str, ...] = ()
    """Where the pictures of its checkpoints are kept; without any they are not shown."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """By card: the checkpoint that was judged in the place of its own."""
    history: Sequence[history.Run] = ()
    """What runs measured so far, this one last; empty where no history is kept."""
    status: int = 0
    """With what pytest ended, as far as that is known when the page is written."""


NO_RUN = Run()
"""Of which nothing is known."""
