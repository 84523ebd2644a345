"""Compute the standard error of a score from how much each image moves it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from pytest_sdbench.metrics.moments import Array

Groups = npt.NDArray[np.intp]
"""For each image, which prompt it is of: equal numbers are one prompt, drawn several times."""


def groups_of(prompts: tuple[str, ...]) -> Groups | None:
    """Number the prompts in the order of their first appearance, [n]; None where none repeats."""
    numbers: dict[str, int] = {}
    groups = np.array([numbers.setdefault(prompt, len(numbers)) for prompt in prompts], np.intp)
    return groups if len(numbers) < len(prompts) else None


def count_prompts(n: int, groups: Groups | None) -> int:
    """Return how many different prompts `n` images have."""
    return n if groups is None else int(groups.max()) + 1


def images_per_trial(n: int, shares: Iterable[tuple[float, float | None]]) -> float:
    """Return how many of `n` images are worth one that is independent; shares with their standard errors.

    Images that share a prompt are worth fewer, which shows in the largest of the errors.
    """
    known = [n * error**2 / (share * (1 - share)) for share, error in shares if error and 0 < share < 1]
    return max([1.0, *known])


def doubt(n: int, groups: Groups | None) -> float:
    """Return the standard error that a share of `n` images has besides its own: one of 1 is not certain.

    As if two images, or prompts where these repeat, were otherwise (after Agresti and Coull 1998).
    """
    return math.sqrt(2) / count_prompts(n, groups)


def standard_error(
    influence: Array,
    groups: Groups | None = None,
    *,
    degenerate: float = 0.0,
    blocks: int | None = None,
    unbiased: float = 0.0,
) -> float | None:
    """Return the standard error of a score whose first-order change with each image is `influence`, [n].

    First order is the delta method: the variance is that of the influence over n, taken over the sums of
    groups where images share a prompt (they are not independent then). `degenerate` is the variance of the
    score's second-order part. Influence is itself estimated, from the same images, and so holds twice that
    part: where the first order vanishes (a score at its optimum), the delta method is too wide by the root
    of two. So it is taken off twice and added once. That is right on average, but leaves too little of the
    first order where images are near the optimum by luck. Of a squared distance the first order is in
    proportion to the distance, and no less than its share `unbiased` is left: the distance without its bias
    over the one with it, which the influence is of. With `blocks`, the score was corrected by a jackknife
    over so many blocks, which adds 1 / (blocks - 1) of the second-order part (a U-statistic of block means
    for a V-statistic). None for fewer than two images or groups.
    """
    n = len(influence)
    # Groups of different sizes have different sums of whatever the mean is.
    influence = influence - influence.mean()
    sums = influence if groups is None else np.bincount(groups, weights=influence)
    count = len(sums)
    if count < 2:
        return None
    variance = float(np.square(sums - sums.mean()).sum()) * count / (count - 1) / n**2
    variance = max(variance - 2 * degenerate, unbiased * variance) + degenerate
    if blocks is not None:
        variance += degenerate / (blocks - 1)
    return math.sqrt(variance)
