"""The Frechet distance of a set of images as DINOv2 sees them: FID with another network."""

from __future__ import annotations

from dataclasses import replace

from pytest_sdbench.metrics.definition import NoOptions, Sample
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.fid import FID, fid_estimate
from pytest_sdbench.metrics.moments import FeatureStatistics


def estimate(sample: Sample, reference: FeatureStatistics | None, _: NoOptions) -> Estimate | Undefined:
    """Return the Frechet distance of features, [n, D], as FID is estimated (Stein et al. 2023)."""
    if reference is None:
        return Undefined("fd_dinov2", "there are no reference statistics", sample.n)
    return replace(fid_estimate(sample, reference, sample.groups), metric="fd_dinov2")


FD_DINOV2 = replace(
    FID,
    name="fd_dinov2",
    label="FD-DINOv2",
    decimals=2,
    recorded_decimals=4,
    estimate=estimate,
    aliases=("fd_dino", "fdd", "dino_fd", "dinov2_fd", "fid_dinov2", "dinov2_fid", "frechet_dinov2_distance"),
    scale="FD-DINOv2 is a positive squared distance: tens to hundreds, where FID has a few",
)
