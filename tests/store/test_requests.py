"""How often a server is asked what there is: not once for every shard that is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pytest_sdbench.store.pictures import Pictures
from pytest_sdbench.store.shard_folder import DamagedEvidence, in_grid
from pytest_sdbench.store.shard_format import SHARD
from pytest_sdbench.store.shards import Evidence, Store

COLUMN, MORE = {"score": "net@0/score"}, {"more": "net@0/more"}


class Counted(MemoryFileSystem):
    """A server that counts its listings."""

    protocol = "counted"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    listings = 0

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        type(self).listings += 1
        return super().ls(path, detail=detail, **options)


@pytest.fixture(autouse=True)
def _server() -> Iterator[None]:
    fsspec.register_implementation("counted", Counted, clobber=True)
    yield
    Counted.store.clear()
    Counted.pseudo_dirs[:] = [""]


def evidence_of(columns: dict[str, str], keep: int = 0) -> Evidence:
    return Store("counted://store").open("c", "d", {"device": "here"}, columns, keep=keep)


def rows_of(images: range, name: str = "score") -> dict[str, np.ndarray]:
    flags = {name: np.zeros(len(images), np.bool_) for name in ("blacked_out", "truncated")}
    return {name: np.array(images, np.float32), "seed": np.array(images, np.int64), **flags}


def fill(shards: int) -> Evidence:
    evidence = evidence_of(COLUMN)
    for images in in_grid(shards * SHARD):
        pixels = np.zeros((SHARD, 8, 8, 3), np.uint8)
        drawn = Pictures(np.array(images), np.array(images), tuple(map(str, images)), pixels)
        evidence.write(images.start, rows_of(images), pictures=drawn)
    return evidence


def listings_of(shards: int, keep: int) -> int:
    """Read all that there is of so many shards, and return how often the server was asked what that is."""
    fill(shards)
    n, evidence = shards * SHARD, evidence_of(COLUMN, keep)
    Counted.listings = 0
    assert evidence.missing(n) == []
    assert sum(len(rows["score"]) for rows in evidence.read(n)) == n
    assert [each["device"] for each in evidence.picture_artists(n)] == ["here"]
    for images in in_grid(n):
        assert evidence.pictures(images) is not None
        flags = evidence.flags(images)
        assert flags is not None
        assert flags["seed"].tolist() == list(images)
    return Counted.listings


def test_what_is_there_is_listed_once_for_all_shards() -> None:
    assert listings_of(9, keep=9 * SHARD) == listings_of(2, keep=2 * SHARD) <= 4


def test_pictures_are_measured_with_one_listing_a_shard() -> None:
    """It comes before each: only so is it sure that nobody has made the shard meanwhile."""
    used = []
    for shards in (2, 9):
        reference, evidence = fill(shards), evidence_of(MORE)
        Counted.listings = 0
        left = evidence.missing(shards * SHARD)
        while left := evidence.left(left):
            images = left.pop(0)
            assert evidence.gap(images, last=True).columns == {"more"}
            for kept in (evidence.pictures(images), reference.pictures(images), evidence.flags(images)):
                assert kept is not None
            evidence.write(images.start, rows_of(images, "more"))
        used.append(Counted.listings)
        Counted.store.clear()
    assert used[1] - used[0] == 7
    assert used[0] <= 2 + 5


def test_what_others_write_or_remove_after_a_listing_is_found() -> None:
    evidence, other = fill(1), evidence_of(COLUMN)
    assert other.pictures(range(64)) is not None
    fill(2)
    assert other.pictures(range(64, 128)) is not None
    assert other.flags(range(64, 128)) is not None
    assert other.gap(range(64, 128)).kept
    for name in list(evidence.storage.files()):
        evidence.storage.remove(name)
    assert other.pictures(range(64)) is None
    assert other.gap(range(64)).rows
    assert not other.gap(range(64)).kept


def test_pictures_that_were_written_again_since_a_listing_are_looked_at_as_they_are_now() -> None:
    evidence = fill(1)
    other = evidence_of(COLUMN)
    assert other.pictures(range(64)) is not None
    (name,) = [name for name in evidence.storage.files() if name.startswith("pictures-")]
    evidence.storage.write(name, b"torn")
    with pytest.warns(DamagedEvidence, match="moved to"):
        assert other.pictures(range(64)) is None
    assert f"{name}.damaged" in evidence.storage.files()
