"""Score how well pictures fit their captions: the mean cosine of both, as a CLIP model sees them."""

from __future__ import annotations

import numpy as np

from pytest_sdbench.metrics.definition import Metric, NoOptions, Sample
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.mean import estimate_mean, mean
from pytest_sdbench.metrics.moments import FeatureStatistics, Rows
from pytest_sdbench.metrics.standard_error import Groups


def clip_score(cosines: Rows, groups: Groups | None = None) -> tuple[float, float | None]:
    """Return the mean cosine of image and caption and its standard error, as `mean.mean`; [n] -> floats.

    Not multiplied by 100 and not clipped at zero (unlike CLIPScore of Hessel et al. 2021): as the published
    figures. Raises ValueError for no image and for a cosine outside [-1, 1].
    """
    if not (np.abs(cosines) <= 1 + 1e-3).all():
        raise ValueError("cosines must lie in [-1, 1]")
    return mean(cosines, groups)


def estimate(sample: Sample, _: FeatureStatistics | None, __: NoOptions) -> Estimate | Undefined:
    """Return the score of cosines, [n]; undefined without images."""
    return estimate_mean("clip_score", sample, clip_score)


CLIP_SCORE = Metric(
    name="clip_score",
    label="CLIP score",
    decimals=4,
    recorded_decimals=6,
    higher_is_better=True,
    estimate=estimate,
    output="cosine",
    per_image=True,
    extractor_key="model",
    aliases=("clip", "clipscore"),
    minimum=0.0,
    maximum=1.0,
    scale="the CLIP score is a mean cosine between 0 and 1, not multiplied by 100 as torchmetrics has it",
    often_multiplied_by=100,
)
