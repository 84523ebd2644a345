"""Find what ships with the package."""

from __future__ import annotations

from pathlib import Path


def reference() -> Path:
    """Return the folder of cards, protocols, statistics and embedded checkpoints.

    In a wheel it is ``pytest_sdbench/_reference``; in a checkout it is ``reference/`` beside the package.
    """
    package = Path(__file__).resolve().parent
    shipped = package / "_reference"
    return shipped if shipped.is_dir() else package.parent / "reference"
