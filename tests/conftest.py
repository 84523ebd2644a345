"""Fixtures that several test modules share."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.pytester import SysModulesSnapshot

from tests.project import make_card, make_project
from tests.tiny_checkpoint import make_checkpoint, make_xl_checkpoint

Speed = Callable[..., tuple[pytest.RunResult, dict[str, Any]]]


@pytest.fixture(scope="session", autouse=True)
def imports_stay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what an inner run of pytest imports in this process, all but the modules of the test's own folder.

    pytester forgets every module that an inner run has imported. The next run would import it again:
    that takes seconds, and numpy and torch refuse it.
    """
    temporary = str(tmp_path_factory.getbasetemp())

    def installed(name: str) -> bool:
        return not str(getattr(sys.modules[name], "__file__", "")).startswith(temporary)

    def snapshot(preserve: Callable[[str], bool]) -> SysModulesSnapshot:
        return SysModulesSnapshot(installed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("_pytest.pytester.SysModulesSnapshot", snapshot)
        yield


@pytest.fixture(autouse=True)
def not_on_github(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep inner runs from telling GitHub of failures that are meant: these tests may run there, too."""
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute in one thread: networks this small are over before two have met."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def pristine_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny, complete, random checkpoint that every test of the session reads and none changes."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-sd")


@pytest.fixture(scope="session")
def pristine_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the topology of SDXL."""
    return make_xl_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-xl")


@pytest.fixture
def tiny_checkpoint(pristine_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may damage."""
    return Path(shutil.copytree(pristine_checkpoint, tmp_path / "tiny-sd"))


@pytest.fixture
def speed(pytester: pytest.Pytester, pristine_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Speed:
    """Return a function that times a card with these keys, and returns the run and the row of its report.

    Its baseline may be ``mini``: the same architecture.
    """
    # A run inside a worker of this run is none itself.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    make_project(pytester.path, pristine_checkpoint, claims={})

    def run(*words: str, **block: Any) -> tuple[pytest.RunResult, dict[str, Any]]:
        make_card(pytester.path / "cards" / "student.md", claims={}, **block)
        result = pytester.runpytest(
            "--sdbench", "cards/student.md", "-m", "speed", "--sdbench-report=r.json", *words
        )
        (row,) = json.loads((pytester.path / "r.json").read_text(encoding="utf-8"))["results"]
        return result, row

    return run
