"""Place a score beside its claim, in units of the margin: so lines of different metrics share an axis."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.report.results import Row

BEST, WORST = -1.5, 2.5
"""Ends of the axis, in margins worse than the claim; what lies beyond stands at the end, with an arrow."""


@dataclass(frozen=True)
class Forest:
    """One line of the plot, in per cent of its width from the better side on."""

    point: float
    low: float
    """Of the interval; equal to `high` where there is none."""
    high: float
    beyond: str
    """``better`` or ``worse`` where the point lies off the axis, else empty."""
    margins: str
    """How many margins the score is worse than the claim, in words."""
    far: str
    """The same in short, where the point lies off the axis."""


def place(margins: float) -> float:
    """Return where so many margins worse than the claim lie on the axis, in per cent."""
    return round(100 * (min(max(margins, BEST), WORST) - BEST) / (WORST - BEST), 2)


CLAIM, EDGE = place(0.0), place(1.0)


def forest(row: Row) -> Forest | None:
    """Return the line of a row; None where there is nothing to place, or no margin to measure with.

    The interval is that of the verdict: its ends are the one-sided bounds that are compared with the margin.
    """
    worse = worse_by(row)
    if worse is None or not row.margin or row.margin <= 0:
        return None
    low, high = _bounds(row.extra, worse)
    value = worse / row.margin
    beyond = "worse" if value > WORST else "better" if value < BEST else ""
    return Forest(
        place(value),
        place(low / row.margin),
        place(high / row.margin),
        beyond,
        _words(value),
        f"{abs(value):,.3g} margins" if beyond else "",
    )


def worse_by(row: Row) -> float | None:
    """Return by how much a measured score is worse than the claim; None where one of the two is not known."""
    told = row.extra.get("worse_by")
    if isinstance(told, int | float) and math.isfinite(told):
        return float(told)
    if row.claimed is None or row.measured is None or row.metric not in METRICS:
        return None
    worse = row.claimed - row.measured if METRICS[row.metric].higher_is_better else row.measured - row.claimed
    return worse if math.isfinite(worse) else None


def _bounds(extra: Mapping[str, Any], worse: float) -> tuple[float, float]:
    ends = [extra.get("at_least"), extra.get("at_most")]
    low, high = (end if isinstance(end, int | float) and math.isfinite(end) else worse for end in ends)
    return min(low, worse), max(high, worse)


def _words(value: float) -> str:
    if abs(value) < 0.005:
        return "on the claim"
    return f"{abs(value):,.3g} margins {'worse' if value > 0 else 'better'} than the claim"
