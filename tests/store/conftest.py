"""A bucket for the tests of a module, and places of a test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.remote import S3, s3_server


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server


@pytest.fixture
def bucket_folder(s3: S3, tmp_path: Path) -> str:
    return f"{s3.url}/{tmp_path.name}"


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a store: a folder, then a bucket."""
    return str(tmp_path / "store" if request.param == "local" else request.getfixturevalue("bucket_folder"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep copies of remote shards where the test ends."""
    monkeypatch.setenv("SDBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
