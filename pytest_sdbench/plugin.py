"""Register the options of ``pytest --sdbench``; everything else is loaded only when it is given.

This module is imported by every pytest run of an environment that has the package installed, so it imports
nothing but pytest and the standard library.
"""

from __future__ import annotations

import pytest

from pytest_sdbench.suite.options import _OPTIONS, option

_GROUP = "sdbench", "sdbench: model cards as tests (quality, size and speed of Stable Diffusion checkpoints)"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add one option and its ini twin (dashes become underscores) for everything a run can be told."""
    group = parser.getgroup(*_GROUP)
    for flag, kind, default, settings in _OPTIONS:
        dest = flag[2:].replace("-", "_")
        text = settings.pop("help")
        group.addoption(flag, dest=dest, help=text, **settings)
        settings["help"] = text
        parser.addini(dest, f"ini twin of {flag}: {text}", type=kind, default=default)
    parser.addini(
        "sdbench_cards",
        "cards (files, folders or globs, relative to the rootdir) that --sdbench runs when no path is given; "
        "default: the cards that ship with the package",
        type="args",
        default=[],
    )


def pytest_configure(config: pytest.Config) -> None:
    """Load the rest of the plugin when ``--sdbench`` is given."""
    if not option(config, "sdbench"):
        return
    from pytest_sdbench.suite import fixtures, session

    config.pluginmanager.register(fixtures, "sdbench-fixtures")
    config.pluginmanager.register(session.SdbenchSession.from_config(config), "sdbench-session")
