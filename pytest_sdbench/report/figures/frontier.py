"""Draw quality against cost: a panel for each score and cost, a point for each card, and the frontier."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_sdbench.base.text import clipped, shortened
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.report.cells import REACH
from pytest_sdbench.report.figures.canvas import (
    BLUE,
    DPI,
    GRID,
    INK,
    PALE,
    QUIET,
    SMALL,
    WIDTH,
    measure,
    shown,
    wrap,
)
from pytest_sdbench.report.figures.labels import Box, place
from pytest_sdbench.report.frontier import CostPoint, frontier, unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOTE = "Full: measured, with its 95 % interval. Hollow: published. Line: no other card is better and cheaper."
_HEIGHT = 2.35
"""Inches of a panel."""
_NAME = 24
"""Columns of a name; of a longer one the end is left out."""


@dataclass(frozen=True)
class Panel:
    """The points of one score and one cost."""

    protocol: str
    metric: str
    kind: str
    """A key of `frontier.COSTS`."""
    points: Sequence[CostPoint]
    where: str = ""
    """On what times were measured."""

    @property
    def score(self) -> str:
        """Return the label of the score, with an arrow to the better side."""
        return f"{METRICS[self.metric].label} {METRICS[self.metric].arrow}"

    @property
    def best(self) -> list[CostPoint]:
        """Return the points of the frontier, cheapest first."""
        return frontier(self.points, higher=METRICS[self.metric].higher_is_better)

    @property
    def cost(self) -> tuple[str, float]:
        """Return what the axis of costs is called, and what they are multiplied by on it."""
        return unit(self.kind, [point.cost for point in self.points])


def describe(panels: Sequence[Panel]) -> str:
    """Return in words what the figure shows."""
    lines = []
    for panel in panels:
        label, factor = panel.cost
        lines.append(f"{panel.score} under {panel.protocol} against {label}:")
        lines += [
            f"{point.card}: {point.text} at {point.cost * factor:,.4g}, "
            f"{'measured' if point.measured else 'published'}"
            for point in panel.points
        ]
        lines.append(f"On the frontier: {', '.join(point.card for point in panel.best)}.")
    return "\n".join([*lines, NOTE])


def draw_frontier(panels: Sequence[Panel], width: float = WIDTH) -> Figure:
    """Return the figure of some panels, a row for each score; to be used within `style`."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = list(dict.fromkeys((panel.protocol, panel.metric) for panel in panels))
    kinds = list(dict.fromkeys(panel.kind for panel in panels))
    inches = min(width, 0.4 + 3.6 * len(kinds)), _HEIGHT * len(rows) + 0.25
    # Some eighteen letters of this size are an inch wide.
    note = textwrap.fill(NOTE, max(24, int(18 * inches[0])))
    foot = (0.07 + 0.13 * (note.count("\n") + 1)) / inches[1]
    figure = Figure(inches, DPI, layout=ConstrainedLayoutEngine(rect=(0, foot, 1, 1 - foot)))
    grid = figure.subplots(len(rows), len(kinds), squeeze=False)
    drawn = {}
    for axes in grid.flat:
        axes.set_visible(False)
    for at, panel in enumerate(panels):
        row = rows.index((panel.protocol, panel.metric))
        axes = grid[row, kinds.index(panel.kind)]
        axes.set_visible(True)
        _plot(axes, panel, at, wide=inches[0] / len(kinds) - 0.45)
        if panel.kind == next(each.kind for each in panels if (each.protocol, each.metric) == rows[row]):
            axes.set_title(clipped(shown(panel.protocol), 40), loc="left", weight="bold")
        drawn[at] = axes
    figure.text(0.06 / inches[0], 0.06 / inches[1], note, size=SMALL, color=QUIET)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # names are placed by the pixel: nothing may move any more
    for at, panel in enumerate(panels):
        _name(drawn[at], panel)
    return figure


def _plot(axes: Axes, panel: Panel, at: int, wide: float) -> None:
    label, factor = panel.cost
    axes.grid(color=GRID, linewidth=0.4)
    axes.set_axisbelow(True)
    for number, point in enumerate(panel.points):
        x, error = point.cost * factor, point.standard_error
        if point.measured and error is not None:
            axes.errorbar(
                x, point.quality, REACH * error, color=BLUE, elinewidth=0.9, capsize=1.6, capthick=0.9
            )
        face, order = (BLUE, 4) if point.measured else ("white", 3)
        how: Any = {"markerfacecolor": face, "markeredgecolor": BLUE, "markeredgewidth": 0.9, "zorder": order}
        size = 3.6 if point.measured else 4.6
        axes.plot([x], [point.quality], "o", markersize=size, gid=f"point-{at}-{number}", **how)
    axes.margins(x=0.12, y=0.14)
    axes.autoscale_view()
    best, (_, right) = panel.best, axes.get_xlim()
    stairs = [point.cost * factor for point in best], [point.quality for point in best]
    axes.autoscale(False)  # nothing that is drawn from here on moves a point
    axes.step(
        [*stairs[0], right], [*stairs[1], stairs[1][-1]], where="post", color=QUIET, linewidth=0.9, zorder=2
    )
    text = measure(DPI)
    words = f"{label}, {clipped(panel.where, 80)}" if panel.where else label
    axes.set_xlabel("\n".join(wrap(shown(words), wide * DPI, text)))
    axes.set_ylabel(shown(panel.score))
    axes.ticklabel_format(useOffset=False, style="plain")
    axes.locator_params(nbins=5)


def _name(axes: Axes, panel: Panel) -> None:
    """Write each card's name beside one of its points, with a line to it from afar."""
    factor, text = panel.cost[1], measure(axes.figure.dpi, SMALL)
    at = {point.card: point for point in panel.points}  # what was measured comes last
    places = [_pixels(axes, point.cost * factor, point.quality) for point in at.values()]
    names = [shortened(shown(name), _NAME) for name in at]
    scale = axes.figure.dpi / 72
    high, near = 1.25 * SMALL * scale, 4.2 * scale
    bounds = axes.get_window_extent()
    room = Box(bounds.x0, bounds.y0, bounds.x1, bounds.y1)
    boxes = place(
        places, [(text(name) + near / 2, high) for name in names], room, [*_marks(axes, panel)], near=near
    )
    back = axes.transData.inverted()
    for name, (x, y), box in zip(names, places, boxes, strict=True):
        left, middle = back.transform((box.left + near / 4, (box.bottom + box.top) / 2))
        axes.text(left, middle, name, size=SMALL, va="center", color=INK, zorder=6, bbox=PALE)
        nearest = box.end_of((x, y))
        if abs(nearest[0] - x) + abs(nearest[1] - y) > 2 * near:
            ends = [back.transform(each) for each in ((x, y), nearest)]
            axes.plot(*zip(*ends, strict=True), color=QUIET, linewidth=0.5, zorder=1)


def _pixels(axes: Axes, x: float, y: float) -> tuple[float, float]:
    found = axes.transData.transform((x, y))
    return float(found[0]), float(found[1])


def _marks(axes: Axes, panel: Panel) -> Iterator[Box]:
    """Yield what no name may lie on: the points, their intervals, and the frontier."""
    factor, radius = panel.cost[1], 3 * axes.figure.dpi / 72
    for point in panel.points:
        x, y = _pixels(axes, point.cost * factor, point.quality)
        yield Box(x - radius, y - radius, x + radius, y + radius)
        if point.measured and point.standard_error is not None:
            reach = REACH * point.standard_error
            low, high = (_pixels(axes, 0, point.quality + sign * reach)[1] for sign in (-1, 1))
            yield Box(x - radius / 3, low, x + radius / 3, high)
    corners = [_pixels(axes, point.cost * factor, point.quality) for point in panel.best]
    corners.append((axes.get_window_extent().x1, corners[-1][1]))
    thin = radius / 6
    for (x, y), (next_x, next_y) in itertools.pairwise(corners):
        yield Box(x, y - thin, next_x, y + thin)
        yield Box(next_x - thin, min(y, next_y), next_x + thin, max(y, next_y))
