"""Tell what a training benchmark found, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.machine import libraries_and_load
from benchmarks.report import paragraphs, table

Result = Mapping[str, Any]


def report(content: Mapping[str, Any]) -> str:
    """Return the whole file: the note, and a section for each recipe."""
    sections = [piece for result in content["results"] for piece in section(result)]
    return paragraphs("# Throughput of a training step", content["note"], *sections)


def section(result: Result) -> list[str]:
    """Return the pieces of one recipe."""
    return [
        f"## {result['recipe']}",
        "{device}; {precision}; {networks}. Batch {batch} in parts of {micro_batch}, {resolution} px. "
        "{rounds} rounds of {steps} steps. ".format_map(result)
        + libraries_and_load(result),
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
                ("first loss", "{first_loss:.5f}"),
            ],
        ),
    ]
