"""Scores of more rows than memory holds: moments in any order, rows that are let go, parts and blocks."""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from pytest_sdbench.metrics import fid_bias
from pytest_sdbench.metrics import moments as moments_of
from pytest_sdbench.metrics.definition import Sample
from pytest_sdbench.metrics.distances import cmmd, diversity, mmd, neighbours
from pytest_sdbench.metrics.estimates import Undefined
from pytest_sdbench.metrics.fid_bias import scales
from pytest_sdbench.metrics.moments import FeatureStatistics, Moments
from pytest_sdbench.metrics.registry import METRICS
from tests.metrics.populations import Array, root_mean_square

WIDTH, RNG = 4, np.random.default_rng(20)
REAL = RNG.normal(size=(60, WIDTH))
KNOWN = FeatureStatistics(REAL.mean(axis=0), np.cov(REAL, rowvar=False), len(REAL), REAL)
STREAMED = ("fid", "inception_score", "kid", "cmmd", "precision", "density", "coverage", "diversity")


class TestMoments:
    @pytest.mark.parametrize("offset", [0.0, 1e6, [1e8, -1e8, 3.0, 0.0]])
    @pytest.mark.parametrize("spread", [1.0, [1e-3, 1.0, 1e3, 1e-6]])
    def test_in_any_order_and_grouping_are_the_exact_ones(
        self, offset: Any, spread: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Small blocks: the tree is as high as that of a million rows.
        monkeypatch.setattr(moments_of, "_BLOCK", 16)
        monkeypatch.setattr(moments_of, "_SUM", 4)
        rng = np.random.default_rng(1)
        rows = rng.normal(size=(900, WIDTH)) @ rng.normal(size=(WIDTH, WIDTH)) * spread + offset
        mean, covariance = exact(rows)
        scale = np.sqrt(np.diag(covariance))
        orders: list[Callable[[], Moments]] = [
            lambda: streamed(rows, 7),
            lambda: streamed(rows[::-1], 64),
            lambda: streamed(rng.permutation(rows), 900),
            *(lambda: merged(rng.permutation(rows), rng) for _ in range(5)),
        ]
        for order in orders:
            found = order().statistics()
            assert found.n == 900
            assert (np.abs(found.sigma - covariance) <= 1e-12 * np.outer(scale, scale)).all()
            assert (np.abs(found.mu - mean) <= 1e-15 * np.abs(mean) + 1e-12 * scale).all()

    def test_take_no_memory_for_rows(self) -> None:
        found, rows = Moments(2), np.ones((1024, 2))
        for _ in range(1100):
            found.update(rows)
        assert len(found._levels) == 3
        assert [level.n for level in found._levels] == [12 * 1024, 2 * 32 * 1024, 1024**2]

    def test_of_other_features_are_not_added(self) -> None:
        with pytest.raises(ValueError, match="moments of 2 and of 3 features"):
            Moments(2).merge(Moments(3))


def exact(rows: Array) -> tuple[Array, Array]:
    """Return mean and covariance in rational numbers, rounded at the end."""
    columns = [[Fraction(float(each)) for each in column] for column in rows.T]
    means = [sum(column) / len(rows) for column in columns]
    centred = [[each - mean for each in column] for column, mean in zip(columns, means, strict=True)]
    sums = [
        [float(sum(x * y for x, y in zip(a, b, strict=True)) / (len(rows) - 1)) for b in centred]
        for a in centred
    ]
    return np.array([float(mean) for mean in means]), np.array(sums)


def streamed(rows: Array, batch: int) -> Moments:
    found = Moments(WIDTH)
    for start in range(0, len(rows), batch):
        found.update(rows[start : start + batch])
    return found


def merged(rows: Array, rng: np.random.Generator) -> Moments:
    """Return the moments of shards of any size, merged two by two in any order."""
    borders = np.unique(rng.integers(0, len(rows), 40))
    left = [streamed(shard, 9) for shard in np.split(rows, borders) if len(shard)]
    while len(left) > 1:
        one, other = (left.pop(int(rng.integers(len(left)))) for _ in range(2))
        one.merge(other)
        left.append(one)
    return left[0]


def test_the_rule_of_many_scales_is_that_of_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    squares = 1 / np.random.default_rng(4).chisquare(5, 2_000)
    whole = scales(squares)
    monkeypatch.setattr(fid_bias, "_MOST", 300)
    found = scales(squares)
    np.testing.assert_allclose(found.squares, whole.squares, rtol=1e-8)
    for e in (0.1, 20.0, 0.3 + 0.2j):
        got, expected = ((e * s.squares / (1 + e * s.squares)) @ s.shares for s in (found, whole))
        assert got == pytest.approx(expected, rel=1e-12)


def test_rows_are_cut_anew_whatever_batches_they_come_in() -> None:
    rows = np.arange(22.0).reshape(11, 2)
    for borders in ([], [1, 2, 9], [4, 4, 8], list(range(1, 11))):
        sample = Sample(np.split(rows, borders), 11)
        assert [len(block) for block in sample.blocks(4)] == [4, 4, 3]
        assert [len(part) for part in sample.parts(5)] == [3, 4, 4]
        for cut in (sample.blocks(4), sample.parts(5), [sample.rows()]):
            assert np.array_equal(np.concatenate(list(cut)), rows)
    with pytest.raises(ValueError, match="fewer rows than the 12 images"):
        Sample([rows], 12).rows()


@pytest.mark.parametrize("groups", [None, np.arange(90) % 36, np.arange(90) // 3, np.arange(90) % 80])
@pytest.mark.parametrize("metric", ["kid", "cmmd"])
def test_kernel_distances_of_many_are_those_of_pairs_in_parts(
    metric: str, groups: Array | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(6).normal(0.3, 1, (90, WIDTH)).astype(np.float32)
    for module in (mmd, cmmd):
        monkeypatch.setattr(module, "ALL_PAIRS", 30)
    found = METRICS[metric].estimate(Sample(np.array_split(rows, 7), 90, groups), KNOWN, None)
    x, y = (each.astype(np.float64) for each in (rows, REAL))
    if metric == "cmmd":
        x, y = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (x, y))
    kernel = mmd.cubic if metric == "kid" else cmmd.kernel
    k, part, of = kernel(x, x), np.arange(90) // 30, np.arange(90) if groups is None else groups
    pairs = (part[:, None] == part) & ~np.eye(90, dtype=bool)
    alike = of[:, None] == of
    different = k[pairs & ~alike].mean()
    share = (alike.sum() - 90) / (90 * 89)
    every = (
        different if not (pairs & alike).any() else (1 - share) * different + share * k[pairs & alike].mean()
    )
    among_real, m = kernel(y, y), len(y)
    if metric == "cmmd":
        every, rest = every + (np.diag(k).mean() - every) / 90, among_real.mean()
    else:
        rest = (among_real.sum() - np.trace(among_real)) / (m * (m - 1))
    rest -= 2 * kernel(x, y).mean()
    assert found.value == pytest.approx(every + rest, rel=1e-9)
    assert found.corrected == pytest.approx(different + rest, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("away", [0.0, 0.4])
def test_the_error_of_a_kernel_distance_in_parts_is_its_spread(
    away: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cmmd, "ALL_PAIRS", 50)
    rng, found = np.random.default_rng(8), []
    for _ in range(400):
        found.append(METRICS["cmmd"].estimate(Sample([rng.normal(away, 1, (200, WIDTH))], 200), KNOWN, None))
    errors = root_mean_square(np.array([each.standard_error for each in found]))
    assert errors == pytest.approx(np.std([each.value for each in found], ddof=1), rel=0.12)


def test_recall_says_how_many_images_it_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "MOST", 50)
    found = METRICS["recall"].estimate(Sample([REAL], 60), KNOWN, neighbours.Three())
    assert isinstance(found, Undefined)
    assert "at most 50" in found.reason


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_diversity_is_the_same_however_many_pictures_are_kept(
    distance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, groups = RNG.normal(size=(80, WIDTH)), RNG.integers(0, 25, 80)
    sample, options = Sample(np.array_split(rows, 9), 80, groups), diversity.Distance(distance)  # type: ignore[arg-type]
    whole = METRICS["diversity"].estimate(sample, None, options)
    for most in (1, 7, 40):
        monkeypatch.setattr(diversity, "_MOST", most)
        found = METRICS["diversity"].estimate(sample, None, options)
        assert found == whole
        assert np.array_equal(found.influence, whole.influence)


class Lent:
    """Batches of drawn rows that count how many of them somebody holds at one time."""

    def __init__(self, n: int, batch: int) -> None:
        self.n, self.batch, self.held, self.most = n, batch, 0, 0

    def _give_back(self) -> None:
        self.held -= 1

    def __iter__(self) -> Iterator[Array]:
        for start in range(0, self.n, self.batch):
            count = min(self.batch, self.n - start)
            rows = np.random.default_rng([3, start]).normal(0.2, 1, (count, WIDTH))
            self.held += 1
            self.most = max(self.most, self.held)
            weakref.finalize(rows, self._give_back)
            yield rows


def scored(metric: str, rows: Lent) -> Any:
    groups = np.arange(rows.n) % (rows.n // 2) if metric == "diversity" else None
    return METRICS[metric].estimate(Sample(rows, rows.n, groups), KNOWN, METRICS[metric].options())


@pytest.mark.parametrize("metric", STREAMED)
def test_batches_are_let_go(metric: str) -> None:
    rows = Lent(1_000, 50)
    assert scored(metric, rows).value > 0
    assert rows.most <= 3


@pytest.mark.slow
@pytest.mark.parametrize("metric", STREAMED)
def test_an_image_takes_a_few_numbers_and_no_row(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((mmd, "ALL_PAIRS"), (cmmd, "ALL_PAIRS"), (diversity, "_MOST"), (fid_bias, "_MOST")):
        monkeypatch.setattr(module, name, 1_000)
    peaks = []
    for n in (5_000, 30_000):
        tracemalloc.start()
        scored(metric, Lent(n, 64))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 200 * 25_000
