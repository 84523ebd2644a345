"""Estimate the mean of what is measured of each pair of pictures."""

from __future__ import annotations

import numpy as np

from pytest_sdbench.metrics.definition import NoOptions, Sample
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.moments import FeatureStatistics
from pytest_sdbench.metrics.standard_error import standard_error


def estimate_mean(
    metric: str, sample: Sample, _: FeatureStatistics | None, __: NoOptions
) -> Estimate | Undefined:
    """Return the mean of a column, [n], with the standard error of the means of prompts.

    Undefined without images; its standard error is None where all images are of one prompt.
    """
    if not sample.n:
        return Undefined(metric, "no images", 0)
    values = sample.rows().astype(np.float64)
    value = float(values.mean())
    influence = values - value
    error = standard_error(influence, sample.groups)
    return Estimate(metric, value, error, sample.n, value, influence=influence)
