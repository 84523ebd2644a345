"""Place cards by quality and cost, and draw the frontier: those that no other beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_sdbench.cards.card import Card
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.report.frontier import (
    COSTS,
    CostPoint,
    claimed_costs,
    frontier,
    measured_costs,
    measured_points,
    published_points,
    scored,
    unit,
)
from pytest_sdbench.report.html.axes import Axis, axis_of
from pytest_sdbench.report.results import Row

WIDTH, HEIGHT = 370, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 122, 14, 40
"""Of a panel, in its own units."""


@dataclass(frozen=True)
class Point:
    """One card's quality and cost, and where they lie."""

    card: str
    x: float
    y: float
    cost: str
    quality: str
    measured: bool
    """Else published."""
    label_y: float
    """Where the card's name stands; below 0: the name stands at another point of the card."""


@dataclass(frozen=True)
class Panel:
    """One quality against one cost."""

    quality: str
    """The metric, with an arrow to the better side."""
    cost: str
    protocol: str
    points: tuple[Point, ...]
    frontier: str
    """Corners of the line, as SVG's polyline has them."""
    x: Axis
    y: Axis


def cost_panels(rows: Sequence[Row], cards: Sequence[Card], beside: Sequence[Card]) -> tuple[Panel, ...]:
    """Return a panel for each protocol of the run, first metric first, and cost that two cards or more have.

    Cards `beside` those of the run are shown by what they publish.
    """
    everyone = {card.name: card for card in [*beside, *cards]}.values()
    first: dict[str, str] = {}
    for protocol, metric in scored(rows):
        first.setdefault(protocol, metric)
    panels = []
    for protocol, metric in first.items():
        for kind in COSTS:
            claimed = claimed_costs(everyone, kind)
            points = [*published_points(everyone, protocol, metric, claimed)]
            points += measured_points(rows, protocol, metric, claimed | measured_costs(rows, kind))
            if len({point.card for point in points}) > 1:
                panels.append(_panel(points, protocol, metric, kind))
    return tuple(panels)


def _panel(raw: Sequence[CostPoint], protocol: str, metric: str, kind: str) -> Panel:
    label, factor = unit(kind, [point.cost for point in raw])
    label += ", here" if kind == "speed" else ""
    known = METRICS[metric]
    x = axis_of([point.cost * factor for point in raw], LEFT, WIDTH - RIGHT)
    y = axis_of([point.quality for point in raw], HEIGHT - BOTTOM, TOP)
    places = [(x.at(point.cost * factor), y.at(point.quality)) for point in raw]
    named = _label_places(raw, places)
    points = tuple(
        Point(
            each.card,
            *place,
            f"{each.cost * factor:,.4g}",
            each.text,
            each.measured,
            named.get(at, -1.0),
        )
        for at, (each, place) in enumerate(zip(raw, places, strict=True))
    )
    best = frontier(raw, higher=known.higher_is_better)
    corners = [(x.at(point.cost * factor), y.at(point.quality)) for point in best]
    return Panel(f"{known.label} {known.arrow}", label, protocol, points, _stairs(corners), x, y)


def _stairs(corners: Sequence[tuple[float, float]]) -> str:
    """Return the line through the frontier: what a cost buys holds up to the next better card."""
    steps = []
    for at, (x, y) in enumerate(corners):
        if at:
            steps.append((x, corners[at - 1][1]))
        steps.append((x, y))
    if corners:
        steps.append((WIDTH - RIGHT, corners[-1][1]))
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in steps)


def _label_places(raw: Sequence[CostPoint], places: Sequence[tuple[float, float]]) -> dict[int, float]:
    """Return where the name of each card stands, at the last point of it: no two on one another."""
    last = {point.card: at for at, point in enumerate(raw)}
    found: dict[int, float] = {}
    for at in sorted(last.values(), key=lambda at: places[at][1]):
        height = places[at][1]
        taken = [y for other, y in found.items() if abs(places[other][0] - places[at][0]) < 90]
        found[at] = max(height, max(taken, default=-100.0) + 11)
    over = max(found.values(), default=0.0) - (HEIGHT - BOTTOM)
    return {at: y - max(0.0, over) for at, y in found.items()}
