"""Estimate the squared maximum mean discrepancy of images and a reference, with its standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from pytest_sdbench.metrics.definition import Sample
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.moments import Array, FeatureStatistics, Rows
from pytest_sdbench.metrics.standard_error import Groups, standard_error

Kernel = Callable[[Array, Array], Array]
"""Turns float64 rows [n, D] and [m, D] into their kernel matrix, [n, m]."""

_BLOCK = 1024
"""Rows and columns of the kernel matrix that exist at one time."""

ALL_PAIRS = 1 << 16
"""Of so many images all pairs are visited: of more, those of parts of nearly so many."""

_EVEN, _ENOUGH = 6, 500
"""Images that may stand for one (see `_few_outweigh`), and images that are enough whatever they stand for."""


def mmd_estimate(
    metric: str,
    parts: Iterable[Rows],
    reference: Rows,
    kernel: Kernel,
    groups: Groups | None = None,
    *,
    biased: bool = False,
) -> Estimate:
    """Return the squared MMD of features, in parts [n, D], and reference features [m, D], in float64.

    The U-statistic over all pairs (Gretton et al. 2012, equation 3), which may be slightly negative; `biased`
    is the V-statistic (equation 5), in which rows count with themselves, and which is never negative. Its
    `corrected` value lacks that of the images; the reference is taken as given, and keeps it.
    By Hoeffding's decomposition (1948) an image moves the U-statistic by h(x) = 2 (E k(x, x') - E k(x, y)),
    centred, and the remainder has the variance 2 / P of the kernel centred on both sides, P the number of
    pairs in either order. `groups` tell which images share a prompt: images of one prompt are alike, and
    `corrected` is the value over pairs of different prompts alone. Where a few images outweigh the rest the
    standard error is not known.

    Pairs are those of each part (the block statistic of Zaremba et al. 2013): in one part all, in several so
    many that the remainder hardly counts. Parts are visited block by block: memory is that of one part.
    Raises ValueError for fewer than two rows in a part or in the reference, and for different widths.
    """
    found = _pairs(parts, reference, kernel, groups)
    n, m, mean = len(found.means), len(reference), float(found.means.mean())
    sums_of_reference, _, own_of_reference = _sums_of_pairs(reference, kernel)
    pairs_of_reference = float(sums_of_reference.sum()) / (m * (m - 1))
    # The mean over pairs of the reference where rows count with themselves.
    whole = pairs_of_reference + (float(own_of_reference.mean()) - pairs_of_reference) / m
    moved = 2 * (found.means - found.across)
    # E (k - a - b + mean)^2 with a and b the conditional means of the two sides.
    centred = found.squares / found.pairs - 2 * float(np.square(found.means).mean()) + mean**2
    among, all_pairs = found.among_prompts(groups)
    rest = (whole if biased else pairs_of_reference) - 2 * float(found.across.mean())
    corrected = among + rest
    # From the mean of the images to that of the reference.
    apart = max(among + whole - 2 * float(found.across.mean()), 0.0)
    with_themselves = all_pairs + (float(found.own.mean()) - all_pairs) / n
    value = (with_themselves if biased else all_pairs) + rest
    of_reference = _from_the_mean(sums_of_reference / (m - 1), own_of_reference)
    distances = _from_the_mean(found.means, found.own)
    slope = (value - corrected) * n
    if _few_outweigh(distances) or _few_outweigh(np.concatenate([distances, of_reference])):
        return Estimate(metric, value, None, n, corrected, slope)
    influence, degenerate = moved - moved.mean(), 2 * max(centred, 0.0) / found.pairs
    # Squared distance to the mean of the reference without its bias over the one with it, 0 to 1.
    unbiased = apart / (apart + with_themselves - among) if apart > 0 else 0.0
    error = standard_error(influence, groups, degenerate=degenerate, unbiased=unbiased)
    return Estimate(metric, value, error, n, corrected, slope, influence, degenerate)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """The kernel of pairs of images, of each part, and of images and references."""

    means: Array
    """Over the other images of its part, of each image, [n]."""
    own: Array
    """Of each image with itself, [n]."""
    across: Array
    """Mean over the references, of each image, [n]."""
    squares: float
    """Sum of squares over pairs."""
    pairs: int
    """In either order."""
    total: float
    """Sum over pairs."""
    alike: float
    """Sum over pairs of one prompt."""
    alike_pairs: int
    parts: int

    def among_prompts(self, groups: Groups | None) -> tuple[float, float]:
        """Return the mean over pairs of different prompts, and over all pairs of two images."""
        n, mean = len(self.means), float(self.means.mean())
        # With one prompt for all images there is no pair of two.
        if groups is None or self.alike_pairs == self.pairs:
            return mean, mean
        among = (self.total - self.alike) / (self.pairs - self.alike_pairs)
        if self.parts == 1:
            return among, mean
        # Parts hold another share of pairs of one prompt than all images do.
        sizes = np.bincount(groups)
        share = float((sizes * (sizes - 1.0)).sum()) / (n * (n - 1))
        alike = self.alike / self.alike_pairs if self.alike_pairs else among
        return among, among + share * (alike - among)


def _pairs(parts: Iterable[Rows], reference: Rows, kernel: Kernel, groups: Groups | None) -> _Pairs:
    """Visit the pairs of each part, and those of images and references; raises as `mmd_estimate`."""
    each: list[tuple[Array, Array, Array]] = []
    squares, total, alike, counts, seen = 0.0, 0.0, 0.0, [0, 0], 0
    for part in parts:
        if part.ndim != 2 or reference.ndim != 2 or part.shape[1] != reference.shape[1]:
            shapes = f"features {list(part.shape)} and reference features {list(reference.shape)}"
            raise ValueError(f"{shapes} do not match")
        if min(len(part), len(reference)) < 2:
            break
        sums, squared, own = _sums_of_pairs(part, kernel)
        squares, total = squares + squared, total + float(sums.sum())
        if groups is not None:
            of_prompts, count = _among_groups(part, groups[seen : seen + len(part)], kernel)
            alike, counts[1] = alike + of_prompts, counts[1] + count
        seen, counts[0] = seen + len(part), counts[0] + len(part) * (len(part) - 1)
        each.append((sums / (len(part) - 1), own, _sums_across(part, reference, kernel) / len(reference)))
        del part  # the next one is read before the loop would let this one go
    if not each:
        raise ValueError("there must be at least 2 images and 2 references")
    means, owns, across = map(np.concatenate, zip(*each, strict=True))
    return _Pairs(means, owns, across, squares, counts[0], total, alike, counts[1], len(each))


def kernel_distance(
    metric: str, sample: Sample, reference: FeatureStatistics | None, kernel: Kernel
) -> Estimate | Undefined:
    """Return the unbiased squared MMD; undefined without reference features and for a single image."""
    real = real_features(metric, sample, reference, fewest=2)
    if isinstance(real, Undefined):
        return real
    return mmd_estimate(metric, sample.parts(ALL_PAIRS), real, kernel, sample.groups)


def real_features(
    metric: str, sample: Sample, reference: FeatureStatistics | None, *, fewest: int
) -> Rows | Undefined:
    """Return the features of the reference, [m, D].

    Undefined without a reference that holds `fewest` features, and for fewer than so many images.
    """
    if reference is None:
        return Undefined(metric, "there are no reference statistics", sample.n)
    if reference.features is None:
        return Undefined(metric, "the reference statistics hold moments only, and no features", sample.n)
    if sample.n < fewest:
        return Undefined(metric, f"it needs at least {fewest} images", sample.n)
    if len(reference.features) < fewest:
        reason = f"it needs the features of at least {fewest} references, not {len(reference.features)}"
        return Undefined(metric, reason, sample.n)
    return reference.features


def cubic(x: Array, y: Array) -> Array:
    """Return (x.y / D + 1)^3 of rows [n, D] and [m, D] (Binkowski et al. 2018), [n, m]."""
    k = x @ y.T
    k /= x.shape[1]
    k += 1.0
    return np.asarray(k * k * k)


def _blocks(rows: Rows) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, len(rows), _BLOCK)]


def _from_the_mean(means: Array, own: Array) -> Array:
    """Return the squared distance of each row from the mean of all, in the space of the kernel, [n].

    `means` are those over the other rows.
    """
    means = means + (own - means) / len(means)
    return np.asarray(np.maximum(own - 2 * means + means.mean(), 0.0))


def _few_outweigh(weights: Array) -> bool:
    """Return whether the influence does not tell the standard error, since a few images outweigh the rest.

    A cubic kernel of heavy-tailed features has the tails of their sixth power, and a sample that lacks the
    largest ones has far too small a variance. The influence itself shows that badly: what a large image does
    to it depends on its direction, and next to the reference it is all but zero. But no image moves the MMD
    by more than its distance from the mean, in the space of the kernel, times twice the distance to the
    reference, and no pair of images by more than the product of theirs (Cauchy and Schwarz): the mean of
    the squared distances bounds both parts of the variance, and must itself be known. It is known where
    (sum c)^2 / sum c^2, the number of images that make up the sum of the squared distances c, is a sixth of
    all images, or 500. (Of Gaussian features in 16 dimensions it is a third to a half of all, of pooled
    features of images two thirds. Where c has no variance it stays small, however large the sample.) That
    must hold for the images, and for images and reference together: a few hundred images often lack the
    large ones, and a reference of the same kind shows them.
    """
    squares = float(np.vdot(weights, weights))
    if squares == 0:
        return False
    behind = float(weights.sum()) ** 2 / squares
    return behind < _ENOUGH and len(weights) > _EVEN * behind


def _sums_of_pairs(rows: Rows, kernel: Kernel) -> tuple[Array, float, Array]:
    """Sum the kernel over the other rows for each row, [n], and its square over all pairs of two rows.

    The third is the kernel of each row with itself, [n].
    """
    sums, squares, itself = np.zeros(len(rows)), 0.0, np.zeros(len(rows))
    blocks = _blocks(rows)
    for i, first in enumerate(blocks):
        x = np.asarray(rows[first], np.float64)
        own = kernel(x, x)
        itself[first] = np.diagonal(own)
        np.fill_diagonal(own, 0.0)
        sums[first] += own.sum(axis=1)
        squares += float(np.vdot(own, own))
        for second in blocks[i + 1 :]:
            k = kernel(x, np.asarray(rows[second], np.float64))
            sums[first] += k.sum(axis=1)
            sums[second] += k.sum(axis=0)
            squares += 2 * float(np.vdot(k, k))
    return sums, squares, itself


def _among_groups(rows: Rows, groups: Groups, kernel: Kernel) -> tuple[float, int]:
    """Sum the kernel over pairs of two rows of one group, and count these pairs."""
    order = np.argsort(groups, kind="stable")
    borders = np.flatnonzero(np.diff(groups[order])) + 1
    total, pairs = 0.0, 0
    for members in np.split(order, borders):
        if len(members) > 1:
            x = np.asarray(rows[members], np.float64)
            own = kernel(x, x)
            total += float(own.sum() - np.trace(own))
            pairs += len(members) * (len(members) - 1)
    return total, pairs


def _sums_across(rows: Rows, others: Rows, kernel: Kernel) -> Array:
    """Sum the kernel over all other rows for each row, [n]."""
    sums = np.zeros(len(rows))
    for first in _blocks(rows):
        x = np.asarray(rows[first], np.float64)
        for second in _blocks(others):
            sums[first] += kernel(x, np.asarray(others[second], np.float64)).sum(axis=1)
    return sums
