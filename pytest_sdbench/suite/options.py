"""The options of a run, in pytest's words: each with its ini twin."""

from __future__ import annotations

from argparse import ArgumentTypeError
from typing import Any

import pytest

from pytest_sdbench.base.options import OPTIONS

_GROUP = "sdbench", "sdbench: model cards as tests (quality, size and speed of Stable Diffusion checkpoints)"


def add_options(parser: pytest.Parser) -> None:
    """Add one option and its ini twin (dashes become underscores) for everything a run can be told."""
    group = parser.getgroup(*_GROUP)
    for option in OPTIONS.values():
        told = option.arguments()
        group.addoption(option.flag, dest=option.dest, **told)
        parser.addini(option.dest, f"ini twin of {option.flag}: {told['help']}", **option.ini)
    parser.addini(
        "sdbench_cards",
        "cards (files, folders or globs, relative to the ini file's folder) that --sdbench runs when no path "
        "is given; default: the cards that ship with the package",
        type="args",
        default=[],
    )


def given(config: pytest.Config, dest: str) -> bool:
    """Return whether the command line has the option."""
    value = config.getoption(dest)
    return value is not None and value is not False and value != []


def option(config: pytest.Config, dest: str) -> Any:
    """Return an option's value: the command line wins over the ini file.

    Raises UsageError for an ini value that makes no sense.
    """
    if given(config, dest):
        return config.getoption(dest)
    declared, value = OPTIONS[f"--{dest.replace('_', '-')}"], config.getini(dest)
    try:
        if declared.kind == "list":
            return [declared.read(text) for text in value]
        return declared.read(value) if isinstance(value, str) else value
    except ArgumentTypeError as error:
        raise pytest.UsageError(f"{dest}: {error}") from None
