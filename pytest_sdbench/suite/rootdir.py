"""Say so where pytest took the path of an option for the place of the tests, and missed the ini file."""

from __future__ import annotations

import os
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

_SECTIONS = {
    "pytest.toml": "",
    ".pytest.toml": "",
    "pytest.ini": "",
    ".pytest.ini": "",
    "pyproject.toml": "[tool.pytest",
    "tox.ini": "[pytest]",
    "setup.cfg": "[tool:pytest]",
}
"""Files that configure pytest, and what in them does."""


def check_rootdir(config: pytest.Config) -> None:
    """Raise pytest.UsageError where the nearest ini file is not read because of an option's path.

    pytest looks for its ini file before it knows the options of plugins: a path that follows an option after
    a space, in ``PYTEST_ADDOPTS`` too, is the place of tests to it.
    """
    here = config.invocation_params.dir
    words = [*_words(os.environ.get("PYTEST_ADDOPTS", "")), *map(str, config.invocation_params.args)]
    taken = [
        (flag, path)
        for flag, path in pairwise(words)
        if flag.startswith("--sdbench-")
        and "=" not in flag
        and path[:1] != "-"
        and os.path.exists(here / path)
    ]
    if not taken or hasattr(config, "workerinput"):
        return
    if config.getoption("rootdir") or config.getoption("inifilename"):
        return
    start = here
    if config.args_source is pytest.Config.ArgsSource.ARGS:
        places = [os.path.abspath(here / argument.partition("::")[0]) for argument in config.args]
        start = Path(os.path.commonpath(places))
    ours = [folder / name for folder in (start, *start.parents) for name in _SECTIONS]
    missed = next((path for path in ours if _configures(path)), None)
    if missed is None:
        if config.inipath is None and config.rootpath in start.parents:
            _warn(config, *taken[0])
        return
    # Of several files of a folder pytest knows which one counts.
    if config.inipath in ours and len(config.inipath.parts) >= len(missed.parts):
        return
    flag, path = taken[0]
    raise pytest.UsageError(
        f"{missed} is not read: pytest takes {path} for the place of the tests. Write {flag}={path}"
    )


def _warn(config: pytest.Config, flag: str, path: str) -> None:
    """Say that node ids begin elsewhere than before the path was there: `--deselect` and `--lf` miss them."""
    told = f"the rootdir is {config.rootpath}: pytest takes {path} for a place of tests. Write {flag}={path}"
    config.issue_config_time_warning(pytest.PytestConfigWarning(told), stacklevel=2)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # pytest itself has refused it
        return []


def _configures(path: Path) -> bool:
    try:
        return _SECTIONS[path.name] in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
