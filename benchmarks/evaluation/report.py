"""Write what the evaluation benchmark found: JSON for programs, Markdown for people, part by part.

Parts can be measured apart and at different times: each keeps its own circumstances, and a part that is
measured again replaces the old one in the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.evaluation.memory import LIMIT, Peak
from benchmarks.evaluation.solvers import SQRTM, Solver
from benchmarks.evaluation.stages import Shares
from benchmarks.evaluation.throughput import OURS, PUBLISHED, EndToEnd, Rate, Shared


@dataclass(frozen=True)
class Circumstances:
    """When, where and on what a part was measured."""

    command: str
    device: str
    cores: int
    checkpoint: str
    protocol: str
    precision: str
    rounds: int
    versions: Mapping[str, str]
    date: str
    load: tuple[float, float]
    """Average number of running processes at the beginning and at the end: contention if above the cores."""
    remarks: str = ""


def write(parts: Mapping[str, tuple[Circumstances, Any]], path: Path, note: str = "") -> tuple[Path, Path]:
    """Put parts into `path` with the suffixes .json and .md, beside those that are there; return both."""
    path.parent.mkdir(parents=True, exist_ok=True)
    as_json, as_text = path.with_suffix(".json"), path.with_suffix(".md")
    known: dict[str, Any] = json.loads(as_json.read_text(encoding="utf-8")) if as_json.is_file() else {}
    found = {
        name: {"circumstances": asdict(about), "found": _plain(result)}
        for name, (about, result) in parts.items()
    }
    content = {
        "note": note or known.get("note", ""),
        "parts": {
            name: {**known.get("parts", {}), **found}[name]
            for name in SECTIONS
            if name in found or name in known.get("parts", {})
        },
    }
    as_json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    as_text.write_text(text(content), encoding="utf-8")
    return as_json, as_text


def text(content: Mapping[str, Any]) -> str:
    """Return the whole file as Markdown."""
    pieces = [
        "# The evaluation beside the published procedure",
        *([content["note"]] if content["note"] else []),
    ]
    for name, part in content["parts"].items():
        title, read, section = SECTIONS[name]
        pieces += [
            f"## {title}",
            _about(Circumstances(**part["circumstances"])),
            *section(read(part["found"])),
        ]
    return "\n\n".join(pieces) + "\n"


def _about(about: Circumstances) -> str:
    libraries = ", ".join(f"{name} {number}" for name, number in about.versions.items())
    return (
        f"`{about.command}`\n\n{about.device}, {about.cores} cores; {about.checkpoint}, {about.protocol}, "
        f"{about.precision}; {about.rounds} rounds. {libraries}. {about.date}, load average "
        f"{about.load[0]:.1f} to {about.load[1]:.1f}.{' ' + about.remarks if about.remarks else ''}"
    )


def _end_to_end(found: EndToEnd) -> list[str]:
    whole = {rate.name: found.whole(rate.name) for rate in found.rates}
    rows = [
        [
            rate.name,
            str(rate.images),
            f"{rate.rate:.2f}",
            f"{rate.ratio:.2f}",
            f"{rate.lowest:.2f} to {rate.highest:.2f}",
            f"{rate.loading:.1f} s",
            f"{found.once[rate.name]:.2f} s",
            _duration(whole[rate.name]),
            f"{found.first[rate.name]:.2f}",
        ]
        for rate in found.rates
    ]
    headers = [
        "way", "images a turn", "images/s", "ratio", "of all rounds", "loading", "once",
        f"whole protocol, {found.n:,} images", "first turn, images/s",
    ]  # fmt: skip
    parts = [[name, f"{1e3 * seconds:.1f} ms"] for name, seconds in found.parts.items()]
    return [
        _table(rows, headers),
        f"The whole protocol, reckoned from these columns, is done {whole[PUBLISHED] / whole[OURS]:.2f} "
        "times as fast. An image of the published procedure takes:",
        _table(parts, ["", "an image"]),
    ]


def _shares(found: Shared) -> list[str]:
    shares = found.shares
    total = shares.wall * shares.threads
    rows = [
        [stage, f"{1e3 * seconds / found.images:.2f} ms", f"{100 * seconds / total:.1f} %"]
        for stage, seconds in shares.seconds.items()
    ]
    pieces = [
        f"{found.images} images, {found.rate:.2f} a second, on {shares.threads} thread"
        f"{'s' * (shares.threads != 1)} that sample. The U-Net's own calls are {100 * shares.unet:.1f} % "
        f"of threads x wall time ({100 * min(found.rounds):.1f} to {100 * max(found.rounds):.1f} % in all "
        "rounds).",
        _table(rows, ["on the threads that sample", "an image", "share"]),
    ]
    if shares.beside:
        beside = [
            [stage, f"{1e3 * seconds / found.images:.2f} ms"] for stage, seconds in shares.beside.items()
        ]
        pieces.append(_table(beside, ["on other threads", "an image"]))
    seconds = shares.seconds["U-Net"] / shares.threads
    whole = found.rate * found.flops_per_image / found.peak
    within = found.flops_per_image * found.images / seconds / found.peak
    pieces.append(
        f"An image takes {found.flops_per_image / 1e9:.2f} GFLOP of the U-Net. Of the measured peak of "
        f"matrix multiplications, {found.peak / 1e9:,.0f} GFLOP/s with all of torch's threads, that is "
        f"{100 * whole:.1f} % over the whole time and {100 * within:.1f} % within the U-Net's calls."
    )
    return pieces


def _rates(found: list[Rate]) -> list[str]:
    rows = [
        [
            rate.name,
            rate.beside,
            str(rate.images),
            f"{rate.rate:.2f}",
            f"{rate.ratio:.2f}",
            f"{rate.lowest:.2f} to {rate.highest:.2f}",
        ]
        for rate in found
    ]
    return [_table(rows, ["way", "beside", "images a turn", "images/s", "ratio", "of all rounds"])]


def _peaks(found: list[Peak]) -> list[str]:
    rows = [
        [
            peak.what,
            f"{peak.images:,}",
            f"{peak.base / 1e6:,.0f}",
            f"{peak.most / 1e6:,.0f}",
            f"{peak.seconds:.1f} s",
        ]
        for peak in found
    ]
    pieces = [_table(rows, ["what", "images", "MB before", "MB at most", "took"])]
    for what in dict.fromkeys(peak.what for peak in found):
        alike = [peak for peak in found if peak.what == what]
        if len(alike) > 1:
            more = alike[-1].most - alike[0].most
            limit = f" (at most {LIMIT / 1e6:.0f} are allowed)" if what.startswith("scoring") else ""
            pieces.append(
                f"{what}: {alike[-1].images:,} images take {more / 1e6:+,.0f} MB beside "
                f"{alike[0].images:,}{limit}."
            )
    return pieces


def _solvers(found: list[Solver]) -> list[str]:
    rows = [
        [
            solver.name,
            f"{solver.seconds:.2f} s",
            f"{solver.ratio:.2f}",
            f"{solver.lowest:.2f} to {solver.highest:.2f}",
            f"{solver.difference:.0e}",
        ]
        for solver in found
    ]
    table = _table(rows, ["solver", "seconds", "times ours", "of all rounds", "largest relative difference"])
    slowest = next(solver for solver in found if solver.name == SQRTM)
    return [table, f"Ours takes {1 / slowest.ratio:.2f} of the time of {SQRTM}."]


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def _table(rows: list[list[str]], headers: list[str]) -> str:
    return str(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


def _plain(result: Any) -> Any:
    return [asdict(each) for each in result] if isinstance(result, list) else asdict(result)


SECTIONS: dict[str, tuple[str, Callable[[Any], Any], Callable[[Any], list[str]]]] = {
    "end-to-end": (
        "Images a second, end to end",
        lambda found: EndToEnd(**{**found, "rates": [Rate(**rate) for rate in found["rates"]]}),
        _end_to_end,
    ),
    "unet-share": (
        "Where the time goes",
        lambda found: Shared(**{**found, "shares": Shares(**found["shares"])}),
        _shares,
    ),
    "ablation": ("Each speed-up alone", lambda found: [Rate(**rate) for rate in found], _rates),
    "memory": ("Memory over the number of images", lambda found: [Peak(**peak) for peak in found], _peaks),
    "solver": ("FID from moments", lambda found: [Solver(**solver) for solver in found], _solvers),
}
"""By the name of a part: its title, what makes its figures of JSON, and its text."""
