"""Changes are called where they are, and nothing else is: simulated, with known errors."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from pytest_sdbench.gate.binomial import beta_cdf
from pytest_sdbench.metrics.change_points import (
    change_points,
    comparisons,
    covariance,
    critical_value,
    steadied,
)
from pytest_sdbench.metrics.difference import difference
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.metrics.standard_error import standard_error

RUNS = 30


def history(
    seed: int, levels: dict[int, float] | None = None, shared: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return values and covariances of 30 runs of unequal errors, whose level changes at some of them.

    `shared` is the correlation of all noise.
    """
    random = np.random.default_rng(seed)
    errors = random.uniform(0.05, 0.2, RUNS)
    correlations = np.full((RUNS, RUNS), shared) + (1 - shared) * np.eye(RUNS)
    covariances = np.outer(errors, errors) * correlations
    values = random.multivariate_normal(np.full(RUNS, 17.0), covariances)
    for at, by in (levels or {}).items():
        values[at:] += by
    return values, covariances


@pytest.mark.parametrize("shared", [0.0, 0.9], ids=["unpaired", "paired"])
def test_of_200_histories_without_a_change_at_most_5_percent_are_called(shared: float) -> None:
    called = sum(bool(change_points(*history(seed, shared=shared))) for seed in range(200))
    assert called <= 10


def test_noise_that_is_shared_and_not_known_to_be_makes_no_calls() -> None:
    histories = [history(seed, shared=0.5) for seed in range(200)]
    alone = [(values, np.diag(np.diag(covariances))) for values, covariances in histories]
    assert sum(bool(change_points(*each)) for each in alone) <= 2


@pytest.mark.parametrize("at", [1, 4, 15, 28, 29])
@pytest.mark.parametrize("by", [2.0, -2.0])
def test_a_drop_is_called_at_its_run_and_nowhere_else(at: int, by: float) -> None:
    for seed in range(10):
        (change,) = change_points(*history(seed, {at: by}))
        assert (change.at, change.first, change.last) == (at, at - 1, at)
        assert abs(change.value - by) < 4 * change.standard_error


def test_a_small_drop_is_called_once_near_its_run_and_pairing_finds_a_smaller_one() -> None:
    found = [change_points(*history(seed, {15: 0.4})) for seed in range(100)]
    assert sum(len(each) == 1 for each in found) >= 90
    assert sum(len(each) > 1 for each in found) <= 5
    assert sum(each[0].first < 15 <= each[0].last for each in found if each) >= 90

    def called(shared: float) -> int:
        return sum(bool(change_points(*history(seed, {15: 0.1}, shared))) for seed in range(50))

    assert called(0.0) <= 10
    assert called(0.99) == 50


def test_two_changes_are_two_and_share_the_error_with_what_lies_around() -> None:
    histories = [history(seed, {10: 3.0, 20: -1.5}) for seed in range(200)]
    wrong = sum([change.at for change in change_points(*each)] != [10, 20] for each in histories)
    assert wrong <= 10


@pytest.mark.parametrize(("of", "called"), [(1, True), (1000, False)])
def test_two_points_are_compared_by_the_normal_distribution(of: int, called: bool) -> None:
    assert comparisons(2) == 1
    limit = NormalDist().inv_cdf(0.975) * np.hypot(0.3, 0.4)
    for by, found in ((0.99 * limit, False), (1.01 * limit, called)):
        assert bool(change_points(np.array([5.0, 5.0 + by]), np.diag([0.09, 0.16]), of=of)) is found


@pytest.mark.parametrize(
    ("values", "least", "at"),
    [
        ([7.0] * 9, 0.0, []),
        ([], 0.0, []),
        ([3.0], 0.0, []),
        ([323_384_964.0] * 4 + [323_384_965.0] * 3, 0.0, [4]),
        ([1.0, 2.0, 1.0, 1.0, 5.0], 0.0, [1, 2, 4]),
        ([1.0, 1.00001, 2.0], 0.001, [2]),
    ],
    ids=str,
)
def test_what_is_exact_changes_wherever_it_differs(values: list[float], least: float, at: list[int]) -> None:
    found = change_points(np.array(values), np.zeros((len(values), len(values))), least=least)
    assert [change.at for change in found] == at


def test_a_checkpoint_that_comes_back_has_the_same_noise() -> None:
    # A, B, A, B on the same images: two draws of noise, however often they are looked at.
    values, errors = np.array([1.0, 1.3, 1.0, 1.3] * 5), np.array([0.1, 0.1] * 10)
    same = np.equal.outer(np.arange(20) % 2, np.arange(20) % 2)
    assert change_points(values, np.outer(errors, errors) * same) == []


@pytest.mark.parametrize("groups", [None, np.arange(60) // 2, np.arange(60) % 7], ids=["1", "2", "7"])
def test_the_variance_of_a_difference_is_that_of_paired_images(groups: np.ndarray | None) -> None:
    random = np.random.default_rng(1)
    moves = random.normal(size=(3, 60)) + random.normal(size=60)
    moves -= moves.mean(axis=1, keepdims=True)
    found = covariance(list(moves), groups)
    estimates = [Estimate("fid", 1.0, standard_error(each, groups), 60, influence=each) for each in moves]
    for i in range(3):
        assert np.sqrt(found[i, i]) == pytest.approx(estimates[i].standard_error)
        for j in range(i):
            less = difference(estimates[i], estimates[j], groups=groups)
            assert less is not None
            assert np.sqrt(found[i, i] + found[j, j] - 2 * found[i, j]) == pytest.approx(less.standard_error)
    if groups is None:
        assert found == pytest.approx(np.cov(moves) / 60)


@pytest.mark.parametrize("freedom", [19, 49, 511])
@pytest.mark.parametrize("level", [0.05, 1e-4, 1e-6])
def test_the_critical_value_is_that_of_students_distribution(freedom: int, level: float) -> None:
    def level_of(t: float) -> float:
        return beta_cdf(freedom / (freedom + t**2), freedom / 2, 0.5)

    found = critical_value(level, freedom)
    assert level_of(1.01 * found) < level < level_of(0.99 * found)
    assert critical_value(level, np.inf) == pytest.approx(NormalDist().inv_cdf(1 - level / 2))


SCATTER = {
    "normal": lambda random, *size: random.normal(size=size),
    "skewed": lambda random, *size: np.exp(random.normal(size=size)),
    "heavy tails": lambda random, *size: random.standard_t(3, size=size),
    "few images decide": lambda random, *size: (
        (random.random(size) < 0.02) * random.exponential(10, size=size)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("paired", [False, True], ids=["unpaired", "paired"])
@pytest.mark.parametrize("kind", list(SCATTER))
def test_errors_that_are_estimated_of_few_or_unlike_images_make_no_calls(kind: str, paired: bool) -> None:
    images = 50

    def called(seed: int) -> bool:
        random = np.random.default_rng(seed)
        scores = SCATTER[kind](random, RUNS, images) + 3 * paired * SCATTER[kind](random, images)
        moves = scores - scores.mean(axis=1, keepdims=True)
        known = covariance(list(moves)) if paired else np.diag(moves.var(axis=1, ddof=1) / images)
        return bool(change_points(scores.mean(axis=1), steadied(known), freedom=images - 1))

    assert sum(map(called, range(200))) <= 10


def test_no_variance_is_far_below_the_others_and_those_that_are_alike_stay() -> None:
    shared = np.full((4, 4), 5.0)
    assert steadied(shared + np.diag([1.0, 2.0, 3.0, 6.0])) == pytest.approx(shared + np.diag([3.0, 3, 3, 6]))
    assert steadied(shared + np.eye(4)) == pytest.approx(shared + np.eye(4))
    for few in (np.zeros((0, 0)), np.eye(1), np.diag([1.0, 4.0])):
        assert steadied(few) is few
