"""Average LAION's aesthetic score (version 2), which people's ratings from 1 to 10 have trained."""

from __future__ import annotations

from functools import partial

from pytest_sdbench.metrics.definition import Metric
from pytest_sdbench.metrics.mean import plain_mean

AESTHETIC = Metric(
    name="aesthetic",
    label="Aesthetic score",
    decimals=3,
    recorded_decimals=5,
    higher_is_better=True,
    estimate=partial(plain_mean, "aesthetic"),
    per_image=True,
    output="aesthetic",
    aliases=("aesthetic_score", "aesthetics", "aesthetics_score", "laion_aesthetic", "laion_aesthetics"),
    minimum=1.0,
    maximum=10.0,
    scale="the aesthetic score of LAION's predictor lies between 1 and 10, for most pictures near 5.5; "
    "some tools print a tenth of it",
    often_multiplied_by=1 / 10,
)
