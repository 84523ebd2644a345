"""Find where a history of measured figures changes, with one error over all of it.

At each border between two points, the mean of the last 1, 2, 4, ... points before it is compared with that of
the first 1, 2, 4, ... after it, up to all that there are. A comparison whose window holds no change has mean
zero and a variance that is estimated. All comparisons together, of all series that are looked at, share the
error (Bonferroni), so that with a chance of 95 % every window that is called holds a change, wherever else
there are others. Of windows that are called the narrowest count first, and none that lies across one that
counts (Fryzlewicz 2024, "Narrowest Significance Pursuit"; windows of growing length after Kovács et al. 2023,
"Seeded binary segmentation"). So as many changes are called as there are, or fewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from pytest_sdbench.metrics.moments import Array
from pytest_sdbench.metrics.standard_error import Groups

Indices = npt.NDArray[np.intp]

ERROR = 0.05
"""Chance of any wrong call in a whole history."""

Chance = Callable[[int, int, int], float]
"""Returns how likely the points [start, border) and [border, end) differ so much without a change."""


@dataclass(frozen=True)
class Change:
    """A change of level between two points of a series, which are counted from 0."""

    at: int
    """The first point of the new level, as far as can be told."""
    first: int
    """The change comes after this point, ..."""
    last: int
    """... and at this one at the latest: of this much the error speaks."""
    value: float
    """Mean after it less mean before it, each up to the next change."""
    standard_error: float


def covariance(influences: Sequence[Array], groups: Groups | None = None) -> Array:
    """Return the covariance of scores of the same n images, [K, K], given how much each moves them, K of [n].

    First order, over the sums of groups where images share a prompt, as `standard_error` has it: the variance
    of a difference is that of `difference`.
    """
    moves = np.stack(influences)
    moves = moves - moves.mean(axis=1, keepdims=True)
    if groups is not None:
        moves = np.stack([np.bincount(groups, weights=each) for each in moves])
    moves = moves - moves.mean(axis=1, keepdims=True)
    count, n = moves.shape[1], len(influences[0])
    found: Array = moves @ moves.T * (count / (count - 1) / n**2)
    return found


def steadied(covariances: Array) -> Array:
    """Return the covariances of scores of as many images each, [K, K], with no variance far below the others.

    Where few images decide, a score that got none of them has a small error and is far from the others. So
    each gets at least the mean of the noise that is its own: o_i of D_ij = o_i + o_j by least squares, D
    being the variances of their differences.
    """
    count = len(covariances)
    if count < 3:
        return covariances
    variances = np.diag(covariances)
    rows = (variances[:, None] + variances - 2 * covariances).sum(axis=1)
    own = (rows - rows.sum() / (2 * (count - 1))) / (count - 2)
    return covariances + np.diag(np.maximum(own.mean() - own, 0.0))


def critical_value(level: float, freedom: float) -> float:
    """Return what Student's t exceeds, on either side, with this chance.

    Wallace 1959, Annals of Mathematical Statistics 30, 1121-1130; within 1 % from 19 degrees of freedom on.
    """
    normal = NormalDist().inv_cdf(1 - level / 2)
    if math.isinf(freedom):
        return normal
    scaled = normal * (8 * freedom + 3) / (8 * freedom + 1)
    return math.sqrt(freedom * math.expm1(scaled**2 / freedom))


def comparisons(points: int) -> int:
    """Return how many comparisons `change_points` makes of so many points."""
    return len(_windows(points)[0])


def change_points(
    values: Array,
    covariances: Array,
    *,
    of: int | None = None,
    error: float = ERROR,
    least: float = 0.0,
    freedom: float = math.inf,
    chance: Chance = lambda *_: 0.0,
) -> list[Change]:
    """Return the changes of level in a series of K points, in their order.

    `covariances` are those of the values, [K, K], or [M, K, K] of them between which the truth lies: the one
    that a comparison is least certain by counts. Each is estimated with so many degrees of `freedom`. A
    variance of zero is that of an exact figure, which changes wherever it differs. `of` is the number of
    comparisons in all series that are looked at (`comparisons`), which the `error` is shared by. What differs
    by less than `least` is no change, nor is what is likelier by `chance`, where the normal distribution
    alone would not do.
    """
    points = len(values)
    starts, borders, ends = _windows(points)
    if not len(starts):
        return []
    steps, variances = _steps(values, covariances, starts, borders, ends)
    share = error / (len(starts) if of is None else of)
    critical = critical_value(share, freedom)
    sizes = np.abs(steps)
    least = max(least, 1e-12 * float(np.abs(values).max()))
    called = (sizes > critical * np.sqrt(variances)) & (sizes > least)
    found: list[tuple[int, int]] = []
    for i in sorted(np.flatnonzero(called), key=lambda i: (ends[i] - starts[i], -sizes[i])):
        start, end = int(starts[i]), int(ends[i]) - 1
        # Windows may share a point: a change lies between two.
        free = all(end <= other[0] or start >= other[1] for other in found)
        if free and chance(start, int(borders[i]), end + 1) <= share:
            found.append((start, end))
    return _located(values, covariances, sorted(found))


def _located(values: Array, covariances: Array, windows: Sequence[tuple[int, int]]) -> list[Change]:
    """Return the change in each window, at the border that the points between its neighbours tell best."""
    points, borders = len(values), []
    for at, (first, last) in enumerate(windows):
        start = windows[at - 1][1] if at else 0
        end = windows[at + 1][0] + 1 if at + 1 < len(windows) else points
        here = np.arange(first + 1, last + 1)
        outer = np.full_like(here, start), here, np.full_like(here, end)
        steps, variances = _steps(values, covariances, *outer)
        clear = np.abs(steps) / np.sqrt(np.where(variances > 0, variances, np.finfo(float).tiny))
        borders.append(int(here[np.argmax(clear)]))
    edges = [0, *borders, points]
    whole = np.array(edges)
    steps, variances = _steps(values, covariances, whole[:-2], whole[1:-1], whole[2:])
    return [
        Change(border, *window, float(step), float(np.sqrt(variance)))
        for border, window, step, variance in zip(borders, windows, steps, variances, strict=True)
    ]


def _windows(points: int) -> tuple[Indices, Indices, Indices]:
    """Return the windows [start, end) of all comparisons, and the border that each is divided at."""
    windows = [
        (border - before, border, border + after)
        for border in range(1, points)
        for before in _lengths(border)
        for after in _lengths(points - border)
    ]
    starts, borders, ends = np.array(windows, np.intp).reshape(-1, 3).T
    return starts, borders, ends


def _lengths(most: int) -> list[int]:
    """Return 1, 2, 4, ... up to a number, and the number."""
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]


def _steps(
    values: Array, covariances: Array, starts: Indices, borders: Indices, ends: Indices
) -> tuple[Array, Array]:
    """Return the mean of [border, end) less that of [start, border) for each window, and its variance."""
    if covariances.ndim == 3:
        each = [_steps(values, one, starts, borders, ends) for one in covariances]
        return each[0][0], np.max([variances for _, variances in each], axis=0)
    # From a point near by, lest the sums of large figures lose what is small in them.
    sums = np.concatenate([[0.0], np.cumsum(values - values[0])])
    blocks = np.pad(covariances, ((1, 0), (1, 0))).cumsum(0).cumsum(1)

    def block(top: Indices, bottom: Indices, left: Indices, right: Indices) -> Array:
        found: Array = blocks[bottom, right] - blocks[top, right] - blocks[bottom, left] + blocks[top, left]
        return found

    before, after = borders - starts, ends - borders
    steps = (sums[ends] - sums[borders]) / after - (sums[borders] - sums[starts]) / before
    variances = (
        block(borders, ends, borders, ends) / after**2
        + block(starts, borders, starts, borders) / before**2
        - 2 * block(starts, borders, borders, ends) / (before * after)
    )
    # Of paired figures that are alike almost nothing is left: no less than rounding takes.
    floor = 1e-15 * float(np.abs(np.diag(covariances)).max(initial=0.0))
    return steps, np.maximum(variances, floor)
