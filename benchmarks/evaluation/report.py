"""Tell what the evaluation benchmark found, as Markdown, part by part.

Parts can be measured apart and at different times: each keeps its own circumstances, and a part that is
measured again replaces the old one in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.evaluation.memory import LIMIT
from benchmarks.evaluation.solvers import SQRTM
from benchmarks.evaluation.stages import UNET
from benchmarks.evaluation.throughput import OURS, PUBLISHED
from benchmarks.machine import libraries_and_load
from benchmarks.report import Cell, paragraphs, table
from pytest_sdbench.base.text import duration

ALL_ROUNDS: tuple[str, Cell] = ("of all rounds", "{lowest:.2f} to {highest:.2f}")
RATES: list[tuple[str, Cell]] = [
    ("way", "{name}"),
    ("images a turn", "{images}"),
    ("images/s", "{rate:.2f}"),
    ("ratio", "{ratio:.2f}"),
    ALL_ROUNDS,
]


def report(content: Mapping[str, Any]) -> str:
    """Return the whole file."""
    pieces = ["# The evaluation beside the published procedure"]
    for name, part in content["parts"].items():
        title, section = SECTIONS[name]
        about = part["circumstances"]
        line = "{device}, {cores} cores; {checkpoint}, {protocol}, {precision}; {rounds} rounds. "
        pieces += [f"## {title}", f"`{about['command']}`"]
        pieces += [line.format_map(about) + libraries_and_load(about), *section(part["found"])]
    return paragraphs(*pieces)


def _end_to_end(found: Mapping[str, Any]) -> list[str]:
    rows = {rate["name"]: {**rate, "once": found["once"][rate["name"]]} for rate in found["rates"]}
    for row in rows.values():
        # Loading, every image, and what is done once for all of them.
        row["whole"] = row["loading"] + found["n"] / row["rate"] + row["once"]
        row["duration"] = duration(row["whole"])
    columns: list[tuple[str, Cell]] = [
        *RATES,
        ("loading", "{loading:.1f} s"),
        ("once", "{once:.2f} s"),
        (f"whole protocol, {found['n']:,} images", "{duration}"),
    ]
    return [
        table(rows.values(), columns),
        f"The whole protocol, reckoned from these columns, is done "
        f"{rows[PUBLISHED]['whole'] / rows[OURS]['whole']:.2f} "
        "times as fast. An image of the published procedure takes:",
        _milliseconds(found["parts"], 1, ""),
    ]


def _shares(found: Mapping[str, Any]) -> list[str]:
    shares, images = found["shares"], found["images"]
    threads, unet = shares["threads"], shares["seconds"][UNET]
    total = shares["wall"] * threads
    rows = [
        {"stage": stage, "image": 1e3 * seconds / images, "share": 100 * seconds / total}
        for stage, seconds in shares["seconds"].items()
    ]
    columns: list[tuple[str, Cell]] = [
        ("on the threads that sample", "{stage}"),
        ("an image", "{image:.2f} ms"),
        ("share", "{share:.1f} %"),
    ]
    return [
        f"{images} images, {found['rate']:.2f} a second, on {threads} thread{'s' * (threads != 1)} that "
        f"sample. The U-Net's own calls are {100 * unet / total:.1f} % of threads x wall time "
        f"({100 * min(found['rounds']):.1f} to {100 * max(found['rounds']):.1f} % in all rounds).",
        table(rows, columns),
        _milliseconds(shares["beside"], images, "on other threads", 2) if shares["beside"] else "",
    ]


def _milliseconds(seconds: Mapping[str, float], images: int, heading: str, digits: int = 1) -> str:
    rows = [{"name": name, "ms": f"{1e3 * each / images:.{digits}f} ms"} for name, each in seconds.items()]
    return table(rows, [(heading, "{name}"), ("an image", "{ms}")])


def _rates(found: list[Mapping[str, Any]]) -> list[str]:
    return [table(found, [RATES[0], ("beside", "{beside}"), *RATES[1:]])]


def _peaks(found: list[Mapping[str, Any]]) -> list[str]:
    columns: list[tuple[str, Cell]] = [
        ("what", "{what}"),
        ("images", "{images:,}"),
        ("MB before", lambda peak: f"{peak['base'] / 1e6:,.0f}"),
        ("MB at most", lambda peak: f"{peak['most'] / 1e6:,.0f}"),
        ("took", "{seconds:.1f} s"),
    ]
    pieces = [table(found, columns)]
    for what in dict.fromkeys(peak["what"] for peak in found):
        alike = [peak for peak in found if peak["what"] == what]
        first, last = alike[0], alike[-1]
        limit = f" (at most {LIMIT / 1e6:.0f} are allowed)" if what.startswith("scoring") else ""
        if first is not last:
            pieces.append(
                f"{what}: {last['images']:,} images take {(last['most'] - first['most']) / 1e6:+,.0f} MB "
                f"beside {first['images']:,}{limit}."
            )
    return pieces


def _solvers(found: list[Mapping[str, Any]]) -> list[str]:
    columns: list[tuple[str, Cell]] = [
        ("solver", "{name}"),
        ("seconds", "{seconds:.2f} s"),
        ("times ours", "{ratio:.2f}"),
        ALL_ROUNDS,
        ("largest relative difference", "{difference:.0e}"),
    ]
    [slowest] = [solver for solver in found if solver["name"] == SQRTM]
    return [table(found, columns), f"Ours takes {1 / slowest['ratio']:.2f} of the time of {SQRTM}."]


SECTIONS: dict[str, tuple[str, Callable[[Any], list[str]]]] = {
    "end-to-end": ("Images a second, end to end", _end_to_end),
    "unet-share": ("Where the time goes", _shares),
    "ablation": ("Each speed-up alone", _rates),
    "memory": ("Memory over the number of images", _peaks),
    "solver": ("FID from moments", _solvers),
}
"""By the name of a part: its title, and what tells its figures."""
