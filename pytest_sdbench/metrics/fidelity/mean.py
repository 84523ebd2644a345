"""Estimate the mean of what is measured of each pair of pictures."""

from __future__ import annotations

from pytest_sdbench.metrics.definition import NoOptions, Sample
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.mean import estimate_mean
from pytest_sdbench.metrics.moments import FeatureStatistics


def estimate_pairs(
    metric: str, sample: Sample, _: FeatureStatistics | None, __: NoOptions
) -> Estimate | Undefined:
    """Return the mean of a column, [n], with the standard error of the means of prompts.

    Undefined without images; its standard error is None where all images are of one prompt.
    """
    return estimate_mean(metric, sample)
