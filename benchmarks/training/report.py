"""Tell what a training benchmark found, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.machine import libraries_and_load
from benchmarks.report import grid, paragraphs, table

Result = Mapping[str, Any]


def report(content: Mapping[str, Any]) -> str:
    """Return the whole file: the note, and a section for each recipe."""
    sections = [piece for result in content["results"] for piece in section(result)]
    return paragraphs("# Throughput of a training step", content["note"], *sections)


def section(result: Result) -> list[str]:
    """Return the pieces of one recipe."""
    pieces = [
        f"## {result['recipe']}",
        "{device}; {precision}; {networks}. Batch {batch} in parts of {micro_batch}, {resolution} px. "
        "{rounds} rounds of {steps} steps. ".format_map(result)
        + libraries_and_load(result),
        f"Matrix-multiply peak {result['matmul_peak'] / 1e9:,.0f} GFLOP/s (best of all rounds). An image "
        f"needs {result['flops_needed'] / 1e9:.3f} GFLOP; the published way computes "
        f"{result['flops_published'] / result['flops_needed']:.2f} times that.",
        table(
            result["figures"],
            [
                ("way", "{name}"),
                ("beside", "{reference}"),
                ("images/s", lambda row: row["problem"] or f"{row['images_per_second']:.1f}"),
                ("ratio", "{ratio:.2f}"),
                ("low", "{lowest:.2f}"),
                ("high", "{highest:.2f}"),
                ("CPU ratio", "{cpu_ratio:.2f}"),
                ("GiB", "{memory_gib:.2f}"),
                ("% of peak", lambda row: "" if row["problem"] else f"{100 * row['peak_share']:.1f}"),
                ("first loss", "{first_loss:.5f}"),
            ],
        ),
    ]
    breakdowns = result["breakdowns"]
    kinds = dict.fromkeys(kind for found in breakdowns.values() for kind in found)
    rows = [[kind, *(_share(found, kind) for found in breakdowns.values())] for kind in kinds]
    return [*pieces, "Where a step's time goes:", grid(rows, ["", *breakdowns])]


def _share(found: Mapping[str, float], kind: str) -> str:
    seconds = found.get(kind, 0.0)
    return f"{1e3 * seconds:.1f} ms, {100 * seconds / sum(found.values()):.0f} %"
