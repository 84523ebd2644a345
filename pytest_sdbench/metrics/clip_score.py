"""Score how well pictures fit their captions: the mean cosine of both, as a CLIP model sees them."""

from __future__ import annotations

import numpy as np

from pytest_sdbench.metrics.definition import Metric, NoOptions, Sample
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.moments import FeatureStatistics, Rows
from pytest_sdbench.metrics.standard_error import Groups, standard_error


def clip_score(cosines: Rows, groups: Groups | None = None) -> tuple[float, float | None]:
    """Return the mean cosine of image and caption and its standard error, None for one image; [n] -> floats.

    `groups` tell which images share a prompt: the error then is that of the means of prompts. Not multiplied
    by 100 and not clipped at zero (unlike CLIPScore of Hessel et al. 2021): as the published figures.
    Raises ValueError for no image and for a cosine outside [-1, 1].
    """
    values = np.asarray(cosines, np.float64)
    if not len(values):
        raise ValueError("no images")
    if not (np.abs(values) <= 1 + 1e-3).all():
        raise ValueError("cosines must lie in [-1, 1]")
    mean = float(values.mean())
    return mean, standard_error(values - mean, groups)


def estimate(sample: Sample, _: FeatureStatistics | None, __: NoOptions) -> Estimate | Undefined:
    """Return the score of cosines, [n]; undefined without images."""
    if not sample.n:
        return Undefined("clip_score", "no images", 0)
    cosines = sample.rows()
    value, error = clip_score(cosines, sample.groups)
    influence = cosines.astype(np.float64) - value
    return Estimate("clip_score", value, error, sample.n, value, influence=influence)


CLIP_SCORE = Metric(
    name="clip_score",
    label="CLIP score",
    decimals=4,
    recorded_decimals=6,
    higher_is_better=True,
    estimate=estimate,
    output="cosine",
    extractor_key="model",
    aliases=("clip", "clipscore"),
    minimum=0.0,
    maximum=1.0,
    scale="the CLIP score is a mean cosine between 0 and 1, not multiplied by 100 as torchmetrics has it",
    often_multiplied_by=100,
)
