"""Write the figures of a training benchmark: JSON for programs, Markdown for people."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tabulate import tabulate


@dataclass(frozen=True)
class Figure:
    """One way, timed turn by turn with a reference."""

    name: str
    reference: str
    images_per_second: float
    """Median over the rounds."""
    ratio: float
    """Of its rate to the reference's: median over the rounds of the ratio of neighbours in time."""
    lowest: float
    highest: float
    cpu_ratio: float | None
    """The same ratio of processor seconds, which other processes change less; None on CUDA."""
    memory_gib: float | None
    peak_share: float
    """Needed floating-point operations per second, over the measured matrix-multiply peak."""
    first_loss: float
    problem: str = ""


@dataclass(frozen=True)
class Result:
    """Everything measured of one recipe."""

    recipe: str
    networks: str
    device: str
    precision: str
    batch: int
    micro_batch: int
    resolution: int
    rounds: int
    steps: int
    flops_needed: int
    """Per image: teacher, student and gradient."""
    flops_published: int
    """Per image: with VAE, text encoder and the student's second forward pass."""
    matmul_peak: float
    """Floating-point operations per second."""
    copy_peak: float
    """Bytes per second, read and written."""
    versions: dict[str, str]
    date: str
    load: tuple[float, float]
    """Average number of running processes at the beginning and at the end: contention if above the cores."""
    figures: list[Figure] = field(default_factory=list)
    breakdowns: dict[str, dict[str, float]] = field(default_factory=dict)
    """Seconds per step by class of operation."""


def write(results: list[Result], path: Path, note: str = "") -> tuple[Path, Path]:
    """Write `path` with the suffixes .json and .md; return both."""
    path.parent.mkdir(parents=True, exist_ok=True)
    as_json, as_text = path.with_suffix(".json"), path.with_suffix(".md")
    as_json.write_text(
        json.dumps({"note": note, "results": [asdict(result) for result in results]}, indent=1) + "\n",
        encoding="utf-8",
    )
    pieces = ["# Throughput of a training step", *([note] if note else []), *map(text, results)]
    as_text.write_text("\n\n".join(pieces) + "\n", encoding="utf-8")
    return as_json, as_text


def text(result: Result) -> str:
    """Return a section of Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    head = (
        f"{result.device}; {result.precision}; {result.networks}. Batch {result.batch} in parts of "
        f"{result.micro_batch}, {result.resolution} px. {result.rounds} rounds of {result.steps} steps. "
        f"{versions}. {result.date}. Load average {result.load[0]:.1f} to {result.load[1]:.1f}.\n\n"
        f"Matrix-multiply peak {result.matmul_peak / 1e9:,.0f} GFLOP/s, copying "
        f"{result.copy_peak / 1e9:,.0f} GB/s (best of all rounds). An image needs "
        f"{result.flops_needed / 1e9:.3f} GFLOP; the published way computes "
        f"{result.flops_published / result.flops_needed:.2f} times that."
    )
    headers = [
        "way", "beside", "images/s", "ratio", "low", "high", "CPU ratio", "GiB", "% of peak", "first loss",
    ]  # fmt: skip
    rows = [
        [
            figure.name,
            figure.reference,
            f"{figure.images_per_second:.1f}",
            f"{figure.ratio:.2f}",
            f"{figure.lowest:.2f}",
            f"{figure.highest:.2f}",
            f"{figure.cpu_ratio:.2f}" if figure.cpu_ratio is not None else "",
            f"{figure.memory_gib:.2f}" if figure.memory_gib is not None else "",
            f"{100 * figure.peak_share:.1f}",
            f"{figure.first_loss:.5f}",
        ]
        if not figure.problem
        else [figure.name, figure.reference, figure.problem, *[""] * 7]
        for figure in result.figures
    ]
    table = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    parts = [f"## {result.recipe}", head, table]
    if result.breakdowns:
        kinds = list(dict.fromkeys(kind for found in result.breakdowns.values() for kind in found))
        totals = [sum(found.values()) for found in result.breakdowns.values()]
        lines = []
        for kind in kinds:
            seconds = [found.get(kind, 0.0) for found in result.breakdowns.values()]
            shares = zip(seconds, totals, strict=True)
            lines.append(
                [kind, *(f"{1e3 * part:.1f} ms, {100 * part / whole:.0f} %" for part, whole in shares)]
            )
        parts += ["Where a step's time goes:", tabulate(lines, ["", *result.breakdowns], tablefmt="github")]
    return "\n\n".join(parts)
