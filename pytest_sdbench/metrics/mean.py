"""Average a score that every image has of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pytest_sdbench.metrics.definition import NoOptions, Sample
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.moments import FeatureStatistics, Rows
from pytest_sdbench.metrics.standard_error import Groups, standard_error


def mean(scores: Rows, groups: Groups | None = None) -> tuple[float, float | None]:
    """Return the mean of scores and its standard error, None for one image; [n] -> floats.

    `groups` tell which images share a prompt: the error then is that of the means of prompts. Raises
    ValueError for no image and for scores that are NaN or infinite.
    """
    values = np.asarray(scores, np.float64)
    if not len(values):
        raise ValueError("no images")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite")
    middle = float(values.mean())
    return middle, standard_error(values - middle, groups)


Average = Callable[[Rows, Groups | None], tuple[float, float | None]]


def estimate_mean(metric: str, sample: Sample, average: Average = mean) -> Estimate | Undefined:
    """Return the mean of a column of scores, [n]; undefined without images. Raises as `average` does."""
    if not sample.n:
        return Undefined(metric, "no images", 0)
    scores = sample.rows()
    value, error = average(scores, sample.groups)
    influence = scores.astype(np.float64) - value
    return Estimate(metric, value, error, sample.n, value, influence=influence)


def plain_mean(
    metric: str, sample: Sample, _: FeatureStatistics | None, __: NoOptions
) -> Estimate | Undefined:
    """Return the mean of a column, [n], as the `estimate` of a metric that has nothing to set.

    Undefined without images; its standard error is None where all images are of one prompt.
    """
    return estimate_mean(metric, sample)
