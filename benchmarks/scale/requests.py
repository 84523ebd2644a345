"""Count what a store behind a URL is asked by those who hand out, make, check and score images."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fsspec
import numpy as np
from fsspec.implementations.memory import MemoryFileSystem

from pytest_sdbench.base.part import Part
from pytest_sdbench.evaluation.executors.static import shards_of
from pytest_sdbench.store.pictures import Pictures
from pytest_sdbench.store.shard_folder import in_grid
from pytest_sdbench.store.shard_format import SHARD
from pytest_sdbench.store.shards import Evidence, Store

KINDS = {"ls": "LIST", "cat_file": "GET", "pipe_file": "PUT", "info": "HEAD", "rm_file": "DELETE"}
COLUMNS = {"score": "net@0/score"}
PAGE = 1000
"""Names that a request for a listing returns: https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html"""

asked: Counter[str] = Counter()


def _counting(name: str) -> Any:
    plain = getattr(MemoryFileSystem, name)

    def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        found = plain(self, *arguments, **named)
        asked[KINDS[name]] += max(1, -(-len(found) // PAGE)) if name == "ls" else 1
        return found

    return counted


def _server() -> None:
    """Have URLs that begin with counted:// be those of a server in memory that counts."""
    methods = {name: _counting(name) for name in KINDS}
    own = {"protocol": "counted", "store": {}, "pseudo_dirs": [""]}
    fsspec.register_implementation(
        "counted", type("Counted", (MemoryFileSystem,), own | methods), clobber=True
    )


def measure(images: int, workers: int) -> dict[str, Any]:
    """Return the requests of each kind, by who sends them, for so many images with their pictures."""
    with tempfile.TemporaryDirectory(prefix="sdbench-scale-") as caches, patch.dict(os.environ):
        _server()
        return {
            "images": images,
            "workers": workers,
            "cluster": _of_a_cluster(images, workers, Path(caches)),
            "parts": _of_parts(images, workers, Path(caches)),
        }


def _of_a_cluster(images: int, workers: int, caches: Path) -> list[dict[str, Any]]:
    """Do as the driver of a cluster does, its workers, and who scores what they made."""
    rows = []
    asked.clear()
    driver = _evidence("cluster", "driver", images, caches)
    driver.prepare()
    missing = driver.left(driver.missing(images))
    rows.append(_row("driver, before"))
    makers = [_evidence("cluster", f"worker {number}", images, caches) for number in range(workers)]
    for maker in makers:
        maker.shards.listing()  # is the driver's manifest there?
        maker.prepare()
    rows.append(_row(f"{workers} workers, each once"))
    for number, wanted in enumerate(missing):
        _make(makers[number % workers], wanted)
    rows.append(_row(f"{workers} workers, {len(missing):,} shards"))
    assert not driver.left(list(in_grid(images)))
    rows.append(_row("driver, after"))
    assert (
        sum(len(rows["score"]) for rows in _evidence("cluster", "scorer", images, caches).read(images))
        == images
    )
    return [*rows, _row("scoring, on another machine")]


def _of_parts(images: int, parts: int, caches: Path) -> list[dict[str, Any]]:
    """Do as processes do that share the work by their number, at one pace, and list before each shard."""
    asked.clear()
    ranks = []
    for rank in range(parts):
        evidence = _evidence("parts", f"part {rank}", images, caches)
        evidence.prepare()
        own, others = Part(rank, parts).slice(evidence.missing(images))
        ranks.append((evidence, shards_of(Part(rank, parts), list(own), list(others), evidence.left)))
    rows = [_row(f"{parts} parts, each once")]
    while ranks:
        taken = [(evidence, shards, next(shards, None)) for evidence, shards in ranks]
        ranks = [(evidence, shards) for evidence, shards, wanted in taken if wanted is not None]
        for evidence, _, wanted in taken:
            if wanted is not None:
                _make(evidence, wanted)
    return [*rows, _row(f"{parts} parts, {-(-images // SHARD):,} shards")]


def _row(who: str) -> dict[str, Any]:
    """Return what was asked since the last row."""
    row = {"who": who, **{kind: asked[kind] for kind in KINDS.values()}}
    asked.clear()
    return row


def _evidence(store: str, who: str, images: int, caches: Path) -> Evidence:
    """Open the evidence on a machine of its own: nothing that others have read is in its cache."""
    os.environ["SDBENCH_CACHE"] = str(caches / store / who)
    return Store(f"counted://{store}").open("c", "d", {"device": who}, COLUMNS, keep=images)


def _make(evidence: Evidence, images: range) -> None:
    """Do as a worker does, with pictures of 8 x 8 pixels."""
    gap = evidence.gap(images, last=True)
    assert gap
    pixels = np.zeros((len(images), 8, 8, 3), np.uint8)
    numbers = np.array(images)
    flags = {name: np.zeros(len(images), np.bool_) for name in ("blacked_out", "truncated")}
    rows = {"score": numbers.astype(np.float32), "seed": numbers, **flags}
    drawn = Pictures(numbers, numbers, tuple(map(str, images)), pixels)
    evidence.write(images.start, rows, pictures=drawn)
