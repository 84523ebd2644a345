"""Metrics whose values another tool gives, one for each image: GenEval, VQAScore, ImageReward, people.

A protocol declares one, with everything that a verdict asks of a metric; its score is the mean of the values.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache, partial

import numpy as np

from pytest_sdbench.metrics.definition import Metric, NoOptions, Sample
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.mean import plain_mean
from pytest_sdbench.metrics.moments import FeatureStatistics
from pytest_sdbench.metrics.standard_error import doubt

OUTPUT = "value"
"""The column that the values become."""


@cache
def imported_metric(
    name: str,
    label: str,
    *,
    higher_is_better: bool,
    minimum: float | None = None,
    maximum: float | None = None,
    decimals: int = 4,
) -> Metric:
    """Return the metric of values that another tool gives; the same for the same arguments."""
    bounds = (("at least", minimum), ("at most", maximum))
    said = " and ".join(f"{words} {bound:g}" for words, bound in bounds if bound is not None)
    return Metric(
        name=name,
        label=label,
        decimals=decimals,
        recorded_decimals=decimals + 2,
        higher_is_better=higher_is_better,
        estimate=partial(_mean, name, minimum, maximum),
        output=OUTPUT,
        reads="imported",
        minimum=minimum,
        maximum=maximum,
        signed=minimum is None or minimum <= 0,
        scale=f"the protocol declares {label} as {said or 'without bounds'}",
    )


def _mean(
    metric: str,
    minimum: float | None,
    maximum: float | None,
    sample: Sample,
    reference: FeatureStatistics | None,
    options: NoOptions,
) -> Estimate | Undefined:
    """Return the mean; of values that are all the least or the greatest there is, it is a share.

    Without bounds 0 and 1 are taken for no and yes. Other values that are all the same say nothing of what
    they scatter by: the standard error is not known.
    """
    found = plain_mean(metric, sample, reference, options)
    if isinstance(found, Undefined) or found.standard_error is None:
        return found
    values, least, most = (
        sample.rows(),
        0.0 if minimum is None else minimum,
        1.0 if maximum is None else maximum,
    )
    if not np.isin(values, (least, most)).all():
        return found if values.min() < values.max() else replace(found, standard_error=None, influence=None)
    besides = (most - least) * doubt(sample.n, sample.groups)
    return replace(found, standard_error=math.hypot(found.standard_error, besides))
