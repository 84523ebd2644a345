"""Say so where pytest took the path of an option for the place of the tests, and missed the ini file."""

from __future__ import annotations

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
    """Raise pytest.UsageError where the ini file of this folder is not read because of an option's path.

    pytest looks for its ini file before it knows the options of plugins: where no test is named, a path that
    follows an option after a space is one to it.
    """
    here = config.invocation_params.dir
    words = [str(word) for word in config.invocation_params.args]
    taken = [
        (flag, path)
        for flag, path in pairwise(words)
        if flag.startswith("--sdbench-") and "=" not in flag and path[:1] != "-" and (here / path).exists()
    ]
    ours = [folder / name for folder in (here, *here.parents) for name in _SECTIONS]
    if not taken or config.args_source is pytest.Config.ArgsSource.ARGS or config.inipath in ours:
        return
    if config.getoption("rootdir") or config.getoption("inifilename") or hasattr(config, "workerinput"):
        return
    if (missed := next((path for path in ours if _configures(path)), None)) is not None:
        flag, path = taken[0]
        raise pytest.UsageError(
            f"{missed} is not read: pytest takes {path} for the place of the tests. Write {flag}={path}"
        )


def _configures(path: Path) -> bool:
    try:
        return _SECTIONS[path.name] in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
