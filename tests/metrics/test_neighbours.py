"""Precision, recall, density and coverage against distances written out, and against generators that fail."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch_fidelity.metric_prc import calculate_precision_recall_full

from pytest_sdbench.metrics.definition import Sample
from pytest_sdbench.metrics.difference import difference
from pytest_sdbench.metrics.distances.balls import Recall
from pytest_sdbench.metrics.distances.neighbours import Five, Three
from pytest_sdbench.metrics.distances.rows import nearest
from pytest_sdbench.metrics.estimates import Undefined
from pytest_sdbench.metrics.moments import FeatureStatistics
from pytest_sdbench.metrics.registry import METRICS
from tests.metrics.populations import Array, root_mean_square

NAMES = ("precision", "recall", "density", "coverage")


def known(rows: Array) -> FeatureStatistics:
    return FeatureStatistics(np.zeros(rows.shape[1]), np.eye(rows.shape[1]), len(rows), rows)


def measured(
    name: str, rows: Array, real: FeatureStatistics, groups: Array | None = None, **options: int
) -> Any:
    metric = METRICS[name]
    sample = Sample(np.array_split(rows, 3), len(rows), groups)
    return metric.estimate(sample, real, metric.options(**options))


def by_hand(x: Array, y: Array, of_two: int = 3, of_balls: int = 5) -> dict[str, float]:
    """Write the definitions out for images x and real images y, with full matrices of distances."""
    across = cdist(y, x)

    def radii(rows: Array, k: int) -> Array:
        return np.asarray(np.sort(cdist(rows, rows), axis=1)[:, k])

    in_real = across <= radii(y, of_two)[:, None]
    in_balls = across <= radii(y, of_balls)[:, None]
    return {
        "precision": in_real.any(axis=0).mean(),
        "recall": (across <= radii(x, of_two)[None]).any(axis=1).mean(),
        "density": in_balls.sum(axis=0).mean() / of_balls,
        "coverage": in_balls.any(axis=1).mean(),
    }


@pytest.mark.parametrize(("n", "m"), [(90, 130), (130, 60)])
@pytest.mark.parametrize("k", [None, 1, 7])
def test_equal_their_definitions_whatever_the_blocks(
    n: int, m: int, k: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("rows", "neighbours"):
        monkeypatch.setattr(f"pytest_sdbench.metrics.distances.{module}.BLOCK", 37)
    rng = np.random.default_rng(n)
    x, y = rng.normal(0.3, 1.2, (n, 4)).astype(np.float32), rng.normal(size=(m, 4)).astype(np.float32)
    expected = by_hand(x.astype(float), y.astype(float), k or Three.neighbours, k or Five.neighbours)
    options = {} if k is None else {"neighbours": k}
    found = {name: measured(name, x, known(y), **options).value for name in NAMES}
    assert found == pytest.approx(expected, abs=1e-12)
    assert min(expected.values()) > 0.1


def test_precision_and_recall_are_those_of_torch_fidelity_and_not_swapped() -> None:
    rng = np.random.default_rng(8)
    x, y = rng.normal(0.5, 0.7, (150, 6)), rng.normal(size=(120, 6))
    theirs = calculate_precision_recall_full(torch.from_numpy(x), torch.from_numpy(y))
    assert [measured(name, x, known(y)).value for name in ("precision", "recall")] == pytest.approx(theirs)
    assert theirs[0] > theirs[1] + 0.2


@pytest.mark.parametrize(
    ("generator", "falls", "stays"),
    [("drops modes", ("recall", "coverage"), ("precision",)), ("noisy", ("precision", "density"), ())],
)
def test_tell_a_generator_that_drops_modes_from_a_noisy_one(
    generator: str, falls: tuple[str, ...], stays: tuple[str, ...]
) -> None:
    rng = np.random.default_rng(7)
    modes = rng.normal(0, 4, (10, 8))

    def draw(kinds: int) -> Array:
        return np.asarray(modes[rng.integers(0, kinds, 500)] + rng.normal(size=(500, 8)))

    real, good = known(draw(10)), draw(10)
    bad = draw(3) if generator == "drops modes" else good + rng.normal(0, 1, (500, 8))
    before, after = ({name: measured(name, rows, real).value for name in NAMES} for rows in (good, bad))
    assert all(after[name] < before[name] - 0.25 for name in falls)
    assert all(after[name] > before[name] - 0.03 for name in stays)
    assert all(METRICS[name].higher_is_better for name in NAMES)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_influence_is_what_leaving_a_prompt_out_changes(name: str, times: int) -> None:
    rng = np.random.default_rng(11)
    prompts = rng.permutation(np.repeat(np.arange(40), times))
    x, y = rng.normal(size=(40 * times, 3)), rng.normal(size=(80, 3))
    groups = prompts if times > 1 else None
    found = measured(name, x, known(y), groups)
    whole = by_hand(x, y)[name]
    changed = np.array([whole - by_hand(x[prompts != each], y)[name] for each in range(40)])
    sums = np.bincount(prompts, weights=found.influence)
    assert np.corrcoef(sums, changed)[0, 1] == pytest.approx(1, abs=1e-9)
    if name in ("precision", "density"):
        np.testing.assert_allclose(sums, 39 * times * (changed - changed.mean()), atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_standard_error_is_the_spread_over_sets_of_images(name: str, times: int) -> None:
    rng = np.random.default_rng(12)
    real = known(rng.normal(size=(200, 6)))
    groups = np.repeat(np.arange(200 // times), times) if times > 1 else None
    found = []
    for _ in range(200):
        prompts = np.repeat(rng.normal(size=(200 // times, 6)), times, axis=0)
        x = prompts if times == 1 else 0.8 * prompts + 0.6 * rng.normal(size=(200, 6))
        found.append(measured(name, x, real, groups))
    spread = np.std([each.value for each in found], ddof=1)
    errors = root_mean_square(np.array([each.standard_error for each in found]))
    assert 0.85 * spread < errors < 1.3 * spread


def test_paired_images_tell_a_difference_apart_from_their_common_noise() -> None:
    rng = np.random.default_rng(13)
    real = known(rng.normal(size=(300, 6)))
    x = rng.normal(size=(300, 6))
    for name in NAMES:
        same = measured(name, x, real)
        near = measured(name, x + 0.1 * rng.normal(size=x.shape), real)
        assert difference(same, same).standard_error == 0
        assert difference(near, same).gain > 1.2


def test_precision_and_density_foretell_more_images_and_the_others_do_not() -> None:
    rng = np.random.default_rng(14)
    real, x = known(rng.normal(size=(90, 4))), rng.normal(size=(80, 4))
    for name in NAMES:
        found = measured(name, x, real)
        assert found.at(80) == found.value
        assert found.at(800) == (found.value if name in ("precision", "density") else None)


@pytest.mark.parametrize(("where", "share"), [("on them", 1.0), ("far away", 0.0)])
def test_a_share_of_all_or_none_is_not_certain(where: str, share: float) -> None:
    rng = np.random.default_rng(15)
    y = rng.normal(size=(200, 4))
    x = np.concatenate([y, y + 1e-3]) if where == "on them" else rng.normal(50, 1, (200, 4))
    for name in ("precision", "recall", "coverage"):
        found = measured(name, x, known(y))
        assert found.value == share
        assert 0 < found.standard_error < 0.1


@pytest.mark.parametrize("n", [7, 13, 50])
def test_a_copy_lies_in_a_ball_of_no_radius(n: int) -> None:
    rng = np.random.default_rng(17)
    x = rng.normal(3, 1, (n, 64))
    for name in ("precision", "recall", "coverage"):
        assert measured(name, x, known(np.tile(x, (7, 1)))).value == 1.0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "m", "reason"), [(3, 50, "at least"), (50, 3, "not 3")])
def test_are_undefined_with_fewer_images_than_neighbours(name: str, n: int, m: int, reason: str) -> None:
    found = measured(name, np.eye(n, 5), known(np.eye(m, 5)))
    assert isinstance(found, Undefined)
    assert (found.metric, reason in found.reason) == (name, True)


def test_recall_of_too_few_prompts_has_no_standard_error() -> None:
    rng = np.random.default_rng(16)
    found = measured("recall", rng.normal(size=(15, 4)), known(rng.normal(size=(50, 4))))
    assert math.isfinite(found.value)
    assert found.standard_error is found.influence is None


def test_neighbours_of_another_number_or_width_are_refused() -> None:
    with pytest.raises(ValueError, match="5 rows have no 5 neighbours"):
        nearest(np.eye(5), 5)
    with pytest.raises(ValueError, match="do not match"):
        measured("coverage", np.zeros((9, 4)), known(np.zeros((9, 5))))
    assert Recall.around(np.eye(30), 3, np.arange(30)).radii == pytest.approx(np.full(30, 2.0))
