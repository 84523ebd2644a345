"""Preference scores: the mean of what a model says of each image, in the units of their sources."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from pytest_sdbench.base.errors import CardError
from pytest_sdbench.cards.schema import check_value
from pytest_sdbench.metrics.definition import NoOptions, Sample
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.registry import METRICS, metric_name

TYPICAL = {"hpsv2": (0.27, 0.03), "pickscore": (21.5, 1.2), "aesthetic": (5.4, 0.6)}
"""Mean and spread over images of Stable Diffusion, about."""


def sample(rows: np.ndarray, groups: np.ndarray | None = None) -> Sample:
    return Sample(np.array_split(rows, 3), len(rows), groups)


@pytest.mark.parametrize("metric", TYPICAL)
class TestEstimate:
    def test_is_the_mean_with_its_standard_error_and_higher_is_better(self, metric: str) -> None:
        rows = np.random.default_rng(0).normal(*TYPICAL[metric], 200).astype(np.float32)
        found, better = (
            METRICS[metric].estimate(sample(each), None, NoOptions()) for each in (rows, 1.01 * rows)
        )
        assert isinstance(found, Estimate)
        assert isinstance(better, Estimate)
        exact = rows.astype(np.float64)
        assert found.value == found.corrected == found.at(30_000) == pytest.approx(exact.mean(), rel=1e-12)
        assert found.standard_error == pytest.approx(exact.std(ddof=1) / math.sqrt(200), rel=1e-12)
        np.testing.assert_allclose(found.influence, exact - exact.mean(), atol=1e-12)
        assert (better.value > found.value) is METRICS[metric].higher_is_better

    def test_images_of_one_prompt_count_together(self, metric: str) -> None:
        once = np.random.default_rng(1).normal(*TYPICAL[metric], 50)
        groups = np.repeat(np.arange(50), 4)
        alone = METRICS[metric].estimate(sample(once), None, NoOptions())
        four = METRICS[metric].estimate(sample(np.repeat(once, 4), groups), None, NoOptions())
        assert isinstance(alone, Estimate)
        assert isinstance(four, Estimate)
        assert four.standard_error == pytest.approx(alone.standard_error, rel=1e-9)

    def test_covers_the_true_mean_as_often_as_it_says(self, metric: str) -> None:
        middle, spread = TYPICAL[metric]
        rng, hits = np.random.default_rng(2), 0
        for _ in range(500):
            prompts = np.repeat(rng.normal(0, spread / 2, 64), 2)  # two images of each share its difficulty
            rows = middle + prompts + rng.normal(0, spread / 2, 128)
            found = METRICS[metric].estimate(sample(rows, np.repeat(np.arange(64), 2)), None, NoOptions())
            assert isinstance(found, Estimate)
            hits += abs(found.value - middle) < 1.96 * found.standard_error
        assert 0.92 <= hits / 500 <= 0.98

    def test_without_images_is_undefined_and_of_nan_refused(self, metric: str) -> None:
        nothing = METRICS[metric].estimate(sample(np.zeros(0)), None, NoOptions())
        assert isinstance(nothing, Undefined)
        with pytest.raises(ValueError, match=r"finite|cosines"):
            METRICS[metric].estimate(sample(np.array([0.3, np.nan, 0.3])), None, NoOptions())


@pytest.mark.parametrize(
    ("text", "metric"),
    [
        ("HPSv2.1", "hpsv2"),
        ("HPS v2.1", "hpsv2"),
        ("hps-v2", "hpsv2"),
        ("HPS", "hpsv2"),
        ("PickScore", "pickscore"),
        ("Pick Score", "pickscore"),
        ("Aesthetic Score", "aesthetic"),
        ("LAION-Aesthetic", "aesthetic"),
        ("ImageReward", None),
    ],
)
def test_names_of_model_cards_are_known(text: str, metric: str | None) -> None:
    assert metric_name(text) == metric


@pytest.mark.parametrize(
    ("metric", "published", "right"),
    [
        ("hpsv2", 28.5, "0.285"),
        ("pickscore", 0.217, "21.7"),
        ("pickscore", 0.83, "21.58"),
        ("aesthetic", 0.552, "5.52"),
        ("pickscore", 217.0, None),
        ("aesthetic", 55.2, None),
    ],
)
def test_a_value_of_another_scale_is_explained_with_the_right_one(
    metric: str, published: float, right: str | None
) -> None:
    with pytest.raises(CardError, match=f"{METRICS[metric].label} has the wrong scale") as raised:
        check_value(Path("card.md"), ("value",), metric, published)
    told = str(raised.value)
    assert METRICS[metric].scale[1:] in told
    assert (f"write {right}" in told) is (right is not None)
    assert check_value(Path("card.md"), ("value",), metric, TYPICAL[metric][0]) == TYPICAL[metric][0]
