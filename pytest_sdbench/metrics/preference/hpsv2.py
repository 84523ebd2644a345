"""Average HPS v2.1, a cosine of picture and caption that was trained on what people prefer."""

from __future__ import annotations

from pytest_sdbench.metrics.clip_score import clip_score
from pytest_sdbench.metrics.definition import Metric, NoOptions, Sample
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.mean import estimate_mean
from pytest_sdbench.metrics.moments import FeatureStatistics


def estimate(sample: Sample, _: FeatureStatistics | None, __: NoOptions) -> Estimate | Undefined:
    """Return the mean of cosines, [n]; undefined without images."""
    return estimate_mean("hpsv2", sample, clip_score)


HPSV2 = Metric(
    name="hpsv2",
    label="HPSv2.1",
    decimals=4,
    recorded_decimals=6,
    higher_is_better=True,
    estimate=estimate,
    per_image=True,
    output="hps",
    aliases=("hps", "hps_v2", "hpsv2.1", "hps_v2.1", "hpsv2_1", "hps_v2_1", "hpsv21"),
    minimum=0.0,
    maximum=1.0,
    scale="HPSv2.1 is a mean cosine between 0 and 1, as `hpsv2.score` returns it; "
    "its tables print a hundred times that",
    often_multiplied_by=100,
)
