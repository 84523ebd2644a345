"""Turn per-image rows into the estimates that a protocol asks for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from pytest_sdbench.base.errors import EvidenceError
from pytest_sdbench.features import CLIP_COLUMN, feature_column, logits_column
from pytest_sdbench.metrics.cosine import clip_score
from pytest_sdbench.metrics.frechet import fid, fid_influence
from pytest_sdbench.metrics.frechet_bias import (
    BLOCKS,
    FEWEST,
    FEWEST_LEFT,
    corrected_fid,
    degenerate_variance,
    elliptical_fid,
    joined,
    left_out,
    part,
    together,
)
from pytest_sdbench.metrics.inception import InceptionScore
from pytest_sdbench.metrics.kernel import kid_influence
from pytest_sdbench.metrics.moments import Array, FeatureStatistics, Moments, Rows
from pytest_sdbench.metrics.scales import squared_scales
from pytest_sdbench.metrics.spread import Groups, standard_error

if TYPE_CHECKING:
    from pytest_sdbench.protocol import InceptionScoreSpec, Protocol

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


def estimate(
    protocol: Protocol,
    rows: Iterable[Batch],
    references: Mapping[str, FeatureStatistics],
    groups: Groups | None = None,
) -> dict[str, Estimate | Undefined]:
    """Return the protocol's metrics of the images in `rows`, batches of columns in the order of the images.

    `references` are the reference statistics by metric (`statistics.load_references`); one that is missing
    leaves its metric undefined. `groups` tell which images share a prompt (`spread.groups_of`): they are
    not independent, and standard errors then count prompts.

    `rows` is read several times where it can be (a list, or an object whose `__iter__` starts anew): memory
    then grows with neither FID nor the Inception score. Of an iterator, which can be read only once, the
    needed columns are kept. Raises EvidenceError for a column that is missing, is not finite or has another
    width than the reference.
    """
    columns = {name: _column(name, protocol) for name in protocol.metrics}
    if isinstance(rows, Iterator):
        rows = [
            {column: batch[column] for column in set(columns.values()) if column in batch} for batch in rows
        ]
    n = _count(rows, columns)
    estimates: dict[str, Estimate | Undefined] = {}
    for metric, column in columns.items():
        try:
            estimates[metric] = _estimate(metric, protocol, rows, column, n, references.get(metric), groups)
        except ValueError as problem:
            raise EvidenceError(
                f"{metric} cannot be computed: {problem}",
                key=column,
                remedy="Delete this evidence from the store and run again",
            ) from problem
    return estimates


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


def _inception_estimate(
    rows: Iterable[Rows], n: int, spec: InceptionScoreSpec, groups: Groups | None
) -> Estimate:
    score = InceptionScore(n, splits=spec.splits, shuffle_seed=spec.shuffle_seed)
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
        0.0 if corrected is None else corrected * bias * spec.splits,
        scale * (divergence - divergence.mean()),
    )


_LARGEST_BIAS = 0.055
"""Bias of log IS that is still small enough to be known to first order."""


def _estimate(
    metric: str,
    protocol: Protocol,
    rows: Iterable[Batch],
    column: str,
    n: int,
    reference: FeatureStatistics | None,
    groups: Groups | None,
) -> Estimate | Undefined:
    if metric == "clip_score":
        if not n:
            return Undefined(metric, "no images", n)
        cosines = np.concatenate([batch[column] for batch in rows])
        value, error = clip_score(cosines, groups)
        return Estimate(metric, value, error, n, value, influence=cosines.astype(np.float64) - value)
    if metric == "inception_score":
        spec = cast("InceptionScoreSpec", protocol.metrics[metric])
        if n < spec.splits:
            return Undefined(metric, f"{n} images cannot be split in {spec.splits}", n)
        return _inception_estimate(_Column(rows, column), n, spec, groups)
    if reference is None:
        return Undefined(metric, "there are no reference statistics", n)
    if metric == "fid":
        return fid_estimate(_Column(rows, column), reference, groups)
    if reference.features is None:
        return Undefined(metric, "the reference statistics hold moments only; KID needs features", n)
    if n < 2:
        return Undefined(metric, "KID needs at least 2 images", n)
    found = kid_influence(np.concatenate([batch[column] for batch in rows]), reference.features, groups)
    if found.uncertain:
        return Estimate(metric, found.value, None, n, found.corrected)
    return Estimate(
        metric,
        found.value,
        standard_error(found.influence, groups, degenerate=found.degenerate, unbiased=found.unbiased),
        n,
        found.corrected,
        (found.value - found.corrected) * n,
        found.influence,
        found.degenerate,
    )


@dataclass(frozen=True)
class _Column:
    """One column of rows, as often as it is asked for."""

    rows: Iterable[Batch]
    name: str

    def __iter__(self) -> Iterator[Rows]:
        return (batch[self.name] for batch in self.rows)


def _column(metric: str, protocol: Protocol) -> str:
    spec = protocol.metrics[metric]
    if spec.metric == "clip_score":
        return CLIP_COLUMN
    return (
        logits_column(spec.extractor) if spec.metric == "inception_score" else feature_column(spec.extractor)
    )


def _count(rows: Iterable[Batch], columns: Mapping[str, str]) -> int:
    n = 0
    for batch in rows:
        for metric, column in columns.items():
            if column not in batch:
                raise EvidenceError(
                    f"{metric} needs the column {column!r}",
                    key=column,
                    found=sorted(batch),
                    remedy="The evidence was made under another protocol: delete it and run again",
                )
            if not np.isfinite(batch[column]).all():
                raise EvidenceError(
                    f"NaN or infinity among images {n} to {n + len(batch[column]) - 1}",
                    key=column,
                    remedy="The checkpoint or the extractor overflows: try --sdbench-dtype float32",
                )
        lengths = {len(batch[column]) for column in columns.values()}
        if len(lengths) > 1:
            raise EvidenceError("columns of different lengths in one batch", found=sorted(lengths))
        n += lengths.pop() if lengths else 0
    return n
