"""Find what ships with the package, and where to keep what is made."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """Return the folder of what can be made again: that of `SDBENCH_CACHE`, else in the user's cache."""
    return Path(os.environ.get("SDBENCH_CACHE") or Path.home() / ".cache" / "pytest-sdbench")


def reference() -> Path:
    """Return the folder of cards, protocols, statistics and embedded checkpoints.

    In a wheel it is ``pytest_sdbench/_reference``; in a checkout it is ``reference/`` beside the package.
    """
    package = Path(__file__).resolve().parents[1]
    shipped = package / "_reference"
    return shipped if shipped.is_dir() else package.parent / "reference"


def shown(path: str | Path) -> str:
    """Return a path as messages tell it: from the working folder on, or of another place its name alone."""
    path = Path(path).resolve()
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else path.name
