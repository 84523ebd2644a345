"""Tables in the forms that others take: GitHub's Markdown, LaTeX, HTML, and CSV of one line a figure.

Names, titles and figures are not ours: each form has one function that lets them through as text.
"""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from pytest_sdbench.base.text import plain
from pytest_sdbench.report.cells import NONE, Markup, bold, link, markdown, table

MARK = "†"


@dataclass(frozen=True)
class Cell:
    """One figure of a table, or a word."""

    text: str
    error: str = ""
    """Standard error, as it is printed."""
    best: bool = False
    """Whether it is the best of its column: bold."""
    worse: bool = False
    """Whether it is surely worse than the best: marked."""


@dataclass(frozen=True)
class Grid:
    """One table: the first column has names, unless `left` says that more have words."""

    title: str
    heading: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    of: str = ""
    """What of the title's source it is."""
    url: str | None = None
    """Where the title leads to."""
    note: str = ""
    """What its reader should know."""
    left: int = 1
    """Columns of words."""


def cells(texts: Sequence[str]) -> tuple[Cell, ...]:
    """Return words as cells."""
    return tuple(map(Cell, texts))


def github(grids: Sequence[Grid]) -> str:
    """Return tables as GitHub's Markdown, each under a heading."""
    parts = []
    for grid in grids:
        rows = [[_github_cell(cell) for cell in row] for row in grid.rows]
        title = link(grid.title, grid.url) + (f": {markdown(grid.of)}" if grid.of else "")
        note = f"\n{markdown(grid.note)}\n" if grid.note else ""
        parts.append(f"### {title}\n\n{table(grid.heading, rows, left=range(grid.left))}\n{note}")
    return "\n".join(parts)


def _github_cell(cell: Cell) -> Markup:
    shown = markdown(_shown(cell))
    return Markup(f"{bold(shown) if cell.best else shown}{MARK if cell.worse else ''}")


def _shown(cell: Cell) -> str:
    return f"{cell.text} ± {cell.error}" if cell.error else cell.text


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    '"': r"\textquotedbl{}",
    "-": "-{}",
    "±": r"\ensuremath{\pm}",
    "↑": r"\ensuremath{\uparrow}",
    "↓": r"\ensuremath{\downarrow}",
    MARK: r"\textsuperscript{\textdagger}",
    "\u2013": "--",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}
"""A hyphen is no part of a dash, nor a quotation mark of another one."""


def latex_text(text: str) -> str:
    """Return a text as LaTeX sets it: one line, and no command of its own."""
    return "".join(_LATEX.get(char, char) for char in plain(" ".join(text.split())))


def latex(grids: Sequence[Grid]) -> str:
    """Return tables as LaTeX; they want the packages booktabs and textcomp, and the encoding T1."""
    parts = ["% \\usepackage{booktabs,textcomp} \\usepackage[T1]{fontenc}\n"]
    for grid in grids:
        columns = "l" * grid.left + "r" * (len(grid.heading) - grid.left)
        caption = latex_text(": ".join(word for word in (grid.title, grid.of) if word))
        note = f" {latex_text(grid.note)}" if grid.note else ""
        lines = [" & ".join(map(_latex_cell, row)) + r" \\" for row in grid.rows]
        heading = " & ".join(map(latex_text, grid.heading)) + r" \\"
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    r"\centering",
                    f"\\caption{{{caption}.{note}}}",
                    f"\\begin{{tabular}}{{{columns}}}",
                    *(r"\toprule", heading, r"\midrule", *lines, r"\bottomrule"),
                    r"\end{tabular}",
                    r"\end{table}",
                    "",
                ]
            )
        )
    return "\n".join(parts)


def _latex_cell(cell: Cell) -> str:
    text = latex_text(_shown(cell))
    shown = rf"\textbf{{{text}}}" if cell.best else text
    # What begins with a bracket or a star is no option of the line's end before it.
    return ("{}" + shown if shown.startswith(("[", "*")) else shown) + (
        latex_text(MARK) if cell.worse else ""
    )


def page(grids: Sequence[Grid]) -> str:
    """Return tables as HTML, to be put into a page."""
    return "\n".join(map(_html, grids))


def html_text(text: str) -> str:
    """Return a text as HTML shows it: one line, without elements and entities of its own."""
    return html.escape(plain(" ".join(text.split())))


def _html(grid: Grid) -> str:
    title = html_text(grid.title)
    try:
        leads = grid.url is not None and urlsplit(grid.url).scheme in ("http", "https")
    except ValueError:  # a bracket in the place of a host
        leads = False
    if leads and grid.url is not None:
        title = f'<a href="{html_text(grid.url)}">{title}</a>'
    of = f": {html_text(grid.of)}" if grid.of else ""
    heading = "".join(f'<th scope="col">{html_text(word)}</th>' for word in grid.heading)
    lines = [
        "<tr>" + "".join(_html_cell(cell, at, grid.left) for at, cell in enumerate(row)) + "</tr>"
        for row in grid.rows
    ]
    note = f"<p>{html_text(grid.note)}</p>\n" if grid.note else ""
    body = "\n".join(lines)
    caption = f"<caption>{title}{of}</caption>"
    return (
        f"<table>\n{caption}\n<thead><tr>{heading}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n{note}"
    )


def _html_cell(cell: Cell, at: int, left: int) -> str:
    shown = html_text(_shown(cell))
    shown = (f"<strong>{shown}</strong>" if cell.best else shown) + (
        f"<sup>{MARK}</sup>" if cell.worse else ""
    )
    if at == 0:
        return f'<th scope="row">{shown}</th>'
    return f"<td>{shown}</td>" if at < left else f'<td style="text-align: right">{shown}</td>'


CSV_HEADING = ("table", "name", "column", "figure", "standard_error", "best", "worse_than_best")
_NUMBER = re.compile(r"[-+]?[\d.,_]+(?:[eE][-+]?\d+)?[A-Za-z%]?\Z")


def csv_text(text: str) -> str:
    """Return a text as a field: one line, and nothing that a spreadsheet takes for a formula.

    What begins as a formula does, in wide letters too, and is no number gets an apostrophe before it, as
    OWASP advises ("CSV injection"): a program that wants the text back takes the first apostrophe off.
    """
    said = plain(" ".join(text.split()))
    return (
        f"'{said}" if said[:1] in tuple("=+-@'\uff1d\uff0b\uff0d\uff20") and not _NUMBER.match(said) else said
    )


def csv_lines(grids: Sequence[Grid]) -> str:
    """Return tables as CSV with one line a figure: tables of different columns are one file."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEADING)
    for grid in grids:
        title = ": ".join(word for word in (grid.title, grid.of) if word)
        for row in grid.rows:
            name = ", ".join(cell.text for cell in row[: grid.left])
            for column, cell in zip(grid.heading[grid.left :], row[grid.left :], strict=True):
                if cell.text == NONE:
                    continue
                words = (title, name, column, cell.text, cell.error)
                flags = ("yes" if flag else "" for flag in (cell.best, cell.worse))
                writer.writerow([*map(csv_text, words), *flags])
    return out.getvalue()


FORMATS: dict[str, Callable[[Sequence[Grid]], str]] = {
    "github": github,
    "latex": latex,
    "html": page,
    "csv": csv_lines,
}
