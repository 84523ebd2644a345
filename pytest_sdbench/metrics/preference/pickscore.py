"""Average PickScore, a cosine of picture and caption, times a hundred, trained on what people prefer."""

from __future__ import annotations

from pytest_sdbench.metrics.definition import Metric, NoOptions, Sample
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.mean import estimate_mean
from pytest_sdbench.metrics.moments import FeatureStatistics


def estimate(sample: Sample, _: FeatureStatistics | None, __: NoOptions) -> Estimate | Undefined:
    """Return the mean of scores, [n]; undefined without images."""
    return estimate_mean("pickscore", sample)


PICKSCORE = Metric(
    name="pickscore",
    label="PickScore",
    decimals=2,
    recorded_decimals=5,
    higher_is_better=True,
    estimate=estimate,
    per_image=True,
    output="pickscore",
    aliases=("pick_score", "pickscore_v1", "pick_score_v1", "pick_a_pic_score"),
    minimum=10.0,
    maximum=40.0,
    scale="PickScore is a mean cosine times the model's logit scale of about 100, and lies near 20; "
    "some tools print the cosine alone, and some a 26th",
    often_multiplied_by=(1 / 100, 1 / 26),
)
