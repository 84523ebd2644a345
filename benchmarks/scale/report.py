"""Tell what the benchmark of scale found, as Markdown, and reckon from it what saturates first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.machine import libraries_and_load
from benchmarks.report import Cell, grid, paragraphs, table
from pytest_sdbench.base.text import duration, size_text
from pytest_sdbench.store.shard_format import SHARD

GPUS, IMAGES = 1000, 10_000_000
PUTS, GETS, PAGE = 3500, 5500, 1000
"""Requests a second that S3 promises for a prefix, and names on a page of a listing:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html"""
ONE_SHARD = 1 << 20
"""Bytes of a shard of MS-COCO's columns, without pictures: 64 rows of 2,048 + 2,048 + 1,008 numbers."""
LINE = 1_250_000_000
"""Bytes a second of a line of 10 Gbit/s."""
PICTURE = 450_000
"""Bytes of a picture of 512 x 512 as lossless PNG."""


def report(content: Mapping[str, Any]) -> str:
    """Return the whole file."""
    pieces = ["# From one worker to a cluster"]
    parts = content["parts"]
    for name, part in parts.items():
        title, section = SECTIONS[name]
        about = part["circumstances"]
        line = "{device}, {cores} cores. ".format_map(about) + libraries_and_load(about)
        pieces += [f"## {title}", f"`{about['command']}`", line, *section(part["found"])]
    if {"driver", "requests"} <= parts.keys():
        pieces += ["## On paper: 1,000 GPUs and 10 million images"]
        pieces += _paper(parts["driver"]["found"], parts["requests"]["found"])
    return paragraphs(*pieces)


def _driver(found: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        {**row, "share": 100 * row["core"], "mb": row["growth"] / 1e6, "of": 100 * row["rate"] / row["most"]}
        for row in found
    ]
    columns: list[tuple[str, Cell]] = [
        ("workers", "{workers}"),
        ("shards", "{shards:,}"),
        ("a shard takes", "{seconds:.1f} s"),
        ("images/s", "{rate:,.0f}"),
        ("of what the workers can", "{of:.1f} %"),
        ("driver's share of a core", "{share:.1f} %"),
        ("driver's growth", "{mb:.1f} MB"),
    ]
    about = (
        "Workers that sleep, in four processes. Each has a speed of its own, 30 % around the middle one. The "
        "first and the last tenth of the shards are left out; so is what Ray's own processes take."
    )
    return [about, table(rows, columns)]


def _executors(found: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        {
            **row,
            "rate": sorted(row["rates"])[len(row["rates"]) // 2],
            "startup": sorted(row["startups"])[len(row["startups"]) // 2],
            "over": 100 * (row["ratio"] - 1),
            "rounds": len(row["rates"]),
        }
        for row in found
    ]
    columns: list[tuple[str, Cell]] = [
        ("executor", "{name}"),
        ("images/s", "{rate:.2f}"),
        ("time over `local`", "{over:+.1f} %"),
        ("ratio in all rounds", "{lowest:.3f} to {highest:.3f}"),
        ("start-up", "{startup:.1f} s"),
    ]
    about = (
        f"`scenes-tiny-lcm` under `scenes-lcm4-5k`: {rows[0]['images']:,} images on {rows[0]['workers']} CPU "
        f"workers, {rows[0]['rounds']} rounds in turn. The rate is that between the first and the last "
        "shard; start-up is all other time. Medians."
    )
    return [about, table(rows, columns)]


def _kill(found: Mapping[str, Any]) -> list[str]:
    text = (
        "One of {workers} workers of `scenes-tiny-lcm` was killed -9, when half of {images:,} images were "
        "made. A worker takes {shard:.1f} s for a shard. After the kill the driver knew of it in {known:.1f} "
        "s, another worker had started in {started:.1f} s and had made its first shard in {made:.1f} s."
    )
    lost = found["made"] - found["shard"]
    return [
        text.format_map(found),
        f"So one worker's time of {lost:.1f} s is lost, and at most two shards in flight.",
    ]


def _requests(found: Mapping[str, Any]) -> list[str]:
    kinds = [kind for kind in found["rows"][0] if kind != "who"]
    rows = [[row["who"], *(f"{row[kind]:,}" for kind in kinds)] for row in found["rows"]]
    rows.append(["all", *(f"{sum(row[kind] for row in found['rows']):,}" for kind in kinds)])
    about = (
        f"{found['images']:,} images and their pictures, {-(-found['images'] // SHARD):,} shards. A listing "
        f"of more than {PAGE:,} names is several requests to S3, and one here."
    )
    return [about, grid(rows, ["who", *kinds])]


def _paper(driver: Sequence[Mapping[str, Any]], requests: Mapping[str, Any]) -> list[str]:
    """Return what each part of a very large run would have to do, reckoned from what was measured."""
    most = max(driver, key=lambda row: row["workers"])
    a_gpu = SHARD / most["seconds"]
    shards, each_second = IMAGES / SHARD, GPUS * a_gpu / SHARD
    made = next(row for row in requests["rows"] if "shards" in row["who"])
    puts = each_second * made["PUT"] / -(-requests["images"] // SHARD)
    # The driver's work is that of shards.
    core = most["core"] * each_second / (most["rate"] / SHARD)
    pages = -(-2 * shards // PAGE)
    rows_bytes, picture_bytes = shards * ONE_SHARD, IMAGES * PICTURE
    seconds = IMAGES / (GPUS * a_gpu)
    rows = [
        ["the whole run", duration(seconds), f"{GPUS * a_gpu:,.0f} images/s"],
        ["pictures to the store", size_text(picture_bytes), f"{size_text(int(picture_bytes / seconds))}/s"],
        ["rows to the store", size_text(int(rows_bytes)), f"{size_text(int(rows_bytes / seconds))}/s"],
        ["PUT requests", f"{puts:,.0f}/s", f"S3 promises {PUTS:,}/s a prefix"],
        ["driver, handing out", f"{core:.0%} of a core", "one core"],
        ["driver, reading all rows once", f"{duration(rows_bytes / LINE)} at {size_text(LINE)}/s", ""],
        ["a listing of the whole draw", f"{pages:,.0f} pages", f"S3 promises {GETS:,} requests/s a prefix"],
        ["all workers, started near the end", f"{duration(GPUS * pages / GETS)} of listings", ""],
    ]
    return [
        f"A GPU makes {a_gpu:.0f} images a second, as the sleepers do. Measured figures are scaled by shards "
        "a second; sizes are those of MS-COCO's columns and of pictures of 512 x 512.",
        grid(rows, ["what", "takes", "beside"]),
        "Pictures saturate first, if all are kept: they are most of what goes to the store. Next is the one "
        "machine that scores, which reads all rows; then a start of all workers near the end of a run, since "
        "each lists the draw once, page after page. Requests and the hand-out of shards come last.",
    ]


SECTIONS: dict[str, tuple[str, Callable[[Any], list[str]]]] = {
    "executors": ("The executors beside each other", _executors),
    "driver": ("The driver of many workers", _driver),
    "kill": ("A killed worker", _kill),
    "requests": ("Requests to a store", _requests),
}
