"""Place cards by quality and cost, and draw the frontier: those that no other beats in both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pytest_sdbench.cards.card import Card
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.report.cells import measured
from pytest_sdbench.report.html.axes import Axis, axis_of
from pytest_sdbench.report.results import Row

_COSTS = {
    "size": "parameters of the U-Net",
    "compute": "MACs of a U-Net call",
    "speed": "milliseconds of a U-Net call, here",
}
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


@dataclass(frozen=True)
class _Raw:
    card: str
    cost: float
    quality: float
    text: str
    measured: bool


def cost_panels(rows: Sequence[Row], cards: Sequence[Card], beside: Sequence[Card]) -> tuple[Panel, ...]:
    """Return a panel for each protocol of the run, first metric first, and cost that two cards or more have.

    Cards `beside` those of the run are shown by what they publish.
    """
    everyone = {card.name: card for card in [*beside, *cards]}
    asked = dict.fromkeys(
        (row.protocol, row.metric)
        for row in rows
        if row.test == "quality" and row.metric in METRICS and METRICS[row.metric].reads != "pair"
    )
    first: dict[str, str] = {}
    for protocol, metric in asked:
        first.setdefault(protocol, metric)
    panels = []
    for protocol, metric in first.items():
        for kind in _COSTS:
            raw = [*_published(everyone.values(), protocol, metric, kind)]
            raw += _measured(rows, everyone, protocol, metric, kind)
            if len({point.card for point in raw}) > 1:
                panels.append(_panel(raw, protocol, metric, kind))
    return tuple(panels)


def _published(cards: Iterable[Card], protocol: str, metric: str, kind: str) -> Iterable[_Raw]:
    for card in cards:
        cost = _claimed_cost(card, kind)
        if cost is None:
            continue
        for claim in card.claims:
            if (claim.gate_protocol, claim.metric, claim.kind) == (protocol, metric, "published"):
                yield _Raw(card.name, cost, claim.value, claim.text, False)
                break


def _measured(
    rows: Sequence[Row], cards: Mapping[str, Card], protocol: str, metric: str, kind: str
) -> Iterable[_Raw]:
    for name in dict.fromkeys(row.card for row in rows):
        mine = [row for row in rows if row.card == name]
        cost = _measured_cost(mine, kind)
        if cost is None and name in cards:
            cost = _claimed_cost(cards[name], kind)
        score = next(
            (
                row
                for row in mine
                if (row.protocol, row.metric) == (protocol, metric) and row.measured is not None
            ),
            None,
        )
        comparable = score is not None and score.verdict in ("pass", "fail", "inconclusive")
        if cost is not None and comparable and score is not None and score.measured is not None:
            yield _Raw(name, cost, score.measured, measured(score), True)


def _claimed_cost(card: Card, kind: str) -> float | None:
    if kind == "size":
        size = card.size.get("unet")
        return None if size is None or size.exact is None else float(size.exact)
    return card.unet_macs if kind == "compute" else None


def _measured_cost(rows: Sequence[Row], kind: str) -> float | None:
    for row in rows:
        if row.test == kind and (kind != "size" or row.name == "unet"):
            cost = row.extra.get("candidate_median") if kind == "speed" else row.measured
            return cost if isinstance(cost, int | float) else None
    return None


def _panel(raw: Sequence[_Raw], protocol: str, metric: str, kind: str) -> Panel:
    label, factor = _unit(kind, [point.cost for point in raw])
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
    best = _frontier(raw, higher=known.higher_is_better)
    corners = [(x.at(point.cost * factor), y.at(point.quality)) for point in best]
    return Panel(f"{known.label} {known.arrow}", label, protocol, points, _stairs(corners), x, y)


def _unit(kind: str, costs: Sequence[float]) -> tuple[str, float]:
    """Return what an axis is called, and what costs are multiplied by on it."""
    if kind == "speed":
        return _COSTS[kind], 1e3
    word, factor = ("billion", 1e-9) if min(costs) >= 1e9 else ("million", 1e-6)
    return f"{word} {_COSTS[kind]}", factor


def _frontier(raw: Sequence[_Raw], *, higher: bool) -> list[_Raw]:
    """Return the points that no other beats in both: of each card what was measured, where it was."""
    own: dict[str, _Raw] = {}
    for point in raw:
        if point.card not in own or point.measured:
            own[point.card] = point
    best: list[_Raw] = []
    for point in sorted(
        own.values(), key=lambda each: (each.cost, -each.quality if higher else each.quality)
    ):
        better = not best or (
            point.quality > best[-1].quality if higher else point.quality < best[-1].quality
        )
        if better:
            best.append(point)
    return best


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


def _label_places(raw: Sequence[_Raw], places: Sequence[tuple[float, float]]) -> dict[int, float]:
    """Return where the name of each card stands, at the last point of it: no two on one another."""
    last = {point.card: at for at, point in enumerate(raw)}
    found: dict[int, float] = {}
    for at in sorted(last.values(), key=lambda at: places[at][1]):
        height = places[at][1]
        taken = [y for other, y in found.items() if abs(places[other][0] - places[at][0]) < 90]
        found[at] = max(height, max(taken, default=-100.0) + 11)
    over = max(found.values(), default=0.0) - (HEIGHT - BOTTOM)
    return {at: y - max(0.0, over) for at, y in found.items()}
