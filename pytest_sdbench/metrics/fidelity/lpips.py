"""Score how different pictures look from the reference's: the mean LPIPS."""

from __future__ import annotations

from functools import partial

from pytest_sdbench.metrics.definition import Metric
from pytest_sdbench.metrics.mean import plain_mean

LPIPS = Metric(
    name="lpips",
    label="LPIPS",
    decimals=4,
    recorded_decimals=6,
    higher_is_better=False,
    estimate=partial(plain_mean, "lpips"),
    output="pair",
    reads="pair",
    extractors=("lpips:",),
    per_image=True,
    perfect=0.0,
    unlike=1.0,
    minimum=0.0,
    scale="LPIPS is a distance: equal pictures have 0, and unlike ones seldom more than 1",
)
