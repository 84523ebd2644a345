"""The distances of features against formulas written out, and what cards may say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from pytest_sdbench.base.errors import CardError
from pytest_sdbench.cards.schema import check_value
from pytest_sdbench.metrics.definition import Sample
from pytest_sdbench.metrics.distances.cmmd import cmmd_estimate
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.moments import FeatureStatistics
from pytest_sdbench.metrics.registry import METRICS, metric_name
from tests.metrics.populations import Array, moments

RNG = np.random.default_rng(3)
ROWS, REAL = RNG.normal(0.4, 1, (90, 6)).astype(np.float32), RNG.normal(size=(70, 6)).astype(np.float32)
KNOWN = FeatureStatistics(*(lambda of: (of.mu, of.sigma))(moments(REAL.astype(float))), 70, REAL)


def measured(name: str, rows: Array = ROWS, reference: FeatureStatistics | None = KNOWN) -> Any:
    metric = METRICS[name]
    return metric.estimate(Sample([rows[:50], rows[50:]], len(rows)), reference, metric.options())


def cmmd_by_hand(x: Array, y: Array) -> tuple[float, float]:
    """Write the definition out: biased, and without the pairs of an image with itself."""
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x.astype(float), y.astype(float)))
    xx, yy, xy = (np.exp(-cdist(a, b, "sqeuclidean") / 200) for a, b in ((x, x), (y, y), (x, y)))
    others = xx[~np.eye(len(x), dtype=bool)].mean()
    return 1000 * (xx.mean() + yy.mean() - 2 * xy.mean()), 1000 * (others + yy.mean() - 2 * xy.mean())


def fd_by_hand(x: Array, y: Array) -> float:
    """Write the definition out with the root of a matrix that is not symmetric."""
    x, y = x.astype(float), y.astype(float)
    a, b = (np.cov(rows, rowvar=False) for rows in (x, y))
    apart = np.square(x.mean(axis=0) - y.mean(axis=0)).sum()
    return float(apart + np.trace(a + b - 2 * sqrtm(a @ b).real))


def kd_by_hand(x: Array, y: Array) -> float:
    xx, yy, xy = ((a.astype(float) @ b.T / 6 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    pairs = [matrix[~np.eye(len(matrix), dtype=bool)].mean() for matrix in (xx, yy)]
    return float(sum(pairs) - 2 * xy.mean())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fd_dinov2", fd_by_hand(ROWS, REAL)),
        ("kd_dinov2", kd_by_hand(ROWS, REAL)),
        ("cmmd", cmmd_by_hand(ROWS, REAL)[0]),
    ],
)
def test_equals_its_definition_and_grows_with_the_distance(name: str, expected: float) -> None:
    found = measured(name)
    assert found.metric == name
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert found.standard_error > 0
    assert len(found.influence) == 90
    near, far = (measured(name, (ROWS + shift).astype(np.float32)).value for shift in (-0.4, 0.6))
    assert near < found.value < far
    assert not METRICS[name].higher_is_better


def test_cmmd_foretells_what_more_images_will_come_to() -> None:
    rng = np.random.default_rng(4)
    found = measured("cmmd")
    assert found.corrected == pytest.approx(cmmd_by_hand(ROWS, REAL)[1], rel=1e-9)
    few = [cmmd_estimate([rng.normal(0.4, 1, (60, 6))], REAL).at(600) for _ in range(100)]
    many = [cmmd_estimate([rng.normal(0.4, 1, (600, 6))], REAL).value for _ in range(10)]
    assert np.mean(few) == pytest.approx(np.mean(many), abs=4 * np.std(few) / 10)


def test_the_influence_on_cmmd_is_what_leaving_an_image_out_changes() -> None:
    left = np.array([cmmd_by_hand(np.delete(ROWS, i, axis=0), REAL)[1] for i in range(90)])
    changed = 89 * (measured("cmmd").corrected - left)
    changed -= changed.mean()
    np.testing.assert_allclose(measured("cmmd").influence, changed, atol=0.05 * changed.std())


@pytest.mark.parametrize("name", ["kd_dinov2", "cmmd"])
def test_images_of_one_prompt_count_once(name: str) -> None:
    metric = METRICS[name]
    groups = np.repeat(np.arange(90), 3)
    found = metric.estimate(Sample([np.repeat(ROWS, 3, axis=0)], 270, groups), KNOWN, metric.options())
    once = measured(name)
    assert found.corrected == pytest.approx(once.corrected, rel=1e-9)
    assert found.standard_error == pytest.approx(once.standard_error, rel=0.1)


@pytest.mark.parametrize(
    ("rows", "reference", "reason"),
    [
        (ROWS, None, "no reference statistics"),
        (ROWS, FeatureStatistics(KNOWN.mu, KNOWN.sigma), "moments only"),
        (ROWS[:1], KNOWN, "at least 2 images"),
        (ROWS, FeatureStatistics(KNOWN.mu, KNOWN.sigma, 9, REAL[:1]), "at least 2 references, not 1"),
    ],
)
@pytest.mark.parametrize("name", ["kd_dinov2", "cmmd"])
def test_is_undefined_without_what_it_compares(
    name: str, rows: Array, reference: FeatureStatistics | None, reason: str
) -> None:
    found = measured(name, rows, reference)
    assert isinstance(found, Undefined)
    assert (found.metric, found.n) == (name, len(rows))
    assert reason in found.reason


def test_fd_dinov2_needs_more_images_than_features() -> None:
    found = measured("fd_dinov2", ROWS[:6])
    assert isinstance(found, Undefined)
    assert "more images than its 6 features" in found.reason
    assert isinstance(measured("fd_dinov2", ROWS[:7]), Estimate)


def test_a_picture_without_direction_is_named() -> None:
    with pytest.raises(ValueError, match="no direction"):
        cmmd_estimate([np.zeros((5, 6))], REAL)


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("fd_dinov2", ("FD-DINOv2", "FDD", "FD_DINO")),
        ("kd_dinov2", ("KD-DINOv2", "KID DINOv2")),
        ("cmmd", ("CMMD", "clip-mmd")),
    ],
)
def test_cards_spell_it_in_many_ways(name: str, spelled: tuple[str, ...]) -> None:
    assert [metric_name(each) for each in spelled] == [name] * len(spelled)


@pytest.mark.parametrize(("name", "value", "remedy"), [("cmmd", 526.0, "write 0.526")])
def test_a_value_of_another_scale_is_explained(name: str, value: float, remedy: str) -> None:
    with pytest.raises(CardError, match="wrong scale") as caught:
        check_value(Path("card.md"), ("metrics",), name, value)
    assert remedy in str(caught.value)
