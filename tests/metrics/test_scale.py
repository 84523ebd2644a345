"""The scale of every metric that cards may claim: what other tools print is refused, with what to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_sdbench.base.errors import CardError
from pytest_sdbench.cards.schema import check_value
from pytest_sdbench.metrics.imported import imported_metric
from pytest_sdbench.metrics.registry import METRICS

SCALES: dict[str, tuple[float, float, str]] = {
    "fid": (16.98, -16.98, "is negative"),
    "inception_score": (31.7, 0.5, "wrong scale"),
    "clip_score": (0.268, 26.8, "write 0.268"),
    "kid": (0.004, -0.004, "is negative"),
    "hpsv2": (0.285, 28.5, "write 0.285"),
    "pickscore": (21.7, 0.217, "write 21.7"),
    "aesthetic": (5.52, 0.552, "write 5.52"),
    "fd_dinov2": (212.0, -212.0, "is negative"),
    "kd_dinov2": (0.9, -0.9, "is negative"),
    "cmmd": (0.526, 526.0, "write 0.526"),
    "precision": (0.71, 71.0, "write 0.71"),
    "recall": (0.49, 49.0, "write 0.49"),
    "density": (1.04, -1.04, "is negative"),
    "coverage": (0.83, 83.0, "write 0.83"),
    "diversity": (0.42, -0.42, "is negative"),
    "psnr": (31.5, 315.0, "equal ones count as 100"),
    "ssim": (0.93, 93.0, "write 0.93"),
    "lpips": (0.07, -0.07, "is negative"),
    "feature_cosine": (0.97, 97.0, "write 0.97"),
    "dino_cosine": (0.88, 88.0, "write 0.88"),
    "lost": (0.004, 0.4e2, "write 0.4"),
}
"""A usual value, one of another scale or sign, and what is said of that."""

LOWER = {"fid", "kid", "fd_dinov2", "kd_dinov2", "cmmd", "lpips", "lost"}


def test_the_table_has_every_metric() -> None:
    assert SCALES.keys() == METRICS.keys()


@pytest.mark.parametrize("metric", SCALES)
def test_a_value_of_another_scale_is_refused(metric: str) -> None:
    usual, other, said = SCALES[metric]
    assert check_value(Path("card.md"), ("value",), metric, usual) == usual
    with pytest.raises(CardError, match=said):
        check_value(Path("card.md"), ("value",), metric, other)


@pytest.mark.parametrize("metric", SCALES)
def test_the_direction_is_that_of_the_source(metric: str) -> None:
    known = METRICS[metric]
    assert known.higher_is_better is (metric not in LOWER)
    assert known.arrow == ("↓" if metric in LOWER else "↑")
    if known.perfect is not None:
        # Equal pictures are better than unlike ones.
        assert known.perfect != known.unlike or known.share
        assert (known.perfect > known.unlike) is known.higher_is_better or known.share


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_an_imported_metric_is_of_the_declared_scale_and_direction(higher_is_better: bool) -> None:
    metric = imported_metric("votes", "Votes", higher_is_better=higher_is_better, minimum=1, maximum=5)
    assert (metric.arrow, metric.minimum, metric.maximum) == ("↑" if higher_is_better else "↓", 1, 5)
    assert metric.scale == "the protocol declares Votes as at least 1 and at most 5"
    assert not metric.signed
