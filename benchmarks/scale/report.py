"""Tell what the benchmark of scale found, as Markdown, and reckon from it what saturates first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.machine import libraries_and_load
from benchmarks.report import Cell, grid, paragraphs, table
from benchmarks.scale.paper import GPUS, IMAGES, paper
from benchmarks.scale.requests import PAGE
from pytest_sdbench.store.shard_format import SHARD


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
        pieces += [f"## On paper: {GPUS:,} GPUs and {IMAGES // 10**6} million images"]
        pieces += paper(parts["driver"]["found"], parts["requests"]["found"], content["scoring"])
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
            "each": ", ".join(f"{rate:.0f}" for rate in row["rates"]),
            "startup": sorted(row["startups"])[len(row["startups"]) // 2],
            "over": 100 * (row["ratio"] - 1),
            "rounds": len(row["rates"]),
        }
        for row in found
    ]
    columns: list[tuple[str, Cell]] = [
        ("executor", "{name}"),
        ("images/s", "{rate:.1f}"),
        ("in each round", "{each}"),
        ("time over `local`", "{over:+.1f} %"),
        ("ratio in all rounds", "{lowest:.3f} to {highest:.3f}"),
        ("start-up", "{startup:.1f} s"),
    ]
    about = (
        f"`scenes-tiny-lcm` under `scenes-lcm4-5k`: {rows[0]['images']:,} images on {rows[0]['workers']} CPU "
        f"workers, {rows[0]['rounds']} rounds in turn. The rate is that between the first and the last "
        "shard; start-up is all other time. Medians, and ratios of the same round."
    )
    swing = max(max(row["rates"]) / min(row["rates"]) for row in rows) - 1
    doubt = (
        f"Rounds of one executor differ by up to {swing:.0%}: the machine's own speed changes so much. What "
        "differs less between two executors need not be theirs."
    )
    return [about, table(rows, columns), doubt]


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
    kinds = [kind for kind in found["cluster"][0] if kind != "who"]
    about = (
        f"{found['images']:,} images and their pictures, {-(-found['images'] // SHARD):,} shards, with a "
        f"store in memory that counts. A request lists {PAGE:,} names, as on S3. Every process has a cache "
        "of its own. On a cluster the driver lists what lacks, and hands it out:"
    )
    return [
        about,
        _kinds(found["cluster"], kinds),
        "Processes that share the work by their number look before each shard whether another has made it:",
        _kinds(found["parts"], kinds),
    ]


def _kinds(found: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> str:
    rows = [[row["who"], *(f"{row[kind]:,}" for kind in kinds)] for row in found]
    return grid(rows, ["who", *kinds])


SECTIONS: dict[str, tuple[str, Callable[[Any], list[str]]]] = {
    "executors": ("The executors beside each other", _executors),
    "driver": ("The driver of many workers", _driver),
    "kill": ("A killed worker", _kill),
    "requests": ("Requests to a store", _requests),
}
