"""Name the files and folders of weights that lie beside a checkpoint and are not looked at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from pytest_sdbench.models.weights import WEIGHT_FILES


def passed_over(paths: Iterable[Path]) -> list[str]:
    """Return a note on those files and folders that hold weights; nothing where none does."""
    names = [
        path.name + "/" * path.is_dir()
        for path in paths
        if any(each.suffix in WEIGHT_FILES and not each.name.startswith(".") for each in _inside(path))
    ]
    return [f"not looked at: {some(names)}"] if names else []


def some(names: Sequence[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _inside(path: Path) -> list[Path]:
    """Return what lies in a folder, or a file itself; nothing where this user may not look."""
    with suppress(PermissionError):
        return sorted(path.iterdir()) if path.is_dir() else [path]
    return []
