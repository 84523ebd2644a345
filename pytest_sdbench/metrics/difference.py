"""Compare two sets of scores image by image: same prompts and seeds make most of the noise cancel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.metrics.standard_error import Groups, count_prompts, standard_error

FEWEST_PROMPTS = 20
"""Of fewer different prompts an error is too uncertain for the normal distribution, and nothing is called."""

_ROUNDING = 1e-6
"""Of a range: what recorded images, which are float32, are rounded by."""


@dataclass(frozen=True)
class Difference:
    """One score less another."""

    metric: str
    value: float
    """First less second, in the metric's unit."""
    standard_error: float | None
    unpaired_error: float | None
    """What the standard error would be had the two drawn other prompts and seeds."""
    paired: bool
    n: int
    """Images of the first."""
    prompts: int | None = None
    """Different prompts, where images that are paired have some in common."""

    @property
    def gain(self) -> float | None:
        """By how much pairing lessens the standard error; None where there is nothing to compare."""
        if not self.paired or self.unpaired_error is None or not self.standard_error:
            return None
        return self.unpaired_error / self.standard_error


def difference(
    first: Estimate, second: Estimate, *, at: int | None = None, groups: Groups | None = None
) -> Difference | None:
    """Return first less second, paired where both say how much each of the same n images moves them.

    The images are paired by index, so index i must be one prompt in both; whether the seeds agree as well
    shows in the standard error, which is that of the mean of the differences of influence values. `at` asks
    for the difference that another number of images would have. None where one of the two cannot say.
    Raises ValueError for two metrics.
    """
    if first.metric != second.metric:
        raise ValueError(f"{first.metric} and {second.metric} have no difference")
    values = (first.value, second.value) if at is None else (first.at(at), second.at(at))
    if values[0] is None or values[1] is None:
        return None
    unpaired, mine, theirs = None, first.influence, second.influence
    if first.standard_error is not None and second.standard_error is not None:
        unpaired = math.hypot(first.standard_error, second.standard_error)
    error, paired, prompts = unpaired, False, None
    if mine is not None and theirs is not None and len(mine) == len(theirs):
        error, paired = standard_error(mine - theirs, groups), True
        prompts = None if groups is None else count_prompts(len(mine), groups)
    return Difference(first.metric, values[0] - values[1], error, unpaired, paired, first.n, prompts)


def changes_of(first: Estimate, second: Estimate, trials: float) -> tuple[float, float]:
    """Return how many images of a share count in the first alone, and in the second alone, as so many trials.

    Raises ValueError where they do not say which count.
    """
    if first.influence is None or second.influence is None:
        raise ValueError(f"{first.metric}: these estimates do not say which images count")
    moved = first.value + first.influence - second.value - second.influence
    more, fewer = (int(np.count_nonzero(each > 0.5)) for each in (moved, -moved))
    return more * trials / first.n, fewer * trials / first.n


def worst_loss(
    first: Estimate, second: Estimate, groups: Groups | None = None, *, higher_is_better: bool
) -> float:
    """Return by how much the worst image makes a score worse, in its unit; the worst prompt if they repeat.

    The worst image of the second, or the one that was worst hit by the change from the second to the first. 0
    where they do not say how much each image moves the score.
    """
    if first.influence is None or second.influence is None:
        return 0.0
    changes = second.influence, first.influence - second.influence
    sums = [moves if groups is None else np.bincount(groups, weights=moves) for moves in changes]
    return max(0.0, *(float(-each.min() if higher_is_better else each.max()) for each in sums)) / first.n


def rest(
    first: Estimate,
    second: Estimate,
    minimum: float | None,
    maximum: float | None,
    groups: Groups | None = None,
) -> float:
    """Return by how much an image unlike all of these may move a score that lies between two bounds.

    Where every image has one bound or the other, or all have the same, these do not show how bad one may
    be: it may have the other bound; all images of a prompt, if they repeat. 0 where they show it, or where
    nothing bounds it.
    """
    if minimum is None or maximum is None or first.influence is None or second.influence is None:
        return 0.0
    both = (first.value + first.influence, second.value + second.influence)
    lowest, highest = min(float(each.min()) for each in both), max(float(each.max()) for each in both)
    near = _ROUNDING * (maximum - minimum)
    at_a_bound = all(np.all((each <= minimum + near) | (each >= maximum - near)) for each in both)
    if not at_a_bound and highest - lowest > near:
        return 0.0
    largest = 1 if groups is None else int(np.bincount(groups).max())
    return largest * (maximum - minimum) / first.n
