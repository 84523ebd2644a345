"""Bound a share by the exact binomial distribution, whose counts may be too small for the normal one."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pytest_sdbench.metrics.standard_error import Groups

Repeats = tuple[int, ...]
"""How many prompts have 0, 1, 2, ... pairs."""

_HALVINGS = 60
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_TERMS = 10_000


def trials_of(n: int, groups: Groups | None) -> float:
    """Return how many independent pairs n pairs are worth, where some share a prompt and are lost together.

    n^2 / sum(m_j^2) with m_j pairs of prompt j (Kish 1965, section 8.2, with a correlation of 1): one of each
    prompt if all are repeated as often. The variance is right then, and the tails are if all m_j are equal;
    `repeats_of` is for where they are not.
    """
    return float(n) if groups is None else float(n**2 / np.square(np.bincount(groups), dtype=float).sum())


def repeats_of(groups: Groups | None) -> Repeats:
    """Return how many prompts have 0, 1, 2, ... pairs; empty where all have as many."""
    if groups is None:
        return ()
    sizes = np.bincount(groups)
    return () if (sizes == sizes[0]).all() else tuple(np.bincount(sizes).tolist())


def chance_of_at_most(count: float, trials: float, share: float, repeats: Repeats = ()) -> float:
    """Return how likely no more than `count` of so many trials are ones, each being one with `share`.

    With `repeats` it is no smaller than where the pairs of each prompt are lost together.
    """
    if count >= trials:
        return 1.0
    chance = beta_cdf(1 - share, trials - count, count + 1)
    return max(chance, _tails(count / trials, share, repeats)[0]) if repeats else chance


def chance_of_at_least(count: float, trials: float, share: float, repeats: Repeats = ()) -> float:
    """Return how likely no fewer than `count` of so many trials are ones, each being one with `share`.

    With `repeats` it is no smaller than where the pairs of each prompt are lost together: one prompt of
    200 pairs among 800 of one is lost with `share`, and 200 of 1,000 with it.
    """
    if count <= 0:
        return 1.0
    chance = beta_cdf(share, count, trials - count + 1)
    return max(chance, _tails(count / trials, share, repeats)[1]) if repeats else chance


def upper_bound(count: float, trials: float, level: float, repeats: Repeats = ()) -> float:
    """Return the largest share of which so few are no less likely than `level` (Clopper, Pearson 1934)."""
    if count >= trials:
        return 1.0
    return _root(lambda share: chance_of_at_most(count, trials, share, repeats) < level)


def lower_bound(count: float, trials: float, level: float, repeats: Repeats = ()) -> float:
    """Return the smallest share of which so many are no less likely than `level` (Clopper, Pearson 1934)."""
    if count <= 0:
        return 0.0
    return _root(lambda share: chance_of_at_least(count, trials, share, repeats) > level)


def most_that_pass(n: int, trials: float, limit: float, level: float, repeats: Repeats = ()) -> int | None:
    """Return the largest number of n pairs whose upper bound lies within the limit; None where none does."""
    most, more = -1, n
    while more - most > 1:
        middle = (most + more) // 2
        few = chance_of_at_most(middle / n * trials, trials, limit, repeats) <= level
        most, more = (middle, more) if few else (most, middle)
    return None if most < 0 else most


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


def chance_of_rise(more: float, fewer: float, trials: float, rise: float) -> float:
    """Return how likely a share that rose by at least `rise` looks as if it had risen no more than this one.

    Of so many trials that are observed twice, `more` became ones and `fewer` are ones no longer: `rise` is
    the share that becomes one less the share that ceases to be one. The share of trials that change has the
    confidence distribution of Clopper and Pearson, and so has, given it, the part of them that become ones
    (Fay, Lumbard 2021, Statistics in Medicine 40, 1147-1159: no less than the true chance in all that was
    computed, and McNemar's exact test for a rise of 0). Where nothing changed it is `chance_of_at_most` none.
    """
    changed, least = more + fewer, abs(rise)
    if changed == 0 and rise < 0:
        return 1.0

    def so_few(share: float) -> float:
        return chance_of_at_most(more, changed, (1 + rise / share) / 2)

    # Between whole numbers the density has a pole at 1, where a rise is likeliest.
    if changed >= trials or (rise >= 0 and changed > trials - 1):
        return so_few(1.0)
    # The side of the share of changes that makes a rise likelier.
    a, b = (changed + 1, trials - changed) if rise >= 0 else (changed, trials - changed + 1)
    middle, spread = a / (a + b), math.sqrt(a * b / (a + b + 1)) / (a + b)
    low, high = max(least, middle - 9 * spread), min(1.0, middle + 20 * spread)
    if low >= high:
        return float(rise < 0)
    shares = low + (high - low) * (_NODES + 1) / 2
    log_density = (a - 1) * np.log(shares) + (b - 1) * np.log1p(-shares)
    log_density += math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    weights = np.exp(log_density) * _WEIGHTS * (high - low) / 2
    chances = np.array([so_few(share) for share in shares])
    return float(weights @ chances) if rise >= 0 else 1 - float(weights @ (1 - chances))


def most_rise(more: float, fewer: float, trials: float, level: float) -> float:
    """Return the largest rise of a share, observed twice, that is no less likely than `level`.

    The least is the largest one of `fewer` and `more` with the other sign.
    """
    return 2 * _root(lambda part: chance_of_rise(more, fewer, trials, 2 * part - 1) < level, 24) - 1


def beta_cdf(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b): DLMF 8.17.22, by Lentz's method."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    # Where the fraction converges slowly, its mirror image does not.
    mirrored = x > (a + 1) / (a + b + 2)
    if mirrored:
        x, a, b = 1 - x, b, a
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
    chance = front * (fraction - 1)
    return 1 - chance if mirrored else chance


def _tails(part: float, share: float, repeats: Repeats) -> tuple[float, float]:
    """Return how likely no more, and no fewer, than this part of the pairs are lost, a prompt as a whole.

    The number of pairs is a sum of binomial ones, m for each prompt of m pairs: its characteristic function
    is the product of theirs.
    """
    n = sum(m * prompts for m, prompts in enumerate(repeats))
    turns, product = np.exp(-2j * np.pi * np.arange(n + 1) / (n + 1)), np.ones(n + 1, complex)
    for m, prompts in enumerate(repeats):
        if m and prompts:
            product *= (1 - share + share * turns**m) ** prompts
    chances = np.fft.ifft(product).real
    few, many = math.floor(part * n + 1e-6), math.ceil(part * n - 1e-6)
    return float(chances[: few + 1].sum()), float(chances[many:].sum())


def _root(is_above: Callable[[float], bool], halvings: int = _HALVINGS) -> float:
    """Return where a condition becomes true between 0 and 1."""
    least, most = 0.0, 1.0
    for _ in range(halvings):
        middle = (least + most) / 2
        least, most = (least, middle) if is_above(middle) else (middle, most)
    return (least + most) / 2
