"""The hooks of pytest that load the rest of the plugin when ``--sdbench`` is given.

This module is imported by every pytest run of an environment that has the package installed, so it imports
nothing but pytest and the standard library.
"""

from __future__ import annotations

import os

import pytest

from pytest_sdbench.suite.options import add_options, option


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options and their ini twins."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Load the rest of the plugin when ``--sdbench`` is given."""
    if not option(config, "sdbench"):
        return
    from pytest_sdbench.suite import finish, fixtures, github, session

    run = session.SdbenchSession.from_config(config)
    config.pluginmanager.register(fixtures, "sdbench-fixtures")
    config.pluginmanager.register(run, "sdbench-session")
    config.pluginmanager.register(finish.Finish(run), "sdbench-finish")
    if (shown := github.GithubReport.of_run(run, os.environ)) is not None:
        config.pluginmanager.register(shown, "sdbench-github")
