"""Bound a share by the exact binomial distribution, whose counts may be too small for the normal one."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pytest_sdbench.metrics.standard_error import Groups

_HALVINGS = 60
_TERMS = 10_000


def trials_of(n: int, groups: Groups | None) -> float:
    """Return how many independent pairs n pairs are worth at least, where some share a prompt.

    n^2 / sum(m_j^2) with m_j pairs of prompt j (Kish 1965, section 8.2, with a correlation of 1): one of each
    prompt if all are repeated as often. Pairs of one prompt are lost together then; where they are not, the
    interval is wider than need be, and never too narrow.
    """
    return float(n) if groups is None else float(n**2 / np.square(np.bincount(groups), dtype=float).sum())


def chance_of_at_most(count: float, trials: float, share: float) -> float:
    """Return how likely no more than `count` of so many trials are ones, each being one with `share`."""
    if count >= trials:
        return 1.0
    return beta_cdf(1 - share, trials - count, count + 1)


def chance_of_at_least(count: float, trials: float, share: float) -> float:
    """Return how likely no fewer than `count` of so many trials are ones, each being one with `share`."""
    return 1.0 if count <= 0 else beta_cdf(share, count, trials - count + 1)


def upper_bound(count: float, trials: float, level: float) -> float:
    """Return the largest share of which so few are no less likely than `level` (Clopper, Pearson 1934)."""
    return 1.0 if count >= trials else _root(lambda p: chance_of_at_most(count, trials, p) < level)


def lower_bound(count: float, trials: float, level: float) -> float:
    """Return the smallest share of which so many are no less likely than `level` (Clopper, Pearson 1934)."""
    return 0.0 if count <= 0 else _root(lambda p: chance_of_at_least(count, trials, p) > level)


def trials_to_tell(share: float, limit: float, level: float) -> float | None:
    """Return how many trials of this share put a bound at this level on its side of the limit, about.

    None where a thousand million do not.
    """

    def tells(trials: float) -> bool:
        if share < limit:
            return chance_of_at_most(share * trials, trials, limit) <= level
        return chance_of_at_least(share * trials, trials, limit) <= level

    most = 1.0
    while not tells(most):
        most *= 2
        if most > 1e9:
            return None
    least = most / 2
    for _ in range(20):
        middle = (least + most) / 2
        least, most = (least, middle) if tells(middle) else (middle, most)
    return most


def beta_cdf(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b): DLMF 8.17.22, by Lentz's method."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly, its mirror image does not
        return 1 - beta_cdf(1 - x, b, a)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta) / a
    fraction, above, below = 1.0, 1.0, 0.0
    for term in range(_TERMS):
        m, odd = divmod(term, 2)
        if term == 0:
            part = 1.0
        elif odd:
            part = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            part = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        below = 1 / (1 + part * below)
        above = 1 + part / above
        fraction *= above * below
        if abs(above * below - 1) < 1e-15:
            break
    return front * (fraction - 1)


def _root(is_above: Callable[[float], bool]) -> float:
    """Return where a condition becomes true between 0 and 1."""
    least, most = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (least + most) / 2
        least, most = (least, middle) if is_above(middle) else (middle, most)
    return (least + most) / 2
