"""Find where a project keeps its evidence and its data, as a run of pytest finds it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pytest_sdbench.base.options import OPTIONS
from pytest_sdbench.store.folders import place_of


def place_in_project(dest: str, cards: Sequence[Path] = ()) -> str | None:
    """Return the place that the ini file of the project has for an option, else its default.

    The project is that of the cards, or else the one around us. A place in the ini file starts at that file,
    and so does the default; without an ini file it starts here.
    """
    # Which of several files counts, and what their sections are called, pytest alone knows.
    from _pytest.config.findpaths import locate_config

    here, default = Path.cwd(), OPTIONS[f"--{dest.replace('_', '-')}"].default
    start = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in cards] or [here]))
    _, file, found, *_ = locate_config(here, [start])
    value = found.get(dest, "")
    value = getattr(value, "value", value)  # pytest 9 says where a value is from, too
    told = value.strip() if isinstance(value, str) else ""
    folder = here if file is None else file.parent
    if default is None and not told:
        return None
    # The default of the folder that we are in stays as short as the help has it.
    return default if not told and folder == here else str(place_of(told or default or "", folder))
