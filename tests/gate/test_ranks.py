"""Ranks of timings: the p-value is that of Mann and Whitney's exact test."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from pytest_sdbench.gate.hardware import larger_by_rank

SIZES = [(1, 1), (1, 9), (9, 1), (3, 3), (4, 7), (7, 4), (10, 10), (15, 12)]


def reference(first: list[float], second: list[float]) -> float:
    found = stats.mannwhitneyu(first, second, alternative="greater", method="exact")
    return float(found.pvalue)


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_without_ties_it_is_the_exact_test_of_scipy(n: int, m: int) -> None:
    rng = np.random.default_rng([n, m])
    for shift in (-1, 0, 0.5, 1, 3):
        first, second = list(rng.normal(shift, 1, n)), list(rng.normal(0, 1, m))
        assert larger_by_rank(first, second) == pytest.approx(reference(first, second), rel=1e-12)


@pytest.mark.parametrize("sizes", [(4, 4), (5, 5), (3, 6)])
def test_ties_keep_it_valid(sizes: tuple[int, int]) -> None:
    """Over all ways to deal the same values out, no finding is likelier than the test says."""
    values = [0, 0, 0, 1, 1, 2, 2, 2, 3, 4][: sum(sizes)]
    places = range(len(values))
    chances = []
    for chosen in itertools.combinations(places, sizes[0]):
        first = [float(values[i]) for i in chosen]
        second = [float(values[i]) for i in places if i not in chosen]
        chances.append(larger_by_rank(first, second))
    for level in sorted(set(chances)):
        assert sum(chance <= level for chance in chances) / len(chances) <= level + 1e-12


def test_it_counts_the_orders_that_rank_as_high() -> None:
    # Of the 20 orders of three and three, one has the first three above all others, one comes next.
    assert larger_by_rank([4, 5, 6], [1, 2, 3]) == pytest.approx(1 / 20)
    assert larger_by_rank([3, 5, 6], [1, 2, 4]) == pytest.approx(2 / 20)
    assert larger_by_rank([1, 2, 3], [4, 5, 6]) == 1


def test_a_tie_counts_against_the_finding() -> None:
    assert larger_by_rank([3, 5, 6], [1, 2, 3]) == larger_by_rank([3, 5, 6], [1, 2, 4])


def test_it_is_never_below_the_share_of_the_orders_that_there_are() -> None:
    for n in range(1, 8):
        low, high = [float(i) for i in range(n)], [float(i) for i in range(n, 2 * n)]
        assert larger_by_rank(high, low) == pytest.approx(1 / math.comb(2 * n, n), rel=1e-12)


def test_an_outlier_weighs_no_more_than_the_largest_does() -> None:
    first, second = [1.1, 1.4, 1.2, 1.5], [1.0, 1.3, 0.9, 0.8]
    assert larger_by_rank([*first[:-1], 1e6], second) == larger_by_rank(first, second)


@pytest.mark.parametrize(("first", "second"), [([], [1.0]), ([1.0], []), ([], [])])
def test_an_empty_sample_has_no_rank(first: list[float], second: list[float]) -> None:
    with pytest.raises(ValueError, match="two samples"):
        larger_by_rank(first, second)
