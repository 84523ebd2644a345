"""Fixtures that several test modules share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_checkpoint import make_checkpoint


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


@pytest.fixture
def tiny_checkpoint(pristine_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may damage."""
    import shutil

    return Path(shutil.copytree(pristine_checkpoint, tmp_path / "tiny-sd"))
