"""Metrics whose values another tool gives, one for each image: GenEval, VQAScore, ImageReward, people.

A protocol declares one, with everything that a verdict asks of a metric; its score is the mean of the values.
"""

from __future__ import annotations

from functools import cache, partial

from pytest_sdbench.metrics.definition import Metric
from pytest_sdbench.metrics.mean import plain_mean

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
        estimate=partial(plain_mean, name),
        output=OUTPUT,
        reads="imported",
        minimum=minimum,
        maximum=maximum,
        signed=minimum is None or minimum <= 0,
        scale=f"the protocol declares {label} as {said or 'without bounds'}",
    )
