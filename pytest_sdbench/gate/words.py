"""Write figures so that a line tells what it has to: chances, margins, and what two figures differ by."""

from __future__ import annotations

import math

from pytest_sdbench.cards.edit import scalar


def digits_apart(figure: float, other: float, digits: int, kind: str = "f") -> int:
    """Return how many digits, or one to six more, tell two figures apart; `digits` where none of them do."""
    told = (
        each for each in range(digits, digits + 7) if f"{figure:.{each}{kind}}" != f"{other:.{each}{kind}}"
    )
    return next(told, digits)


def percent(chance: float) -> str:
    """Return a chance in tenths of a percent."""
    return "below 0.1 %" if chance < 0.001 else f"{chance:.1%}".replace("%", " %")


def rounded_up(figure: float) -> str:
    """Return a figure with two digits, none below it, as a card may hold it."""
    step = 10.0 ** (math.floor(math.log10(figure)) - 1)
    rounded = float(f"{math.ceil(figure / step) * step:.2g}")
    # YAML takes 4e-05 for a word.
    return f"{rounded:g}" if rounded >= 1e-4 else scalar(rounded)
