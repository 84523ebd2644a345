"""Place cards by quality and cost, and find the frontier: those that no other beats in both."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pytest_sdbench.cards.card import Card
from pytest_sdbench.cards.cases import other_protocol
from pytest_sdbench.cards.claims import Claim
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.report.cells import measured, with_error
from pytest_sdbench.report.results import Row

COSTS = {
    "size": "parameters of the U-Net",
    "compute": "MACs of a U-Net call",
    "speed": "milliseconds of a U-Net call",
}


COMPARABLE = ("pass", "fail", "inconclusive", "uncalibrated")
"""Verdicts of what was measured as the protocol says."""


@dataclass(frozen=True)
class CostPoint:
    """One card's quality and cost."""

    card: str
    cost: float
    """Parameters, multiply-accumulates, or seconds."""
    quality: float
    text: str
    """The quality as a table prints it."""
    measured: bool
    """Else published."""
    standard_error: float | None = None


def scored(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """Return the protocols and metrics of rows that judge a checkpoint alone, each pair once."""
    asked = dict.fromkeys((row.protocol, row.metric) for row in rows if row.test == "quality")
    return [(protocol, metric) for protocol, metric in asked if _is_alone(metric)]


def claimed(cards: Iterable[Card]) -> list[tuple[str, str]]:
    """Return the protocols and metrics that cards publish or record, as `scored` does."""
    asked = dict.fromkeys(
        (claim.gate_protocol, claim.metric) for card in cards for claim in card.claims if claim.gate_protocol
    )
    return [(protocol, metric) for protocol, metric in asked if protocol and _is_alone(metric)]


def _is_alone(metric: str) -> bool:
    return metric in METRICS and METRICS[metric].reads != "pair"


def published_points(
    cards: Iterable[Card], protocol: str, metric: str, costs: Mapping[str, float]
) -> Iterator[CostPoint]:
    """Yield where cards stand by what they publish, given their `costs` by name."""
    for card in cards:
        claims = (claim for claim, why in _claims(card, protocol, metric, "published") if not why)
        if card.name in costs and (claim := next(claims, None)) is not None:
            yield CostPoint(card.name, costs[card.name], claim.value, claim.text, False)


def recorded_points(
    cards: Iterable[Card], protocol: str, metric: str, costs: Mapping[str, float]
) -> Iterator[CostPoint]:
    """Yield where cards stand by what they record, given their `costs` by name."""
    for card in cards:
        for claim, why in _claims(card, protocol, metric, "recorded"):
            if (each := claim.record) is not None and not why and card.name in costs:
                text = with_error(each.value, each.standard_error, METRICS[metric].decimals)
                yield CostPoint(card.name, costs[card.name], each.value, text, True, each.standard_error)


def incomparable(cards: Iterable[Card], protocol: str, metric: str) -> Iterator[str]:
    """Yield a line on each figure that no panel has, since it is of other images or of a former protocol."""
    for card in cards:
        for kind in ("published", "recorded"):
            for claim, why in _claims(card, protocol, metric, kind):
                if why:
                    yield f"{card.name}: {claim.text} is left out: {why}"


def _claims(card: Card, protocol: str, metric: str, kind: str) -> Iterator[tuple[Claim, str]]:
    """Yield a card's claims of a score, each with why it is not of the protocol as it is today."""
    for claim in card.claims:
        if (claim.gate_protocol, claim.metric, claim.kind) == (protocol, metric, kind):
            yield claim, other_protocol(claim, load_protocol(protocol, search=(card.path.parent,)))


def measured_points(
    rows: Iterable[Row], protocol: str, metric: str, costs: Mapping[str, float]
) -> Iterator[CostPoint]:
    """Yield where the cards of a run stand by what it measured, given their `costs` by name."""
    seen = set()
    for row in rows:
        value = row.measured
        if value is None or not math.isfinite(value) or (row.protocol, row.metric) != (protocol, metric):
            continue
        if row.card not in seen and row.card in costs and row.verdict in COMPARABLE:
            yield CostPoint(row.card, costs[row.card], value, measured(row), True, row.standard_error)
            seen.add(row.card)


def claimed_costs(cards: Iterable[Card], kind: str) -> dict[str, float]:
    """Return the sizes or the multiply-accumulates of the U-Nets of those cards that say them."""
    found: dict[str, float] = {}
    for card in cards:
        size = card.size.get("unet")
        if kind == "size" and size is not None and size.exact is not None:
            found[card.name] = float(size.exact)
        elif kind == "compute" and card.unet_macs is not None:
            found[card.name] = card.unet_macs
    return found


def measured_costs(rows: Iterable[Row], kind: str) -> dict[str, float]:
    """Return what a run measured of the U-Nets of its cards."""
    found: dict[str, float] = {}
    for row in rows:
        if row.test == kind and (kind != "size" or row.name == "unet"):
            cost = row.extra.get("candidate_median") if kind == "speed" else row.measured
            if isinstance(cost, int | float) and math.isfinite(cost):
                found.setdefault(row.card, float(cost))
    return found


def recorded_times(cards: Sequence[Card]) -> tuple[str, dict[str, float]]:
    """Return on what most of the cards record the time of a U-Net call, and their seconds a sample there."""
    by_place: dict[tuple[object, ...], dict[str, float]] = {}
    for card in cards:
        for each in card.devices:
            by_place.setdefault(each.key, {})[card.name] = each.seconds / each.batch
    if not by_place:
        return "", {}
    place = Counter({key: len(times) for key, times in by_place.items()}).most_common(1)[0][0]
    return ", ".join(map(str, place)), by_place[place]


def unit(kind: str, costs: Sequence[float]) -> tuple[str, float]:
    """Return what an axis of costs is called, and what they are multiplied by on it."""
    if kind == "speed":
        return COSTS[kind], 1e3
    word, factor = ("billion", 1e-9) if min(costs) >= 1e9 else ("million", 1e-6)
    return f"{word} {COSTS[kind]}", factor


def frontier(points: Sequence[CostPoint], *, higher: bool) -> list[CostPoint]:
    """Return the points that no other beats in both: of each card what was measured, where it was."""
    own: dict[str, CostPoint] = {}
    for point in points:
        if point.card not in own or point.measured:
            own[point.card] = point
    best: list[CostPoint] = []
    for point in sorted(
        own.values(), key=lambda each: (each.cost, -each.quality if higher else each.quality)
    ):
        better = not best or (
            point.quality > best[-1].quality if higher else point.quality < best[-1].quality
        )
        if better:
            best.append(point)
    return best
