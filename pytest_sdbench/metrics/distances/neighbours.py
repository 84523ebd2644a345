"""Measure precision, recall, density and coverage: whether images and real ones lie among each other.

Real images are reference features, [m, D]. A ball around each reaches to its k-th nearest real image, and one
around each image of the checkpoint to its k-th nearest such image.

* precision: share of images that lie in some ball of a real one (Kynkaanniemi et al. 2019)
* recall: share of real images that lie in some ball of an image of the checkpoint (the same)
* density: balls of real images around an image, over k, on average (Naeem et al. 2020)
* coverage: share of the balls of real images that hold an image (the same)

Distances are Euclidean and balls are closed. The reference is taken as given. Precision and density are means
over images. Recall and coverage depend on the number of images: they stand for this very number alone. Images
come block by block and are not kept, but for recall.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
from pydantic import PositiveInt

from pytest_sdbench.metrics.definition import Metric, Sample
from pytest_sdbench.metrics.distances.balls import Coverage, Recall, units_of
from pytest_sdbench.metrics.distances.mmd import real_features
from pytest_sdbench.metrics.distances.rows import BLOCK, distance_blocks, nearest
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.moments import Array, FeatureStatistics
from pytest_sdbench.metrics.standard_error import doubt, standard_error


@dataclass(frozen=True)
class Three:
    """What a protocol may set of precision and recall."""

    neighbours: PositiveInt = 3
    """The neighbour that a ball reaches to."""


@dataclass(frozen=True)
class Five:
    """What a protocol may set of density and coverage."""

    neighbours: PositiveInt = 5
    """The neighbour that a ball reaches to."""


MOST = 100_000
"""Images that recall compares with each other, which takes the square of their number in time."""

_KNOWN: WeakKeyDictionary[FeatureStatistics, Array] = WeakKeyDictionary()
"""Squared distances of references from their neighbours: the same for all four, and for all checkpoints."""


def precision(sample: Sample, reference: FeatureStatistics | None, options: Three) -> Estimate | Undefined:
    """Return the share of images among real ones, of features [n, D]."""
    found = _balls_around("precision", sample, reference, options.neighbours)
    if isinstance(found, Undefined):
        return found
    return _mean("precision", (found > 0).astype(np.float64), sample, share=True)


def density(sample: Sample, reference: FeatureStatistics | None, options: Five) -> Estimate | Undefined:
    """Return how dense real images are around the images, of features [n, D]; about 1 where both agree."""
    found = _balls_around("density", sample, reference, options.neighbours)
    if isinstance(found, Undefined):
        return found
    return _mean("density", found / options.neighbours, sample, share=False)


def recall(sample: Sample, reference: FeatureStatistics | None, options: Three) -> Estimate | Undefined:
    """Return the share of real images among the images, of features [n, D]; undefined for too many."""
    k = options.neighbours
    real = real_features("recall", sample, reference, fewest=k + 1)
    if isinstance(real, Undefined):
        return real
    if sample.n > MOST:
        why = f"it compares every image with every other one, and does so for at most {MOST:,}"
        return Undefined("recall", f"{why}; coverage takes any number", sample.n)
    features = sample.rows()
    balls = Recall.around(features, k, units_of(sample.groups, len(features)))
    for _, squares in distance_blocks(real, features):
        balls.update(squares)
    return _estimate("recall", balls, sample)


def coverage(sample: Sample, reference: FeatureStatistics | None, options: Five) -> Estimate | Undefined:
    """Return the share of real images that have an image near, of features [n, D]."""
    real = real_features("coverage", sample, reference, fewest=options.neighbours + 1)
    if isinstance(real, Undefined):
        return real
    assert reference is not None
    radii, seen = _radii(reference, options.neighbours), 0
    balls = Coverage(units_of(sample.groups, sample.n), len(real))
    for block in sample.blocks(BLOCK):
        for part, squares in distance_blocks(real, block):
            balls.update(part.start, seen, squares <= radii[part, None])
        seen += len(block)
    return _estimate("coverage", balls, sample)


def _radii(reference: FeatureStatistics, k: int) -> Array:
    """Return the squared radius of the ball around each real image, [m]."""
    assert reference.features is not None
    known = _KNOWN.get(reference)
    if known is None or known.shape[1] < k:
        count = min(max(k, Five.neighbours), len(reference.features) - 1)
        _KNOWN[reference] = known = nearest(reference.features, count)[0]
    return np.asarray(known[:, k - 1])


def _balls_around(
    metric: str, sample: Sample, reference: FeatureStatistics | None, k: int
) -> Array | Undefined:
    """Return how many balls of real images hold each image, [n]."""
    real = real_features(metric, sample, reference, fewest=k + 1)
    if isinstance(real, Undefined):
        return real
    assert reference is not None
    radii, counts = _radii(reference, k), []
    for block in sample.blocks(BLOCK):
        counts += [np.count_nonzero(squares <= radii, axis=1) for _, squares in distance_blocks(block, real)]
    return np.concatenate(counts).astype(np.float64)


def _mean(metric: str, values: Array, sample: Sample, *, share: bool) -> Estimate:
    """Return a mean over images; it has no bias, whatever their number is."""
    value = float(values.mean())
    influence = values - value
    error = standard_error(influence, sample.groups)
    if share and error is not None:
        error = math.hypot(error, doubt(sample.n, sample.groups))
    return Estimate(metric, value, error, sample.n, value, influence=influence)


def _estimate(metric: str, balls: Recall | Coverage, sample: Sample) -> Estimate:
    """Return a share of real images, with the influence of each image, scaled to its standard error."""
    variance = balls.variance()
    if variance is None:
        return Estimate(metric, balls.share, None, sample.n)
    sizes = np.bincount(balls.units)
    moved = sample.n * balls.changes / balls.real / sizes
    influence = moved[balls.units]
    influence -= influence.mean()
    counted = standard_error(influence, sample.groups)
    if counted:
        influence *= math.sqrt(variance) / counted
    # As if two real images were otherwise: where all of them agree, nothing varies.
    error = max(math.sqrt(variance), 2 / balls.real)
    return Estimate(metric, balls.share, error, sample.n, influence=influence)


PRECISION = Metric(
    name="precision",
    label="Precision",
    decimals=3,
    recorded_decimals=5,
    higher_is_better=True,
    estimate=precision,
    output="features",
    reference="features",
    options=Three,
    aliases=("improved_precision", "prdc_precision", "kynkaanniemi_precision"),
    minimum=0.0,
    maximum=1.0,
    scale="the precision is a share between 0 and 1, not a percentage",
    often_multiplied_by=100,
)

RECALL = replace(
    PRECISION,
    name="recall",
    label="Recall",
    estimate=recall,
    aliases=("improved_recall", "prdc_recall", "kynkaanniemi_recall"),
    foretells=False,  # more images fill more of the balls
    scale="the recall is a share between 0 and 1, not a percentage",
)

COVERAGE = replace(
    PRECISION,
    name="coverage",
    label="Coverage",
    estimate=coverage,
    options=Five,
    aliases=("prdc_coverage",),
    foretells=False,
    scale="the coverage is a share between 0 and 1, not a percentage",
)

DENSITY = replace(
    PRECISION,
    name="density",
    label="Density",
    estimate=density,
    options=Five,
    aliases=("prdc_density",),
    maximum=None,
    largest_published=10.0,
    scale="the density is about 1 where images and real ones agree, not a percentage, and may be above 1",
)
