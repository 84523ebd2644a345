"""The Frechet inception distance of a set of images, with its standard error and without its bias."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from pytest_sdbench.metrics.definition import Metric, NoOptions, Sample
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.fid_bias import (
    BLOCKS,
    FEWEST,
    FEWEST_LEFT,
    degenerate_variance,
    elliptical_fid,
    joined,
    mean_without_each,
    part,
    squared_scales,
    together,
    without_each,
)
from pytest_sdbench.metrics.frechet import Influence, fid, fid_influence
from pytest_sdbench.metrics.moments import Array, FeatureStatistics, Moments, Rows
from pytest_sdbench.metrics.standard_error import Groups, standard_error


def fid_estimate(
    rows: Iterable[Rows], reference: FeatureStatistics, groups: Groups | None = None
) -> Estimate | Undefined:
    """Return FID, its standard error and its value without bias; `rows` are batches [B, D], read twice.

    Undefined with no more images than features: the covariance then has no full rank, and what FID prints is
    mostly the number of images. Up to twice as many, the value stands alone. Without blocks to compare, or
    where one image outweighs the rest, it has an error, and its bias is not known.
    """
    blocks, places = _blocks(rows, reference.width, groups)
    n = len(places)
    if n <= reference.width:
        instead = "a kernel distance (KID)" if reference.features is not None else "the CLIP score"
        return Undefined(
            "fid", f"it needs more images than its {reference.width} features; {instead} does not", n
        )
    sample = joined(blocks)
    if n < FEWEST * reference.width:
        return Estimate("fid", fid(sample, reference), None, n)
    # A few prompts with many images each make no blocks: the bias stays unknown.
    sizes = [block.n for block in blocks]
    even = min(sizes) * 2 * BLOCKS >= n and n - max(sizes) >= FEWEST_LEFT * reference.width
    # Covariances go as soon as they are used: with 2,048 features each takes 34 MB.
    parts = [part(blocks.pop(), reference) for _ in range(BLOCKS)]
    rests = without_each(parts, reference) if even else []
    whole = together(parts, reference)
    del parts
    influence = fid_influence(sample, reference, whole.product / (n - 1))
    distances, psi = _of_each(rows, n, influence)
    squares = squared_scales(distances, sample)
    value = influence.value
    psi -= psi.mean()
    degenerate = degenerate_variance(influence.eigenvalues, sample)
    error = standard_error(psi, groups, degenerate=degenerate, blocks=BLOCKS)
    if even:
        of_parts = [squares[places == k] for k in reversed(range(BLOCKS))]
        without = mean_without_each(rests, reference, of_parts)
        biased = elliptical_fid(whole, reference, squares, influence.eigenvalues)
        # The term in 1/n goes (Quenouille 1956). Below zero, as an unbiased estimate of zero must at times.
        corrected = biased - (BLOCKS - 1) * (without - biased)
        if math.isfinite(corrected):
            return Estimate("fid", value, error, n, corrected, (value - corrected) * n, psi, degenerate)
    return Estimate("fid", value, error, n, influence=psi, degenerate=degenerate)


def _of_each(rows: Iterable[Rows], n: int, influence: Influence) -> tuple[Array, Array]:
    """Return each image's squared distance from the mean and its influence, of batches [B, D]: both [n]."""
    distances, psi, seen = np.empty(n), np.empty(n), 0
    for batch in rows:
        part = slice(seen, seen + len(batch))
        centred = np.subtract(batch, influence.mu, dtype=np.float64)
        distances[part] = np.einsum("ij,ij->i", centred, centred)
        psi[part] = influence(batch)
        seen = part.stop
    return distances, psi


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
    for moments in blocks:
        moments.finish()
    return blocks, np.concatenate(places)


def estimate(sample: Sample, reference: FeatureStatistics | None, _: NoOptions) -> Estimate | Undefined:
    """Return the FID of features, [n, D]; undefined without a reference and as `fid_estimate`."""
    if reference is None:
        return Undefined("fid", "there are no reference statistics", sample.n)
    return fid_estimate(sample, reference, sample.groups)


FID = Metric(
    name="fid",
    label="FID",
    decimals=2,
    recorded_decimals=4,
    higher_is_better=False,
    estimate=estimate,
    output="features",
    reference="moments",
    aliases=("frechet_inception_distance",),
    scale="FID is a positive squared distance",
)
