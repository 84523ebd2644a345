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
    return Estimate("lost", share, error, sample.n, share, influence=influence)


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
    per_image=True,
    perfect=0.0,
    share=True,
    minimum=0.0,
    maximum=1.0,
    scale="a share lies between 0 and 1: 0.01 is one picture in a hundred",
    often_multiplied_by=100,
)
