"""Measure what scoring takes over the number of images, metric by metric: memory, processor time, passes.

`python -m benchmarks.evaluation.many_rows` makes rows shard by shard from a seed, each time they are read, so
what is resident is what scoring holds. With `--store`, a store of as many shards with small columns is asked
what it lacks, and read. Each figure has a process of its own.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine, options
from benchmarks.report import RESULTS, Cell, load, paragraphs, save, table
from benchmarks.turns import in_a_process
from pytest_sdbench.metrics.definition import Sample
from pytest_sdbench.metrics.moments import FeatureStatistics, Rows
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.metrics.standard_error import groups_of
from pytest_sdbench.store.shard_format import SHARD, columns_in, format_shard, shard_name
from pytest_sdbench.store.shards import Store

OUT = RESULTS / "scoring-rows"
WIDTHS = {"clip_score": 0, "inception_score": 1008}
"""Numbers an image where it is not that of the features."""
REFERENCES = 2_000
"""Real images whose features are known."""


class DrawnRows:
    """Rows of correlated features whose images differ in scale, drawn anew for each pass; none is kept."""

    def __init__(self, n: int, width: int) -> None:
        self.n, self.width, self.passes = n, width, 0

    def __iter__(self) -> Iterator[Rows]:
        self.passes += 1
        for start in range(0, self.n, SHARD):
            rng, count = np.random.default_rng([7, start]), min(SHARD, self.n - start)
            if not self.width:
                yield rng.uniform(0.2, 0.4, count).astype(np.float32)
                continue
            size = np.sqrt(8 / rng.chisquare(8, (count, 1))).astype(np.float32)
            yield rng.standard_normal((count, self.width), np.float32) * (size * _spread(self.width))


def _spread(width: int) -> Rows:
    return np.arange(1, width + 1, dtype=np.float32) ** np.float32(-0.5)


def score(metric: str, n: int, width: int) -> dict[str, Any]:
    """Estimate a metric of n drawn rows in this process, and tell what it took."""
    known, rows = METRICS[metric], DrawnRows(n, WIDTHS.get(metric, width))
    groups = np.arange(n) % (n // 4) if metric == "diversity" else None
    reference = None
    if known.reference != "none":
        real = (
            np.random.default_rng(1).standard_normal((REFERENCES, width), np.float32) * _spread(width) + 0.05
        )
        # The moments are not those of so few rows, whose covariance has no full rank.
        sigma = np.diag(np.square(_spread(width).astype(np.float64)))
        reference = FeatureStatistics(np.full(width, 0.05), sigma, REFERENCES, features=real)

    def estimate() -> object:
        return known.estimate(Sample(rows, n, groups), reference, known.options())

    took = _taken(estimate)
    return {"metric": metric, "images": n, "width": rows.width, "passes": rows.passes, **took}


def _taken(work: Callable[[], object]) -> dict[str, float]:
    """Do some work, and return the bytes that it took at most beside what was resident, and its seconds."""
    machine.forget_peak()
    base, began, cpu = machine.resident()[0], time.perf_counter(), time.process_time()
    work()
    seconds = {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    return {"bytes": machine.resident()[1] - base, **seconds}


def ask_store(n: int) -> list[dict[str, Any]]:
    """Fill a store with small columns of n images in this process, and tell what questions to it take."""
    with tempfile.TemporaryDirectory(prefix="sdbench-rows-") as name:
        keys = {"features": "net/features", "cosine": "net/cosine"}
        manifest: dict[str, Any] = {"device": "none"}
        written = Store(name).open("checkpoint", "draw", manifest, keys)
        written.prepare()
        _fill(Path(written.folder), written.writer, n)
        evidence = Store(name).open("checkpoint", "draw", manifest, keys)

        def read() -> None:
            for _ in evidence.read(n):
                pass

        asked: dict[str, Callable[[], object]] = {
            "what lacks, the first time": lambda: evidence.missing(n),
            "what lacks, again": lambda: evidence.missing(n),
            "who made them": lambda: evidence.writers(n),
            "one pass over the rows": read,
            "which images share a prompt": lambda: groups_of(
                tuple(f"a picture of {i} things" for i in range(n))
            ),
        }
        return [{"what": what, "images": n, **_taken(work)} for what, work in asked.items()]


def _fill(folder: Path, writer: str, n: int) -> None:
    """Write shards of 8 features and a cosine, without waiting for the disk."""
    for start in range(0, n, SHARD):
        images = range(start, min(start + SHARD, n))
        flags = {name: np.zeros(len(images), np.bool_) for name in ("blacked_out", "truncated")}
        rows: dict[str, Rows] = {
            "net/features": np.full((len(images), 8), 0.5, np.float32),
            "net/cosine": np.full(len(images), 0.3, np.float32),
            "seed": np.zeros(len(images), np.int64),
            **flags,
        }
        content = format_shard(rows, images, of=folder.name, writer=writer)
        (folder / shard_name(images, columns_in(rows))).write_bytes(content)


def report(found: Mapping[str, Any]) -> str:
    """Return the tables as Markdown."""
    took: list[tuple[str, Cell]] = [
        ("images", "{images:,}"),
        ("MB at most", lambda row: f"{row['bytes'] / 1e6:,.0f}"),
        ("processor time", "{cpu:,.1f} s"),
        ("wall time", "{wall:,.1f} s"),
    ]
    scored: list[tuple[str, Cell]] = [
        ("metric", "{metric}"),
        ("numbers a row", lambda row: f"{row['width'] or 1:,}"),
        *took,
        ("passes", "{passes}"),
    ]
    rows = sorted(found["scores"], key=lambda row: (row["metric"], row["width"], row["images"]))
    where = found["circumstances"]
    return paragraphs(
        "# Scoring over the number of images",
        f"{where['device']}. {machine.libraries_and_load(where)} MB are those beside what was resident "
        "before, modules and the reference. Rows are made from a seed for each pass: making them is in the "
        "times. Where the machine was shared, processor time says what scoring takes.",
        f"`{where['command']}`",
        table(rows, scored),
        "## The store",
        "Shards of 64 images with 8 features and a cosine, on a local disk.",
        table(found["store"], [("what", "{what}"), *took]),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write; figures of an earlier run that are not asked for stay."""
    parser = options.parser("evaluation.many_rows", __doc__)
    metrics = [name for name, each in METRICS.items() if each.output in ("features", "logits", "cosine")]
    parser.add_argument(
        "--metrics", type=options.some_of(metrics), default=[], help="none but the store's part"
    )
    parser.add_argument("--images", type=_numbers, default=[10_000, 100_000], help="[10000,100000]")
    parser.add_argument("--features", type=int, default=2048, help="numbers a row [%(default)s]")
    parser.add_argument("--store", action="store_true", help="measure the store's part")
    parser.add_argument(
        "--out", type=Path, default=OUT, help="where to write [benchmarks/results/scoring-rows]"
    )
    asked = parser.parse_args(arguments)
    began, known = os.getloadavg()[0], load(asked.out) or {"scores": [], "store": []}
    for metric in asked.metrics:
        for n in asked.images:
            new = in_a_process(score, metric, n, asked.features)
            _keep(known["scores"], new, ("metric", "images", "width"))
            _save(asked.out, known, began)
            print(new, flush=True)
    for n in asked.images if asked.store else []:
        for new in in_a_process(ask_store, n):
            _keep(known["store"], new, ("what", "images"))
        _save(asked.out, known, began)
    print(report(load(asked.out)))


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are no numbers with commas between") from None


def _keep(rows: list[dict[str, Any]], new: dict[str, Any], key: Sequence[str]) -> None:
    """Put a figure in the place of that of the same key."""
    rows[:] = [row for row in rows if any(row[name] != new[name] for name in key)] + [new]


def _save(out: Path, found: dict[str, Any], load_before: float) -> None:
    command = "python -m benchmarks.evaluation.many_rows"
    where = {"command": command, **machine.facts("cpu", ("numpy",), load_before)}
    content = {"circumstances": where, **{key: found[key] for key in ("scores", "store")}}
    save(out, content, report(content))


if __name__ == "__main__":
    main()
