"""Reckon from what was measured what a very large run would need, and which part of it saturates first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.report import grid
from benchmarks.scale.requests import PAGE
from pytest_sdbench.base.text import duration, size_text
from pytest_sdbench.evaluation.executors.static import REST
from pytest_sdbench.store.shard_format import SHARD

GPUS, IMAGES = 1000, 10_000_000
PUTS, GETS = 3500, 5500
"""Requests a second that S3 promises for a prefix:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html"""
ROWS = 64 * 4 * (2048 + 2048 + 1008)
"""Bytes of a shard of MS-COCO's columns: features of Inception and of CLIP, and logits."""
LINE = 1_250_000_000
"""Bytes a second of a line of 10 Gbit/s."""
PICTURE = 450_000
"""Bytes of a picture of 512 x 512 as lossless PNG."""
WIDTH, PASSES = 2048, 3
"""Of FID: numbers a row, and passes over the rows, of which one checks them."""
STARTING, MAKING = 1, 2
"""Rows of the requests of a cluster: of workers that start, and of workers that make."""


@dataclass(frozen=True)
class Part:
    """One part of such a run, all of whose share of the time a thousand GPUs use, or more."""

    name: str
    needs: str
    has: str
    share: float
    """Of what it has, while all images are made."""

    def row(self) -> list[str]:
        """Return the cells of a table."""
        return [self.name, self.needs, self.has, f"{self.share:.1%}", f"{GPUS / self.share:,.0f}"]


def parts(
    driver: Sequence[Mapping[str, Any]], requests: Mapping[str, Any], scoring: float
) -> tuple[float, list[Part]]:
    """Return images a second of a GPU, and the parts of a run, that which saturates first at the beginning.

    `driver` and `requests` are what the benchmark found; `scoring` is processor time in seconds an image for
    FID at `WIDTH` numbers.
    """
    most = max(driver, key=lambda row: row["workers"])
    a_gpu = SHARD / most["seconds"]
    seconds, shards = IMAGES / (GPUS * a_gpu), IMAGES / SHARD
    each_second, measured = shards / seconds, -(-requests["images"] // SHARD)
    puts = each_second * requests["cluster"][MAKING]["PUT"] / measured
    core = each_second * most["core"] / (most["rate"] / SHARD)
    rows, pictures = shards * ROWS / seconds, IMAGES * PICTURE / seconds
    read = PASSES * shards * ROWS / LINE
    # Names of rows and of pictures; each worker lists them as often as it did an empty store.
    pages = -(-2 * shards // PAGE)
    listings = pages * GPUS * requests["cluster"][STARTING]["LIST"] / requests["workers"]
    disk = f"a line of 10 Gbit/s: {_size(LINE)}/s"
    found = [
        Part(
            "a file server, pictures and rows", f"{_size(pictures + rows)}/s", disk, (pictures + rows) / LINE
        ),
        Part("a file server, rows alone", f"{_size(rows)}/s", disk, rows / LINE),
        Part(
            "one core that computes FID",
            duration(IMAGES * scoring),
            duration(seconds),
            IMAGES * scoring / seconds,
        ),
        Part("one machine that reads all rows", duration(read), duration(seconds), read / seconds),
        Part("PUT requests to a bucket", f"{puts:,.0f}/s", f"{PUTS:,}/s", puts / PUTS),
        Part("the driver, handing out", f"{core:.1%} of a core", "one core", core),
        Part(
            "all workers that start near the end",
            f"{listings:,.0f} listings",
            f"{GETS:,}/s: {duration(listings / GETS)}",
            listings / GETS / seconds,
        ),
    ]
    return a_gpu, sorted(found, key=lambda part: -part.share)


def paper(driver: Sequence[Mapping[str, Any]], requests: Mapping[str, Any], scoring: float) -> list[str]:
    """Return the section of the report."""
    a_gpu, found = parts(driver, requests, scoring)
    seconds = IMAGES / (GPUS * a_gpu)
    about = (
        f"If a GPU makes {a_gpu:.0f} images a second, as the sleepers do, {GPUS:,} make {IMAGES:,} images in "
        f"{duration(seconds)}. The table has what each part then needs beside what it has, and how many such "
        "GPUs it would be full with. Nothing here was run at that size: the driver's share and the requests "
        "are those measured above, by shards a second; the core's time for FID is that of "
        f"[scoring rows](scoring-rows.md) at {WIDTH:,} numbers a row; a shard of MS-COCO's columns has "
        f"{_size(ROWS)}, a picture of 512 x 512 is taken for {_size(PICTURE)}; requests are those that S3 "
        "promises for one prefix."
    )
    headings = ["part", "needs", "has", "share", "full with so many GPUs"]
    first, second = found[:2]
    said = (
        f"Full first is {first.name}, and next is {second.name}. Neither hands out shards. FID is computed "
        "when all images are there: it keeps no GPU waiting, more cores divide its time, and nobody has to "
        "take all of ten million images for it. A bucket in the place of one file server takes what a "
        "thousand GPUs write."
    )
    static = (
        "Processes that share the work by their number (`--part`, Slurm arrays) have no driver. Each lists "
        f"the draw itself, {-(-2 * IMAGES // SHARD // PAGE):,} pages near the end, so seldom that it works "
        f"{REST} times as long: of {GPUS:,} some {GPUS // (REST + 1)} are listing at any moment."
    )
    return [about, grid([part.row() for part in found], headings), said, static]


def _size(count: float) -> str:
    return size_text(round(count))
