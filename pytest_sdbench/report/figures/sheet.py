"""Draw pictures as a table: a row for each prompt, a column for each system, the same noise across a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pytest_sdbench.report.figures.canvas import DPI, QUIET, SMALL, TEXT, WIDTH, Measure, measure, shown, wrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pixels = npt.NDArray[np.uint8]

MOST_ROWS, MOST_COLUMNS = 40, 12
LONGEST = 4096
"""Pixels that a side of a sheet has at most."""
_CAPTION, _CELL = 1.25, 1.4
"""Inches of the captions' column, and that a picture has at most."""
_MARGIN, _GAP, _LEAD = 0.06, 0.04, 1.3
"""Inches; and the distance of two lines, in sizes of their text."""


@dataclass(frozen=True)
class Row:
    """One prompt, and the picture that each column has of it, uint8 [H, W, 3]."""

    caption: str
    pictures: Sequence[Pixels]
    note: str = ""
    """What a small line under the caption says."""


@dataclass(frozen=True)
class Sheet:
    """What is put side by side."""

    columns: Sequence[str]
    """Their headings; neighbours of several lines that share the first one have it once, above them."""
    rows: Sequence[Row]
    footnote: str = ""

    @property
    def side(self) -> int:
        """Return the pixels that a side of the largest picture has."""
        return max(len(picture) for row in self.rows for picture in row.pictures)

    @property
    def described(self) -> str:
        """Return in words what the sheet shows."""
        columns = ", ".join(" ".join(column.split()) for column in self.columns)
        return "\n".join([f"Columns: {columns}.", *(row.caption for row in self.rows), self.footnote])


@dataclass(frozen=True)
class Layout:
    """Where everything stands, in pixels from the upper left corner."""

    dpi: int
    width: int
    height: int
    cell: int
    lefts: Sequence[int]
    """Of the pictures of each column."""
    tops: Sequence[int]
    """Of each row."""
    headings: Sequence[Sequence[str]]
    shared: Sequence[tuple[range, Sequence[str], int]]
    """Columns with a heading above their own, its lines, and how many lines are below it."""
    captions: Sequence[Sequence[str]]
    notes: Sequence[Sequence[str]]
    footnote: Sequence[str]

    def leading(self, size: float) -> float:
        """Return the distance of two lines of a text of so many points."""
        return _leading(size, self.dpi)


def layout(sheet: Sheet, width: float = WIDTH) -> Layout:
    """Return the layout of a sheet that is at most so many inches wide; to be used within `style`.

    A picture is shown at a whole multiple of its pixels, unless no side of the sheet would stay within
    `LONGEST`: then it is made smaller. Raises ValueError for rows with other numbers of pictures than there
    are columns, and for more rows or columns than a sheet has.
    """
    _check(sheet)
    count = len(sheet.columns)
    room = width - 2 * _MARGIN - _CAPTION - count * _GAP
    inches = min(_CELL, room / count)
    largest = sheet.side
    cell = max(1, round(inches * DPI / largest)) * largest
    found = _placed(sheet, inches, cell)
    if (longest := max(found.width, found.height)) > LONGEST:
        fits = int(cell * LONGEST / longest * 0.98)  # text is rounded up to whole pixels
        found = _placed(sheet, inches, fits - fits % largest if fits >= largest else fits)
    return found


def _check(sheet: Sheet) -> None:
    for row in sheet.rows:
        if len(row.pictures) != len(sheet.columns):
            raise ValueError(f"{len(row.pictures)} pictures of {row.caption!r}, {len(sheet.columns)} columns")
    if not 0 < len(sheet.rows) <= MOST_ROWS or not 0 < len(sheet.columns) <= MOST_COLUMNS:
        size = f"{len(sheet.rows)} rows and {len(sheet.columns)} columns"
        raise ValueError(f"{size}: a sheet has at most {MOST_ROWS} and {MOST_COLUMNS}")


def _placed(sheet: Sheet, inches: float, cell: int) -> Layout:
    dpi = max(1, round(cell / inches))
    margin, gap, side = (round(each * dpi) for each in (_MARGIN, _GAP, _CAPTION))
    lefts = [margin + side + gap + at * (cell + gap) for at in range(len(sheet.columns))]
    width = lefts[-1] + cell + margin
    text, small = measure(dpi), measure(dpi, SMALL)
    bold, below = measure(dpi, TEXT, "bold"), [*sheet.columns]
    runs = _shared(sheet.columns)
    for run in runs:
        below[run.start : run.stop] = [sheet.columns[at].partition("\n")[2] for at in run]
    headings = [_lines(column, cell, bold) for column in below]
    shared = [
        (
            run,
            _lines(
                sheet.columns[run.start].partition("\n")[0],
                lefts[run.stop - 1] + cell - lefts[run.start],
                bold,
            ),
            max(len(headings[at]) for at in run),
        )
        for run in runs
    ]
    head = max([*map(len, headings), *(len(lines) + under for _, lines, under in shared)])
    captions = [_lines(row.caption, side, text) for row in sheet.rows]
    notes = [_lines(row.note, side, small) if row.note else [] for row in sheet.rows]
    footnote = _lines(sheet.footnote, width - 2 * margin, small) if sheet.footnote else []
    line, little = _leading(TEXT, dpi), _leading(SMALL, dpi)
    tops = [margin + round(head * line) + gap]
    for words, note in zip(captions, notes, strict=True):
        tops.append(tops[-1] + max(cell, round(len(words) * line + len(note) * little)) + gap)
    height = tops.pop() + round(len(footnote) * little) + margin
    return Layout(dpi, width, height, cell, lefts, tops, headings, shared, captions, notes, footnote)


def _shared(columns: Sequence[str]) -> list[range]:
    """Return the runs of two columns or more whose headings share the first of several lines."""
    runs: list[range] = []
    for at, column in enumerate(columns):
        group, _, rest = column.partition("\n")
        if runs and rest and at == runs[-1].stop and columns[at - 1].partition("\n")[0] == group:
            runs[-1] = range(runs[-1].start, at + 1)
        elif rest:
            runs.append(range(at, at + 1))
    return [run for run in runs if len(run) > 1]


def _leading(size: float, dpi: float) -> float:
    return _LEAD * size * dpi / 72


def _lines(text: str, most: float, width: Measure) -> list[str]:
    return [part for line in text.split("\n") for part in wrap(shown(line), most, width)]


def draw_sheet(sheet: Sheet, places: Layout) -> Figure:
    """Return the figure of a sheet; to be used within `style`."""
    from matplotlib.figure import Figure

    # A little more than the pixels: a rounded product would lose the last of them.
    size = (places.width + 1e-6) / places.dpi, (places.height + 1e-6) / places.dpi
    figure = Figure(size, places.dpi)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, places.width), ylim=(places.height, 0), autoscale_on=False)
    axes.axis("off")
    for row, top in zip(sheet.rows, places.tops, strict=True):
        for picture, left in zip(row.pictures, places.lefts, strict=True):
            extent = (left, left + places.cell, top + places.cell, top)
            pixels = _fitted(picture, places.cell)
            axes.imshow(pixels, extent=extent, aspect="auto", interpolation="none", origin="upper")
    line, little = places.leading(TEXT), places.leading(SMALL)
    for lines, left in zip(places.headings, places.lefts, strict=True):
        _write(axes, lines, left, places.tops[0] - 0.3 * line - len(lines) * line, line, weight="bold")
    for run, lines, under in places.shared:
        left, base = places.lefts[run.start], places.tops[0] - (0.3 + under) * line
        _write(axes, lines, left, base - len(lines) * line, line, weight="bold")
        ends = left, places.lefts[run.stop - 1] + places.cell
        axes.plot(ends, (base + 0.06 * line, base + 0.06 * line), color=QUIET, linewidth=0.5)
    margin = round(_MARGIN * places.dpi)
    for lines, notes, top in zip(places.captions, places.notes, places.tops, strict=True):
        _write(axes, lines, margin, top, line)
        _write(axes, notes, margin, top + len(lines) * line, little, size=SMALL, color=QUIET)
    below = places.height - margin - len(places.footnote) * little
    _write(axes, places.footnote, margin, below, little, size=SMALL, color=QUIET)
    return figure


def _fitted(picture: Pixels, cell: int) -> Pixels:
    """Return a picture that a cell shows at a whole multiple of its pixels: itself, or another size of it."""
    if cell % picture.shape[0] == 0 and picture.shape[0] == picture.shape[1]:
        return picture
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((cell, cell), Image.Resampling.LANCZOS))


def _write(axes: Any, lines: Sequence[str], left: float, top: float, leading: float, **how: Any) -> None:
    for at, line in enumerate(lines):
        # The first line's capitals begin at the top, about.
        axes.text(left, top + (at + 0.8) * leading, line, va="baseline", **how)
