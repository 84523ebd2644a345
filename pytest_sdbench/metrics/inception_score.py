"""The Inception score of a set of images, with torch-fidelity's splits, and its standard error."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt

from pytest_sdbench.metrics.definition import Metric, Sample
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.moments import Array, FeatureStatistics, Rows
from pytest_sdbench.metrics.standard_error import Groups, standard_error

_LARGEST_BIAS = 0.055
"""Bias of log IS that is still small enough to be known to first order."""


@dataclass(frozen=True)
class Splits:
    """What a protocol may set of the Inception score."""

    splits: PositiveInt = 10
    shuffle_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Seed of the shuffle before splitting; None: in the order of the prompts."""


class InceptionScore:
    """The Inception score of n images whose logits arrive in batches, in the order of the images.

    exp(E KL(p(y|x) || p(y))) per split (Salimans et al. 2016), averaged over the splits. As in torch-fidelity
    the images are shuffled first, with numpy's legacy generator; since the permutation follows from n alone,
    the logits need not be kept.
    """

    def __init__(self, n: int, *, splits: int = 10, shuffle_seed: int | None = 2020) -> None:
        if not 1 <= splits <= n:
            raise ValueError(f"{n} images cannot be split in {splits}")
        order = np.arange(n) if shuffle_seed is None else np.random.RandomState(shuffle_seed).permutation(n)
        self._split_of: npt.NDArray[np.intp] = np.empty(n, np.intp)
        for split in range(splits):
            self._split_of[order[split * n // splits : (split + 1) * n // splits]] = split
        self._count = np.bincount(self._split_of, minlength=splits)
        self._negentropy = np.zeros(n)
        self._marginal, self._squares = np.zeros((splits, 0)), np.zeros(0)
        self._seen = 0

    def update(self, logits: Rows) -> None:
        """Add the logits of the next images, [B, classes]; raises ValueError for more than announced."""
        seen = slice(self._seen, self._seen + len(logits))
        if seen.stop > len(self._split_of):
            raise ValueError(f"more than the announced {len(self._split_of)} images")
        if not self._seen:
            self._marginal = np.zeros((len(self._count), logits.shape[1]))
            self._squares = np.zeros(logits.shape[1])
        p, log_p = _probabilities(logits)
        self._negentropy[seen] = (p * log_p).sum(axis=1)
        np.add.at(self._marginal, self._split_of[seen], p)
        self._squares += np.square(p).sum(axis=0)
        self._seen = seen.stop

    def score(self) -> float:
        """Return the mean over the splits; their spread is no standard error and is not offered as one.

        Raises ValueError before all images were seen.
        """
        if self._seen != len(self._split_of):
            raise ValueError(f"{self._seen} of {len(self._split_of)} images seen")
        # The mean over x of p(y|x) log p(y) is p(y) log p(y).
        negentropy = np.bincount(self._split_of, weights=self._negentropy)
        entropy = _entropy(self._marginal / self._count[:, None])
        return float(np.exp(negentropy / self._count + entropy).mean())

    def influence(self, batches: Iterable[Rows], groups: Groups | None = None) -> Influence:
        """Return how each image moves the score, and what the score owes to the number of images.

        Takes the logits once more. `groups` tell which images share a prompt.

        An image moves exp(E KL) by IS (KL(p(y|x) || p(y)) - log IS) / n: the derivative with the weight of x,
        in which that of p(y) vanishes. The entropy of a marginal of m images is too small by
        sum_y n Var(p(y)) / p(y) / 2 m to first order (Miller 1955, for a class per image). Both are estimated
        from all images together: the marginals of splits are fitted to few images, and too well.
        """
        n = len(self._split_of)
        whole = self._marginal.sum(axis=0) / n
        log_whole, seen = _log(whole), whole > 0
        # Images of one prompt that fall into one split are seen as one.
        cells = None if groups is None else groups * len(self._count) + self._split_of
        sums = [] if groups is None or cells is None else [_Sums.of(groups, whole), _Sums.of(cells, whole)]
        cross, first = [], 0
        for logits in batches:
            p = _probabilities(logits)[0]
            cross.append(p @ log_whole)
            for each in sums:
                each.add(first, p)
            first += len(p)
        divergence = self._negentropy - np.concatenate(cross)
        alone = float((self._squares[seen] / n / whole[seen]).sum()) - 1
        freedom, split_freedom = [each.freedom(whole) for each in sums] or [alone, alone]
        return Influence(
            divergence,
            float(np.exp(self._negentropy.mean() + _entropy(whole))),
            freedom,
            split_freedom,
            cells if cells is None else np.unique(cells, return_inverse=True)[1],
        )


@dataclass(frozen=True)
class Influence:
    """What a score is made of, image by image."""

    divergence: Array
    """KL(p(y|x) || p(y)) of each image, [n]."""
    as_one_split: float
    """The score of all images as one split."""
    freedom: float
    """n times the sum of Var(p(y)) / p(y): the classes less one where each image has one class, and more
    where images share prompts."""
    split_freedom: float
    """The same of the images of a split."""
    cells: Groups | None
    """Which images share a prompt and a split, [n]; None where none does."""


@dataclass(frozen=True)
class _Sums:
    """Sums of p(y|x) over the images of each group."""

    group_of: Groups
    sums: Rows
    """float32, [groups, classes]"""

    @classmethod
    def of(cls, groups: Groups, whole: Array) -> _Sums:
        distinct, group_of = np.unique(groups, return_inverse=True)
        return cls(group_of, np.zeros((len(distinct), len(whole)), np.float32))

    def add(self, first: int, p: Array) -> None:
        np.add.at(self.sums, self.group_of[first : first + len(p)], p.astype(np.float32))

    def freedom(self, whole: Array) -> float:
        n, seen = len(self.group_of), whole > 0
        squares = np.einsum("gc,gc->c", self.sums, self.sums, dtype=np.float64)
        sizes = np.bincount(self.group_of).astype(np.float64)
        return float((squares[seen] / whole[seen]).sum() - np.square(sizes).sum()) / n


def _probabilities(logits: Rows) -> tuple[Array, Array]:
    log_p = np.asarray(logits, np.float64)
    log_p = log_p - log_p.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    return np.exp(log_p), log_p


def _log(q: Array) -> Array:
    """Return the logarithm, and 0 for 0: no image has that class, and 0 log 0 is 0."""
    return np.asarray(np.log(np.where(q > 0, q, 1.0)))


def _entropy(q: Array) -> Array:
    return np.asarray(-(q * _log(q)).sum(axis=-1))


def inception_score(logits: Rows, *, splits: int = 10, shuffle_seed: int | None = 2020) -> float:
    """Return the Inception score of logits, [n, classes] (see InceptionScore)."""
    whole = InceptionScore(len(logits), splits=splits, shuffle_seed=shuffle_seed)
    whole.update(logits)
    return whole.score()


def estimate(sample: Sample, _: FeatureStatistics | None, options: Splits) -> Estimate | Undefined:
    """Return the Inception score of logits, [n, classes], read twice.

    The bias is removed to first order where that is enough. Undefined with fewer images than splits.
    """
    n = sample.n
    if n < options.splits:
        return Undefined("inception_score", f"{n} images cannot be split in {options.splits}", n)
    score = InceptionScore(n, splits=options.splits, shuffle_seed=options.shuffle_seed)
    for logits in sample:
        score.update(logits)
    value = score.score()
    found = score.influence(sample, sample.groups)
    spread, split_spread = (standard_error(found.divergence, each) for each in (sample.groups, found.cells))
    if spread is None or split_spread is None:
        return Estimate("inception_score", value, None, n)
    # Bias of log IS in units of 1 / images; the exponential of a mean is too large by half its variance.
    bias = -found.freedom / 2 + n * spread**2 / 2
    scale, slope, corrected = value, 0.0, None
    if abs(bias) / n <= _LARGEST_BIAS:
        scale = corrected = found.as_one_split * math.exp(-bias / n)
        slope = corrected * (-found.split_freedom / 2 + n * split_spread**2 / 2) * options.splits
    influence = scale * (found.divergence - found.divergence.mean())
    return Estimate("inception_score", value, scale * spread, n, corrected, slope, influence)


INCEPTION_SCORE = Metric(
    name="inception_score",
    label="IS",
    decimals=2,
    recorded_decimals=4,
    higher_is_better=True,
    estimate=estimate,
    output="logits",
    options=Splits,
    aliases=("is", "isc"),
    minimum=1.0,
    maximum=1008.0,
    scale="the Inception score lies between 1 and the number of classes",
)
