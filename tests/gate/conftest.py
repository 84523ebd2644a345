"""Runs of a card of a test's own; all share the images of one store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gate.helpers import Run


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def run(pytester: pytest.Pytester, store: Path, project: Path) -> Run:
    """Run the scores of the card of a module's `project`, and report them in r.json."""

    def start(*words: str) -> pytest.RunResult:
        # Under workers the other threads of this process must not be those of the test's own.
        begin = pytester.runpytest_subprocess if "-n" in words else pytester.runpytest
        place = ("--sdbench-store", store, "--sdbench-report=r.json")
        return begin("--sdbench", "cards", "-m", "quality", *place, *words)

    return start
