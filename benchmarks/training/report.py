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
        f"Matrix-multiply peak {result['matmul_peak'] / 1e9:,.0f} GFLOP/s, copying "
        f"{result['copy_peak'] / 1e9:,.0f} GB/s (best of all rounds). An image needs "
        f"{result['flops_needed'] / 1e9:.3f} GFLOP; the published way computes "
        f"{result['flops_published'] / result['flops_needed']:.2f} times that.",
        table(
            [_shown(figure) for figure in result["figures"]],
            [
                ("way", "{name}"),
                ("beside", "{reference}"),
                ("images/s", "{images}"),
                ("ratio", "{ratio:.2f}"),
                ("low", "{lowest:.2f}"),
                ("high", "{highest:.2f}"),
                ("CPU ratio", "{cpu_ratio:.2f}"),
                ("GiB", "{memory_gib:.2f}"),
                ("% of peak", "{percent:.1f}"),
                ("first loss", "{first_loss:.5f}"),
            ],
        ),
    ]
    breakdowns = result["breakdowns"]
    if breakdowns:
        pieces += ["Where a step's time goes:", _breakdown_table(breakdowns)]
    return pieces


def _shown(figure: Result) -> Result:
    if figure["problem"]:
        return {"name": figure["name"], "reference": figure["reference"], "images": figure["problem"]}
    shown = {"images": f"{figure['images_per_second']:.1f}", "percent": 100 * figure["peak_share"]}
    return {**figure, **shown}


def _breakdown_table(breakdowns: Mapping[str, Mapping[str, float]]) -> str:
    rows = []
    for kind in dict.fromkeys(kind for found in breakdowns.values() for kind in found):
        row = [kind]
        for found in breakdowns.values():
            seconds = found.get(kind, 0.0)
            row.append(f"{1e3 * seconds:.1f} ms, {100 * seconds / sum(found.values()):.0f} %")
        rows.append(row)
    return grid(rows, ["", *breakdowns])
