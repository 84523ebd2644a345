"""An axis with round ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """Where values lie between two ends of a drawing."""

    low: float
    high: float
    start: float
    """The place of `low` in the drawing."""
    stop: float
    ticks: tuple[tuple[float, str], ...]
    """Place and text of each."""

    def at(self, value: float) -> float:
        """Return the place of a value."""
        part = (value - self.low) / (self.high - self.low)
        return round(self.start + part * (self.stop - self.start), 1)


def axis_of(values: Sequence[float], start: float, stop: float) -> Axis:
    """Return an axis that holds some values with a little room, with three to six round ticks."""
    low, high = min(values), max(values)
    room = (high - low) * 0.12 or abs(high) * 0.1 or 1.0
    low, high = low - room, high + room
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * each for each in (1, 2, 2.5, 5, 10) if power * each >= rough)
    digits = max(0, -math.floor(math.log10(step)) + (step / power == 2.5))
    bare = Axis(low, high, start, stop, ())
    first = math.ceil(low / step)
    marks = [step * each for each in range(first, first + 12) if step * each <= high]
    return Axis(low, high, start, stop, tuple((bare.at(mark), f"{mark:,.{digits}f}") for mark in marks))
