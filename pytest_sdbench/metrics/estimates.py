"""Turn per-image rows into the estimates that a protocol asks for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pytest_sdbench.metrics.fid import fid, fid_influence
from pytest_sdbench.metrics.fid_bias import (
    BLOCKS,
    FEWEST,
    FEWEST_LEFT,
    corrected_fid,
    degenerate_variance,
    elliptical_fid,
    joined,
    left_out,
    part,
    squared_scales,
    together,
)
from pytest_sdbench.metrics.inception_score import InceptionScore
from pytest_sdbench.metrics.moments import Array, FeatureStatistics, Moments, Rows
from pytest_sdbench.metrics.standard_error import Groups, standard_error

Batch = Mapping[str, Rows]


@dataclass(frozen=True)
class Estimate:
    """A measured figure."""

    metric: str
    value: float
    standard_error: float | None
    """Standard error of the value; None where it is not known, which is not zero."""
    n: int
    """Images behind the value."""
    corrected: float | None = None
    """The value without its bias, as of infinitely many images; None where it cannot be told: of too few
    images, or where a few outweigh the rest."""
    slope: float = 0.0
    """The bias times the number of images: n images are expected to come to corrected + slope / n."""
    influence: Array | None = field(default=None, compare=False, repr=False)
    """How much each image moves the value, [n], centred; None where the standard error is not known."""
    degenerate: float = field(default=0.0, compare=False, repr=False)
    """Variance of the second-order part of the value (see `spread.standard_error`)."""

    def at(self, n: int) -> float | None:
        """Predict the value of another number of images of the same checkpoint; None where that is open."""
        if n == self.n:
            return self.value
        return None if self.corrected is None else self.corrected + self.slope / n


@dataclass(frozen=True)
class Undefined:
    """A figure that these images do not define, and why."""

    metric: str
    reason: str
    n: int


def fid_estimate(
    rows: Iterable[Rows], reference: FeatureStatistics, groups: Groups | None = None
) -> Estimate | Undefined:
    """Return FID, its standard error and its value without bias; `rows` are batches [B, D], read three times.

    Undefined with no more images than features: the covariance then has no full rank, and what FID prints is
    mostly the number of images. Up to twice as many, the value stands alone. Without blocks to compare, or
    where one image outweighs the rest, it has an error, and its bias is not known.
    """
    blocks, places = _blocks(rows, reference.width, groups)
    n = len(places)
    if n <= reference.width:
        instead = "KID" if reference.features is not None else "the CLIP score"
        return Undefined(
            "fid", f"FID needs more images than its {reference.width} features; {instead} does not", n
        )
    for moments in blocks:
        moments.finish()
    sample = joined(blocks)
    if n < FEWEST * reference.width:
        return Estimate("fid", fid(sample, reference), None, n)
    # A few prompts with many images each make no blocks: the bias stays unknown.
    sizes = [block.n for block in blocks]
    even = min(sizes) * 2 * BLOCKS >= n and n - max(sizes) >= FEWEST_LEFT * reference.width
    # Covariances go as soon as they are used: with 2,048 features each takes 34 MB.
    parts = [part(blocks.pop(), reference) for _ in range(BLOCKS)]
    squares = squared_scales(np.concatenate([_distances(batch, sample.mu) for batch in rows]), sample)
    of_parts = [squares[places == k] for k in reversed(range(BLOCKS))]
    without = left_out(parts, reference, of_parts) if even else []
    whole = together(parts, reference)
    del parts
    influence = fid_influence(sample, reference, whole.product / (n - 1))
    value = influence.value
    psi = np.concatenate([influence(batch) for batch in rows])
    psi -= psi.mean()
    degenerate = degenerate_variance(influence.eigenvalues, sample)
    error = standard_error(psi, groups, degenerate=degenerate, blocks=BLOCKS)
    if even:
        biased = elliptical_fid(whole, reference, squares, influence.eigenvalues)
        corrected = corrected_fid(biased, without)
        if math.isfinite(corrected):
            return Estimate("fid", value, error, n, corrected, (value - corrected) * n, psi, degenerate)
    return Estimate("fid", value, error, n, influence=psi, degenerate=degenerate)


def _distances(rows: Rows, mean: Array) -> Array:
    """Return the squared distance of each row from the mean, [n, D] -> [n]."""
    centred = np.subtract(rows, mean, dtype=np.float64)
    return np.asarray(np.einsum("ij,ij->i", centred, centred))


def _blocks(
    rows: Iterable[Rows], width: int, groups: Groups | None
) -> tuple[list[Moments], npt.NDArray[np.intp]]:
    """Return the moments of each block of the jackknife, and the block of each image, [n]."""
    blocks = [Moments(width) for _ in range(BLOCKS)]
    places, n = [np.empty(0, np.intp)], 0
    for batch in rows:
        blocks[0].check(batch)
        # Images of one prompt stay in one block: the jackknife takes blocks for independent.
        place = (np.arange(n, n + len(batch)) if groups is None else groups[n : n + len(batch)]) % BLOCKS
        for k, moments in enumerate(blocks):
            moments.update(batch[place == k])
        places.append(place)
        n += len(batch)
    return blocks, np.concatenate(places)


def _inception_estimate(rows: Iterable[Rows], score: InceptionScore, groups: Groups | None) -> Estimate:
    n = score.n
    for logits in rows:
        score.update(logits)
    influence = score.influence()
    parts, start = [], 0
    for logits in rows:
        parts.append(influence(start, logits))
        start += len(logits)
    divergence = np.concatenate(parts)
    spread = standard_error(divergence, groups)
    if spread is None:
        return Estimate("inception_score", score.score(), None, n)
    # Bias of log IS in units of 1 / images; the exponential of a mean is too large by half its variance.
    bias = -influence.freedom / 2 + n * spread**2 / 2
    corrected = influence.score * math.exp(-bias / n) if abs(bias) / n <= _LARGEST_BIAS else None
    scale = score.score() if corrected is None else corrected
    return Estimate(
        "inception_score",
        score.score(),
        scale * spread,
        n,
        corrected,
        0.0 if corrected is None else corrected * bias * score.splits,
        scale * (divergence - divergence.mean()),
    )


_LARGEST_BIAS = 0.055
"""Bias of log IS that is still small enough to be known to first order."""


def clip_score(cosines: Rows, groups: Groups | None = None) -> tuple[float, float | None]:
    """Return the mean cosine of image and caption and its standard error, None for one image; [n] -> floats.

    `groups` tell which images share a prompt: the error then is that of the means of prompts. Not multiplied
    by 100 and not clipped at zero (unlike CLIPScore of Hessel et al. 2021): as the published figures.
    Raises ValueError for no image and for a cosine outside [-1, 1].
    """
    values = np.asarray(cosines, np.float64)
    if not len(values):
        raise ValueError("no images")
    if not (np.abs(values) <= 1 + 1e-3).all():
        raise ValueError("cosines must lie in [-1, 1]")
    mean = float(values.mean())
    return mean, standard_error(values - mean, groups)
