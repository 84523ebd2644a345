"""What a very large run is reckoned to need: the same by hand, from round figures."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.scale.paper import Part, parts
from benchmarks.scale.requests import measure

DRIVER = [
    {"workers": 4, "seconds": 64.0, "rate": 1.0, "core": 0.9},
    # Ten shards a second cost a twentieth of a core; a worker makes ten images a second.
    {"workers": 64, "seconds": 6.4, "rate": 640.0, "core": 0.05},
]
REQUESTS: dict[str, Any] = {
    "images": 6400,
    "workers": 8,
    "cluster": [{"LIST": 9, "PUT": 9}, {"LIST": 16, "PUT": 8}, {"LIST": 0, "PUT": 200}],
}


def by_name(found: list[Part]) -> dict[str, Part]:
    return {part.name: part for part in found}


def test_what_a_large_run_needs_is_what_it_is_by_hand() -> None:
    """A thousand GPUs make 10,000 images a second, which are 156.25 shards, for a thousand seconds."""
    a_gpu, found = parts(DRIVER, REQUESTS, scoring=0.0005)
    assert a_gpu == pytest.approx(10.0)
    shares = {part.name: part.share for part in found}
    assert shares["one core that computes FID"] == pytest.approx(5.0)  # 5,000 seconds
    assert shares["PUT requests to a bucket"] == pytest.approx(312.5 / 3500)  # two a shard
    assert shares["the driver, handing out"] == pytest.approx(0.05 * 15.625)
    # 5,104 numbers of 4 bytes an image are 204 MB a second; pictures are 4.5 GB.
    assert shares["a file server, rows alone"] == pytest.approx(0.20416 / 1.25)
    assert shares["a file server, pictures and rows"] == pytest.approx(4.70416 / 1.25)
    assert shares["one machine that reads all rows"] == pytest.approx(3 * 204.16 / 1.25 / 1000)
    # 312,500 names are 313 pages, which each of 1,000 workers lists twice.
    assert shares["all workers that start near the end"] == pytest.approx(626_000 / 5500 / 1000)
    assert [part.share for part in found] == sorted(shares.values(), reverse=True)


def test_twice_the_share_is_full_with_half_of_the_gpus() -> None:
    assert Part("a line", "2 GB/s", "1 GB/s", 2.0).row() == ["a line", "2 GB/s", "1 GB/s", "200.0%", "500"]


def test_a_store_is_asked_two_puts_a_shard_and_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDBENCH_CACHE", "as it was")
    found = measure(64 * 6, workers=2)
    rows = {row["who"]: row for row in [*found["cluster"], *found["parts"]]}
    assert rows["2 workers, 6 shards"] == {"who": "2 workers, 6 shards"} | kinds(PUT=12)
    assert rows["scoring, on another machine"] == {"who": "scoring, on another machine"} | kinds(
        LIST=1, GET=6
    )
    parted = rows["2 parts, 6 shards"]
    assert (parted["PUT"], parted["GET"]) == (12, 0)
    assert parted["LIST"] >= 6, "each looks before each shard"
    import os

    assert os.environ["SDBENCH_CACHE"] == "as it was"


def kinds(**asked: int) -> dict[str, int]:
    return dict.fromkeys(("LIST", "GET", "PUT", "HEAD", "DELETE"), 0) | asked
