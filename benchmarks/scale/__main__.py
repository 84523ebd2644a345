"""Measure what sharing the work costs, from one worker to hundreds that are simulated.

`python -m benchmarks.scale`; benchmarks/README.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import machine, options
from benchmarks.report import RESULTS, load, save
from benchmarks.scale import executors, requests, simulated
from benchmarks.scale.paper import WIDTH
from benchmarks.scale.report import SECTIONS, report
from benchmarks.turns import in_a_process

LIBRARIES = ("torch", "diffusers", "ray", "fsspec")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    asked = _options(arguments)
    parts = _parts(asked)
    for name in [name for name in SECTIONS if name in asked.only]:
        print(f"{name}:", flush=True)
        began = os.getloadavg()[0]
        found = parts[name]()
        circumstances = {
            "command": options.command("scale", arguments),
            **machine.facts("cpu", LIBRARIES, began),
        }
        # Written after each part: a long run that is stopped keeps what it has.
        known = load(asked.out).get("parts", {}) | {name: {"circumstances": circumstances, "found": found}}
        content = {"scoring": _scoring(), "parts": {each: known[each] for each in SECTIONS if each in known}}
        save(asked.out, content, report(content))
    print(asked.out.with_suffix(".md").read_text(encoding="utf-8"))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options.parser("scale", __doc__)
    parser.add_argument("--only", type=options.some_of(SECTIONS), help=f"of {', '.join(SECTIONS)} [all]")
    parser.add_argument("--images", type=int, default=5000, help="of one turn of an executor [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each executor [%(default)s]")
    told = "simulated ones, by commas [4,16,64,256]"
    parser.add_argument("--workers", type=_numbers, default=[4, 16, 64, 256], metavar="N,...", help=told)
    told = "that each of them sleeps over [%(default)s]"
    parser.add_argument("--shards", type=int, default=20, help=told)
    told = "that the middle one takes for a shard; 6.4: ten images a second [%(default)s]"
    parser.add_argument("--seconds", type=float, default=6.4, help=told)
    told = "whose requests are counted [%(default)s]"
    parser.add_argument("--stored", type=int, default=30000, metavar="IMAGES", help=told)
    parser.add_argument("--out", type=Path, default=RESULTS / "scale", help="where to write [%(default)s]")
    asked = parser.parse_args(arguments)
    asked.only = asked.only or list(SECTIONS)
    options.check(parser, "cpu", asked.rounds, asked.images // 256, asked.shards // 10, *asked.workers)
    return asked


def _scoring() -> float:
    """Return the processor time that FID of full width takes an image, as another benchmark found it."""
    rows = [row for row in load(RESULTS / "scoring-rows")["scores"] if row["metric"] == "fid"]
    (row,) = [row for row in rows if row["width"] == WIDTH]
    return float(row["cpu"] / row["images"])


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _parts(asked: argparse.Namespace) -> Mapping[str, Callable[[], Any]]:
    """Return what measures each part."""

    def driver() -> list[Any]:
        rows = []
        for workers in asked.workers:
            rows.append(in_a_process(simulated.drive, workers, asked.shards, asked.seconds))
            print(f"{workers} workers: {rows[-1]['rate']:,.0f} images/s, {rows[-1]['core']:.1%} of a core")
        return rows

    def stored() -> dict[str, Any]:
        return requests.measure(asked.stored, workers=8)

    return {
        "executors": partial(executors.compare, asked.images, asked.rounds),
        "driver": driver,
        "kill": partial(executors.kill, min(asked.images, 2048)),
        "requests": stored,
    }


if __name__ == "__main__":
    main()
