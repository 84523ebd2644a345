"""Count what a store behind a URL is asked by those who hand out, make, check and score images."""

from __future__ import annotations

from collections import Counter
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.memory import MemoryFileSystem

from pytest_sdbench.store.pictures import Pictures
from pytest_sdbench.store.shards import Evidence, Store

KINDS = {"ls": "LIST", "cat_file": "GET", "pipe_file": "PUT", "info": "HEAD", "rm_file": "DELETE"}
COLUMNS = {"score": "net@0/score"}


asked: Counter[str] = Counter()


def _counting(name: str) -> Any:
    plain = getattr(MemoryFileSystem, name)

    def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        asked[KINDS[name]] += 1
        return plain(self, *arguments, **named)

    return counted


def _server() -> None:
    """Have URLs that begin with counted:// be those of a server in memory that counts."""
    methods = {name: _counting(name) for name in KINDS}
    own = {"protocol": "counted", "store": {}, "pseudo_dirs": [""]}
    fsspec.register_implementation(
        "counted", type("Counted", (MemoryFileSystem,), own | methods), clobber=True
    )


def measure(images: int, workers: int) -> list[dict[str, Any]]:
    """Return the requests of each kind, by who sends them, for so many images with their pictures."""
    _server()
    rows = []

    def note(who: str) -> None:
        rows.append({"who": who, **{kind: asked[kind] for kind in KINDS.values()}})
        asked.clear()

    asked.clear()
    driver = _evidence("driver", images)
    driver.prepare()
    missing = driver.left(driver.missing(images))
    note("driver, before")
    makers = [_evidence(f"worker {number}", images) for number in range(workers)]
    for maker in makers:
        maker.shards.listing()  # is the driver's manifest there?
        maker.prepare()
    note(f"{workers} workers, each once")
    for number, wanted in enumerate(missing):
        _make(makers[number % workers], wanted)
    note(f"{workers} workers, {len(missing):,} shards")
    assert not driver.missing(images)
    note("driver, after")
    assert sum(len(rows["score"]) for rows in _evidence("scorer", images).read(images)) == images
    note("scoring, on another machine")
    return rows


def _evidence(who: str, images: int) -> Evidence:
    return Store("counted://store").open("c", "d", {"device": who}, COLUMNS, keep=images)


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
