"""Score how alike the structure of pictures is to the reference's: the mean SSIM."""

from __future__ import annotations

from functools import partial

from pytest_sdbench.metrics.definition import Metric
from pytest_sdbench.metrics.mean import plain_mean

SSIM = Metric(
    name="ssim",
    label="SSIM",
    decimals=4,
    recorded_decimals=6,
    higher_is_better=True,
    estimate=partial(plain_mean, "ssim"),
    output="pair",
    reads="pair",
    extractors=("ssim",),
    per_image=True,
    perfect=1.0,
    minimum=-1.0,
    maximum=1.0,
    scale="SSIM lies between -1 and 1, and equal pictures have 1",
    often_multiplied_by=100,
)
