"""Draw scores over runs: a small panel for each series, with intervals and the changes that were called."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_sdbench.base.text import clipped, shortened
from pytest_sdbench.report.cells import REACH
from pytest_sdbench.report.figures.canvas import (
    BETTER,
    BLUE,
    DPI,
    GRID,
    INK,
    PALE,
    QUIET,
    SMALL,
    TEXT,
    WIDTH,
    WORSE,
    measure,
    shown,
    wrap,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 24
"""Panels of a figure."""
_HEIGHT, _ACROSS = 1.55, 2.1
"""Inches of a panel, and those that one has across at least."""
_STACK = 6
"""Changes that are told one below the other."""


@dataclass(frozen=True)
class Call:
    """A change that was called."""

    at: int
    """The first point of the new level, counted from 0."""
    first: int
    """The change comes after this point, ..."""
    last: int
    """... and at this one at the latest."""
    worse: bool | None
    """None where the figure has no better side."""
    text: str
    """Its size, as a table prints it."""


@dataclass(frozen=True)
class Panel:
    """One score over the runs of a history, oldest first."""

    title: tuple[str, ...]
    """In lines: the card and the score."""
    values: Sequence[float]
    errors: Sequence[float | None]
    """One standard error each."""
    whens: Sequence[str]
    """When each was measured, in a few signs."""
    calls: Sequence[Call]
    silent: str = ""
    """Why no change could be called; empty where one could."""


def describe(panels: Sequence[Panel], note: str) -> str:
    """Return in words what the figure shows."""
    lines = []
    for panel in panels:
        ends = f"{panel.values[0]:,.6g} at {panel.whens[0]} to {panel.values[-1]:,.6g} at {panel.whens[-1]}"
        calls = "; ".join(f"{_word(call)}{call.text} at {panel.whens[call.at]}" for call in panel.calls)
        told = f"not called: {panel.silent}" if panel.silent else calls or "no change called"
        lines.append(f"{', '.join(panel.title)}: {len(panel.values)} points, {ends}; {told}.")
    return "\n".join([*lines, note])


def draw_history(panels: Sequence[Panel], note: str, width: float = WIDTH) -> Figure:
    """Return the figure of some series; to be used within `style`.

    Raises ValueError for none, and for more than `MOST`.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if not 0 < len(panels) <= MOST:
        raise ValueError(f"{len(panels)} panels: a figure has at most {MOST}")
    across = min(len(panels), max(1, int(width // _ACROSS)))
    down = -(-len(panels) // across)
    small, wide = measure(DPI, SMALL), min(width, 3.4 * across)
    notes = wrap(shown(note), (wide - 0.12) * DPI, small)
    foot = 0.08 + 1.3 * SMALL / 72 * len(notes)
    inches = wide, _HEIGHT * down + foot
    foot /= inches[1]
    figure = Figure(inches, DPI, layout=ConstrainedLayoutEngine(rect=(0, foot, 1, 1 - foot)))
    grid = figure.subplots(down, across, squeeze=False)
    for at, axes in enumerate(grid.flat):
        if at < len(panels):
            _plot(axes, panels[at], at, wide / across - 0.7)
        else:
            axes.set_visible(False)
    for at, line in enumerate(reversed(notes)):
        up = 0.06 + 1.3 * SMALL / 72 * at
        figure.text(0.06 / inches[0], up / inches[1], line, size=SMALL, color=QUIET)
    return figure


def _plot(axes: Axes, panel: Panel, at: int, wide: float) -> None:
    axes.grid(color=GRID, linewidth=0.4, axis="y")
    axes.set_axisbelow(True)
    places, values = list(range(len(panel.values))), list(panel.values)
    reaches = [REACH * (error or 0.0) for error in panel.errors]
    if any(reaches):
        axes.errorbar(places, values, reaches, fmt="none", ecolor="#8fb0d6", elinewidth=0.9, zorder=2)
    axes.plot(places, values, color=BLUE, linewidth=0.6, alpha=0.5, zorder=3)
    axes.plot(places, values, "o", color=BLUE, markersize=2.2, zorder=4, gid=f"points-{at}")
    small = measure(DPI, SMALL)
    told = [wrap(f"{_word(call)}{_brief(call.text)}", wide * DPI, small) for call in panel.calls]
    _mark(axes, panel, at, wide, told)
    axes.set_xlim(-0.6, len(values) - 0.4)
    axes.margins(y=0.12)
    low, high = axes.get_ylim()
    lines = max((_below(told, start, start + _STACK) for start in range(0, len(told), _STACK)), default=0)
    axes.set_ylim(low, high + 0.14 * lines * (high - low))  # room for what the changes are
    axes.locator_params(axis="y", nbins=5)
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")
    ends = [0, len(values) - 1] if len(values) > 1 else [0]
    whens = [clipped(shown(panel.whens[end]), 10) for end in ends]
    if sum(map(small, whens)) > 0.9 * wide * DPI * ends[-1] / len(values):
        whens[-1] = f"\n{whens[-1]}"  # below the first one
    axes.set_xticks(ends, whens)
    labels = axes.get_xticklabels()
    labels[-1].set_horizontalalignment("right")
    labels[0].set_horizontalalignment("left")
    bold = measure(DPI, TEXT, "bold")
    title = "\n".join(part for line in panel.title for part in wrap(_brief(line), wide * DPI, bold))
    axes.set_title(title, loc="left", size=TEXT, weight="bold")


def _below(told: Sequence[Sequence[str]], start: int, stop: int) -> int:
    """Return how many lines some changes take together."""
    return sum(map(len, told[start:stop]))


def _mark(axes: Axes, panel: Panel, at: int, wide: float, told: Sequence[Sequence[str]]) -> None:
    """Draw the level between changes, and each change with the lines that say its size."""
    borders = [0, *(call.at for call in panel.calls), len(panel.values)]
    for begin, stop in itertools.pairwise(borders):
        level = sum(panel.values[begin:stop]) / (stop - begin)
        if panel.calls:
            axes.plot([begin - 0.5, stop - 0.5], [level, level], color=INK, linewidth=1.0, zorder=5)
    for number, call in enumerate(panel.calls):
        colour = {True: WORSE, False: BETTER, None: QUIET}[call.worse]
        if call.last - call.first > 1:
            axes.axvspan(call.first + 0.5, call.last - 0.5, color=colour, alpha=0.14, linewidth=0)
        axes.axvline(call.at - 0.5, color=colour, linewidth=0.9, dashes=(3, 2), gid=f"change-{at}-{number}")
        widest = max(map(measure(DPI, SMALL), told[number]))
        part, share = (call.at + 0.1) / len(panel.values), widest / (wide * DPI)
        # Beside its line where there is room, else from the left edge on.
        side, start = ("right", part) if part >= share else ("left", part if part + share <= 1 else 0.0)
        shift = -2.5 if side == "right" else 2.5
        text = axes.annotate(
            "\n".join(told[number]),
            (start, 1),
            xycoords="axes fraction",
            xytext=(shift, -1 - 1.25 * SMALL * _below(told, number - number % _STACK, number)),
            textcoords="offset points",
            ha=side,
            va="top",
            size=SMALL,
            color=colour,
            bbox=PALE,
            zorder=6,
        )
        text.set_in_layout(False)  # it stands within its panel, which must not shrink to make room for it


def _brief(text: str) -> str:
    return shortened(shown(text), 60)


def _word(call: Call) -> str:
    return {True: "worse ", False: "better ", None: ""}[call.worse]
