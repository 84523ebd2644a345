"""Score how far pictures are from the reference's, pixel by pixel: the mean PSNR."""

from __future__ import annotations

from functools import partial

from pytest_sdbench.metrics.definition import Metric
from pytest_sdbench.metrics.mean import plain_mean

PSNR = Metric(
    name="psnr",
    label="PSNR",
    decimals=2,
    recorded_decimals=4,
    higher_is_better=True,
    estimate=partial(plain_mean, "psnr"),
    output="pair",
    reads="pair",
    extractors=("psnr",),
    per_image=True,
    perfect=100.0,
    unlike=5.0,  # black beside noise of all values alike has 4.8
    minimum=0.0,
    maximum=100.0,
    scale="PSNR is the mean of decibels of 8-bit RGB pictures, and equal ones count as 100",
)
