"""Score how alike pictures and the reference's are to a network: the mean cosine of their features."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from pytest_sdbench.metrics.definition import Metric
from pytest_sdbench.metrics.mean import plain_mean

FEATURE_COSINE = Metric(
    name="feature_cosine",
    label="Feature cosine",
    decimals=4,
    recorded_decimals=6,
    higher_is_better=True,
    estimate=partial(plain_mean, "feature_cosine"),
    output="pair",
    reads="pair",
    extractors=("cosine:",),
    per_image=True,
    perfect=1.0,
    minimum=-1.0,
    maximum=1.0,
    scale="a cosine lies between -1 and 1, and equal pictures have 1",
    often_multiplied_by=100,
)

DINO_COSINE = replace(
    FEATURE_COSINE,
    name="dino_cosine",
    label="DINO cosine",
    estimate=partial(plain_mean, "dino_cosine"),
    extractors=("cosine:dinov2",),
)
"""That of DINOv2, under the name that others know it by."""
