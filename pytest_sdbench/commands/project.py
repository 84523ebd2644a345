"""Find where a project keeps its evidence and its data, as a run of pytest finds it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pytest_sdbench.base.options import OPTIONS
from pytest_sdbench.store.folders import place_of

_FILES = (
    "pytest.toml",
    ".pytest.toml",
    "pytest.ini",
    ".pytest.ini",
    "pyproject.toml",
    "tox.ini",
    "setup.cfg",
)


def place_in_project(dest: str) -> Path | str | None:
    """Return the place that the ini file of the project around us has for an option, else its default.

    A place in the ini file starts at that file, and so does the default; without an ini file it starts here.
    """
    default = OPTIONS[f"--{dest.replace('_', '-')}"].default
    folder, told = _ini(Path.cwd(), dest)
    text = told or default
    if text is None or (not told and folder == Path.cwd()):
        return text
    return place_of(text, folder)


@cache
def _ini(here: Path, dest: str) -> tuple[Path, str]:
    """Return the folder of the ini file, or `here` without one, and what it has for an option."""
    if not any((folder / name).is_file() for folder in (here, *here.parents) for name in _FILES):
        return here, ""
    # pytest's own search: which of several files counts, and what their sections are called, it alone knows.
    from _pytest.config.findpaths import locate_config

    _, file, found, *_ = locate_config(here, [here])
    value = found.get(dest, "")
    text = getattr(value, "value", value)  # pytest 9 says where a value is from, too
    return (here if file is None else file.parent), text.strip() if isinstance(text, str) else ""
