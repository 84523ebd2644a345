"""Count the pictures that are lost: the share of pairs that lie beyond a threshold.

A mean hides one black picture in a hundred; a share does not. The protocol names what is looked at, and where
a picture counts as lost: ``lost: {extractor: ssim, below: 0.75}``, ``{extractor: lpips:alex, above: 0.3}``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from pytest_sdbench.metrics.definition import Metric, Sample
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.moments import FeatureStatistics
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.metrics.standard_error import standard_error

Threshold = Annotated[float, Field(allow_inf_nan=False)] | None


@dataclass(frozen=True)
class LostOptions:
    """Where a pair counts as lost: on one side of a threshold, which itself is not beyond."""

    below: Threshold = None
    """For what is better the higher it is: PSNR, SSIM, cosines."""
    above: Threshold = None
    """For distances: LPIPS."""

    def __post_init__(self) -> None:
        if (self.below is None) == (self.above is None):
            raise ValueError("lost needs one threshold: `below` (PSNR, SSIM, cosines) or `above` (LPIPS)")


def read_by(extractor: str) -> Metric:
    """Return the metric of what `lost` looks at: it says which side is better, and what equal pictures have.

    Raises ValueError for an extractor that no metric of pairs reads.
    """
    known = [
        (len(start), each)
        for each in METRICS.values()
        for start in each.extractors or ("",)
        if each.reads == "pair" and not each.share and extractor.startswith(start)
    ]
    if not known:
        raise ValueError(f"no metric of pairs reads {extractor!r}, so which of its values are bad is unknown")
    return max(known, key=lambda each: each[0])[1]


def check(options: LostOptions, extractor: str) -> None:
    """Raise ValueError for a threshold on the side of good pictures, or one that loses all or none."""
    metric = read_by(extractor)
    side = "below" if metric.higher_is_better else "above"
    threshold, perfect = getattr(options, side), metric.perfect or 0.0
    if threshold is None:
        better = "higher" if metric.higher_is_better else "lower"
        raise ValueError(
            f"lost needs `{side}` for {extractor}: {metric.label} is the better the {better} it is"
        )
    low, high = sorted((metric.unlike, perfect))
    if not low < threshold < high:
        raise ValueError(
            f"lost: {side} {threshold:g} of {extractor} does not tell pictures apart: unlike ones have about "
            f"{metric.unlike:g} {metric.label}, equal ones {perfect:g}. Give a threshold between the two"
        )


def estimate(sample: Sample, _: FeatureStatistics | None, options: LostOptions) -> Estimate | Undefined:
    """Return the share of a column's rows, [n], beyond the threshold; undefined without images.

    Its standard error is that of the means of prompts; the gate judges it by `binomial` instead.
    """
    if not sample.n:
        return Undefined("lost", "no images", 0)
    values = sample.rows().astype(np.float64)
    is_low = options.below is not None and values < options.below
    is_high = options.above is not None and values > options.above
    beyond = np.asarray(is_low | is_high, np.float64)
    share = float(beyond.mean())
    influence = beyond - share
    error = standard_error(influence, sample.groups)
    return Estimate("lost", share, error, sample.n, share, influence=influence, looked_at=values)


LOST = Metric(
    name="lost",
    label="Lost",
    decimals=4,
    recorded_decimals=6,
    higher_is_better=False,
    estimate=estimate,
    output="pair",
    reads="pair",
    options=LostOptions,
    check=check,
    per_image=True,
    perfect=0.0,
    share=True,
    minimum=0.0,
    maximum=1.0,
    scale="a share lies between 0 and 1: 0.01 is one picture in a hundred",
    often_multiplied_by=100,
)
