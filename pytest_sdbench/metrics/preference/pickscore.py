"""Average PickScore, a cosine of picture and caption, times a hundred, trained on what people prefer."""

from __future__ import annotations

from functools import partial

from pytest_sdbench.metrics.definition import Metric
from pytest_sdbench.metrics.mean import plain_mean

PICKSCORE = Metric(
    name="pickscore",
    label="PickScore",
    decimals=2,
    recorded_decimals=5,
    higher_is_better=True,
    estimate=partial(plain_mean, "pickscore"),
    per_image=True,
    output="pickscore",
    aliases=("pick_score", "pickscore_v1", "pick_score_v1", "pick_a_pic_score"),
    minimum=10.0,
    maximum=40.0,
    scale="PickScore is a mean cosine times the model's logit scale of about 100, and lies near 20; "
    "some tools print the cosine alone, and some a 26th",
    often_multiplied_by=(1 / 100, 1 / 26),
)
