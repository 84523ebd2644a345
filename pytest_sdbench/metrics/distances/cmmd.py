"""The distance of a set of images from real ones as CLIP sees them, with a Gaussian kernel: CMMD."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from pytest_sdbench.metrics.definition import Metric, NoOptions, Sample
from pytest_sdbench.metrics.distances.mmd import ALL_PAIRS, mmd_estimate, real_features
from pytest_sdbench.metrics.distances.rows import unit
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.moments import Array, FeatureStatistics, Rows
from pytest_sdbench.metrics.standard_error import Groups

SIGMA, SCALE = 10.0, 1000.0
"""Width of the kernel, and what its source multiplies the distance with (Jayasumana et al. 2024)."""


def kernel(x: Array, y: Array) -> Array:
    """Return 1000 (exp(-|x - y|^2 / 2 sigma^2) - 1) of rows of length 1, [n, D] and [m, D] -> [n, m].

    The one taken off cancels in the distance; the differences of this wide kernel keep their digits so.
    """
    k = x @ y.T
    k -= 1.0  # -|x - y|^2 / 2
    k /= SIGMA**2
    return np.asarray(SCALE * np.expm1(k, out=k))


def cmmd_estimate(parts: Iterable[Rows], reference: Rows, groups: Groups | None = None) -> Estimate:
    """Return CMMD of features, in parts [n, D], and reference features [m, D], as its source prints it.

    That is biased and times 1000; `corrected` is not biased. Rows are divided by their lengths first. Raises
    ValueError as `mmd_estimate`, and for a row of length 0.
    """
    return mmd_estimate("cmmd", map(unit, parts), unit(reference), kernel, groups, biased=True)


def estimate(sample: Sample, reference: FeatureStatistics | None, _: NoOptions) -> Estimate | Undefined:
    """Return the CMMD of features, [n, D]; undefined without reference features and for a single image."""
    real = real_features("cmmd", sample, reference, fewest=2)
    if isinstance(real, Undefined):
        return real
    try:
        return cmmd_estimate(sample.parts(ALL_PAIRS), real, sample.groups)
    except ValueError as reason:
        return Undefined("cmmd", str(reason), sample.n)


CMMD = Metric(
    name="cmmd",
    label="CMMD",
    decimals=3,
    recorded_decimals=6,
    higher_is_better=False,
    estimate=estimate,
    output="features",
    reference="features",
    aliases=("clip_mmd", "clip_maximum_mean_discrepancy"),
    minimum=0.0,
    # Rows of length 1 are at most 2 apart.
    maximum=-2 * SCALE * math.expm1(-2 / SIGMA**2),
    scale="CMMD is a squared distance times 1000, as its source prints it, and below 40",
    often_multiplied_by=1000,
)
