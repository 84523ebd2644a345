"""The kernel distance of a set of images as DINOv2 sees them: KID with another network."""

from __future__ import annotations

from dataclasses import replace

from pytest_sdbench.metrics.definition import NoOptions, Sample
from pytest_sdbench.metrics.distances.kid import KID
from pytest_sdbench.metrics.distances.mmd import cubic, kernel_distance
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.moments import FeatureStatistics


def estimate(sample: Sample, reference: FeatureStatistics | None, _: NoOptions) -> Estimate | Undefined:
    """Return the squared MMD of features, [n, D], as KID is estimated (Stein et al. 2023)."""
    return kernel_distance("kd_dinov2", sample, reference, cubic)


KD_DINOV2 = replace(
    KID,
    name="kd_dinov2",
    label="KD-DINOv2",
    decimals=4,
    recorded_decimals=6,
    estimate=estimate,
    aliases=("kd_dino", "kdd", "dino_kd", "dinov2_kd", "kid_dinov2", "dinov2_kid", "kernel_dinov2_distance"),
    scale="KD-DINOv2 is a squared distance, not multiplied by 1000",
)
