"""Put teacher and Tiny side by side on 64 prompts: `python -m benchmarks.family.sheet`.

The pictures are those of the evidence store: the first prompts of a protocol, each from the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import options
from benchmarks.report import ROOT
from pytest_sdbench.base.paths import user_cache
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.commands.figure_sheet import Choice, collect, columns_of
from training.export.samples import Row, gallery

MEMBERS = ("scenes-sd", "scenes-tiny")
CELL, ACROSS = 128, 4
"""Pixels of a picture's side, twice its own, and prompts beside each other."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw what the store lacks, and write the sheet."""
    parser = options.parser("family.sheet", __doc__, "--threads")
    parser.add_argument("members", nargs="*", metavar="MEMBER", help=f"[{' '.join(MEMBERS)}]")
    parser.add_argument("--prompts", type=int, default=64, help="[%(default)s]")
    parser.add_argument("--protocol", default="scenes-quick")
    parser.add_argument("--store", type=Path, default=user_cache() / "experiments" / "evidence")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "contact-sheet.webp")
    asked = options.parse(parser, arguments)
    columns = columns_of(asked.members or MEMBERS, [asked.protocol])
    sheet, notes = collect(columns, Choice(count=asked.prompts), Workspace(asked.store))
    rows = [Row(row.caption, row.pictures) for row in sheet.rows]
    title = f"From left to right: {', '.join(sheet.columns)}. The same prompt and the same noise."
    gallery(rows, asked.out, across=ACROSS, cell=CELL, title=title)
    print("\n".join([*notes, f"{len(rows)} prompts on {asked.out}"]))


if __name__ == "__main__":
    main()
