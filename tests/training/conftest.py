"""Networks that tests of the training read, and a cache of a test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.students.networks import Parts, load_parts


@pytest.fixture(scope="session")
def parts(pristine_checkpoint: Path) -> Parts:
    """The networks of the tiny checkpoint, which no test changes."""
    return load_parts(str(pristine_checkpoint))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep runs and copies of data where the test ends."""
    monkeypatch.setenv("SDBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
