"""Metrics of pairs: their figures, directions and intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pytest_sdbench.gate.binomial import lower_bound, upper_bound
from pytest_sdbench.metrics.definition import Sample
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.protocols.metric_specs import read_spec

PAIRED = [name for name, metric in METRICS.items() if metric.reads == "pair"]
MEANS = [name for name in PAIRED if name != "lost"]


def estimate(metric: str, values: Any, groups: Any = None, **options: float) -> Estimate:
    known, rows = METRICS[metric], np.asarray(values, np.float32)
    found = known.estimate(Sample([rows], len(rows), groups), None, known.options(**options))
    assert isinstance(found, Estimate)
    return found


@pytest.mark.parametrize("metric", MEANS)
def test_the_mean_of_pairs_has_the_error_of_the_means_of_prompts(metric: str) -> None:
    values = np.random.default_rng(3).uniform(0, 1, 60)
    alone = estimate(metric, values)
    assert (alone.metric, alone.value) == (metric, pytest.approx(values.mean(), abs=1e-6))
    assert alone.standard_error == pytest.approx(values.std(ddof=1) / np.sqrt(60), rel=1e-5)
    # Each prompt thrice, with one value: three equal ones say no more than one.
    thrice = estimate(metric, np.repeat(values[:20], 3), np.repeat(np.arange(20), 3))
    assert thrice.standard_error == pytest.approx(values[:20].std(ddof=1) / np.sqrt(20), rel=1e-5)
    assert thrice.at(999) == thrice.value
    nothing = METRICS[metric].estimate(Sample([], 0), None, METRICS[metric].options())
    assert isinstance(nothing, Undefined)


@pytest.mark.parametrize("metric", PAIRED)
def test_a_metric_of_pairs_has_room_from_what_equal_pictures_have(metric: str) -> None:
    known = METRICS[metric]
    assert known.perfect == (0 if metric in ("lpips", "lost") else known.maximum)
    assert known.room(known.perfect) > 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"below": 0.5}, 0.4), ({"above": 0.5}, 0.4), ({"below": 0.2}, 0.0), ({"above": -1}, 1.0)],
)
def test_lost_counts_what_lies_beyond_the_threshold(options: dict[str, float], expected: float) -> None:
    found = estimate("lost", [0.25, 0.3, 0.5, 0.6, 0.7], **options)
    assert found.value == pytest.approx(expected)
    assert found.influence is not None
    assert found.influence.sum() == pytest.approx(0)


@pytest.mark.parametrize("options", [{}, {"below": 0.5, "above": 0.7}])
def test_lost_has_one_threshold(options: dict[str, float]) -> None:
    with pytest.raises((ValidationError, ValueError), match="lost needs one threshold"):
        read_spec({"metric": "lost", "extractor": "ssim", **options})


@pytest.mark.parametrize(
    ("extractor", "option", "why"),
    [
        ("psnr", {"below": 0.75}, "does not tell pictures apart: unlike ones have about 5 PSNR"),
        ("psnr", {"below": 100.0}, "equal ones 100"),
        ("ssim", {"above": 0.75}, "lost needs `below` for ssim: SSIM is the better the higher"),
        ("ssim", {"below": 30}, "does not tell"),
        ("ssim", {"below": 0.0}, "does not tell"),
        ("lpips:alex", {"above": 30}, "does not tell"),
        ("lpips:alex", {"above": 0}, "does not tell"),
        ("lpips:vgg", {"below": 0.3}, "lost needs `above`"),
        ("cosine:dinov2-vitl14", {"above": 0.9}, "lost needs `below`"),
        ("inception", {"below": 0.9}, "no metric of pairs reads 'inception'"),
    ],
)
def test_lost_has_a_threshold_that_suits_what_it_looks_at(
    extractor: str, option: dict[str, float], why: str
) -> None:
    with pytest.raises((ValidationError, ValueError), match=why):
        read_spec({"metric": "lost", "extractor": extractor, **option})


@pytest.mark.parametrize(
    ("extractor", "option"),
    [
        ("psnr", {"below": 20}),
        ("ssim", {"below": 0.75}),
        ("lpips:alex", {"above": 0.3}),
        ("cosine:dinov2-vitl14", {"below": 0.9}),
    ],
)
def test_such_thresholds_do(extractor: str, option: dict[str, float]) -> None:
    assert read_spec({"metric": "lost", "extractor": extractor, **option}).extractor == extractor


def test_intervals_cover_what_they_are_of() -> None:
    """The normal interval of a mean of prompts drawn thrice, and the exact one of a share."""
    rng, means, shares = np.random.default_rng(11), [], []
    groups, z = np.repeat(np.arange(100), 3), 1.959964
    for _ in range(500):
        values = 0.9 + 0.03 * rng.standard_normal(100)[groups] + 0.03 * rng.standard_normal(300)
        found = estimate("ssim", values, groups)
        assert found.standard_error is not None
        means.append(abs(found.value - 0.9) <= z * found.standard_error)
        count = rng.binomial(512, 0.03)
        shares.append(lower_bound(count, 512, 0.025) <= 0.03 <= upper_bound(count, 512, 0.025))
    assert 0.92 <= np.mean(means) <= 0.98
    assert 0.92 <= np.mean(shares) <= 0.98
