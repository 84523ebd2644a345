"""Keep what a benchmark found: figures as JSON for programs, tables as Markdown for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

from tabulate import tabulate

from pytest_sdbench.base.files import write_atomically

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def place(name: str, *, smoke: bool) -> Path:
    """Return where a benchmark's results go; those of a smoke run never among the published ones."""
    return (ROOT / "build" / "benchmarks" if smoke else RESULTS) / name


Row = Mapping[str, Any]
Cell = str | Callable[[Any], str]
"""A format string over the fields of a row, or a function of the row."""


def table(rows: Iterable[Row], columns: Sequence[tuple[str, Cell]]) -> str:
    """Return rows as a Markdown table; columns are headings with their cells."""
    return grid([[_fill(cell, row) for _, cell in columns] for row in rows], [name for name, _ in columns])


def grid(rows: Iterable[Sequence[object]], headings: Sequence[str]) -> str:
    """Return cells as a Markdown table, each as it stands."""
    return str(tabulate(rows, headings, tablefmt="github", disable_numparse=True))


def _fill(cell: Cell, row: Row) -> str:
    """Return the text of a cell: empty where the row lacks a field of it, or has None there."""
    if not isinstance(cell, str):
        return cell(row)
    fields = [name.partition("[")[0] for _, name, _, _ in Formatter().parse(cell) if name]
    return "" if any(row.get(name) is None for name in fields) else cell.format_map(row)


def paragraphs(*pieces: str) -> str:
    """Return a Markdown file of these pieces, less the empty ones."""
    return "\n\n".join(piece for piece in pieces if piece) + "\n"


def save(path: Path, content: object, text: str) -> None:
    """Write figures and their Markdown to `path` with the suffixes .json and .md."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path.with_suffix(".json"), (json.dumps(content, indent=1) + "\n").encode())
    write_atomically(path.with_suffix(".md"), text.encode())


def load(path: Path) -> dict[str, Any]:
    """Return the figures that were saved at `path`; none where there is no such file."""
    file = path.with_suffix(".json")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found
