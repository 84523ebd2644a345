"""The metrics against torch-fidelity, closed forms, brute force and known bugs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from pytest_sdbench.metrics.clip_score import clip_score
from pytest_sdbench.metrics.distances.kid import kid
from pytest_sdbench.metrics.frechet import fid, fid_influence
from pytest_sdbench.metrics.inception_score import InceptionScore, inception_score
from pytest_sdbench.metrics.moments import FeatureStatistics, Moments


def features(n: int, width: int, seed: int, *, shift: float = 0.0) -> np.ndarray:
    """Correlated, skewed, non-negative features, as pooled activations are."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((n, width)) @ np.random.default_rng(99).standard_normal((width, width))
    return np.maximum(mixed / math.sqrt(width) + 0.3 + shift, 0.0) ** 1.5


def moments_of(rows: np.ndarray, batch: int = 100) -> FeatureStatistics:
    moments = Moments(rows.shape[1])
    for start in range(0, len(rows), batch):
        moments.update(rows[start : start + batch])
    return moments.statistics()


ROWS = features(50, 8, 1)
INCOMPLETE = InceptionScore(20)
INCOMPLETE.update(np.zeros((19, 3)))


class TestMoments:
    def test_equal_numpy_in_float64_whatever_comes_in(self) -> None:
        rows = (features(3000, 32, 0) + 100.0).astype(np.float32)
        got, expected = moments_of(rows), rows.astype(np.float64)
        np.testing.assert_allclose(got.mu, expected.mean(axis=0), rtol=1e-13)
        np.testing.assert_allclose(got.sigma, np.cov(expected, rowvar=False), rtol=1e-11, atol=1e-13)
        assert got.n == 3000

    @pytest.mark.parametrize("batch", [1, 7, 32, 1000])
    def test_depend_neither_on_the_batch_size_nor_on_looking(self, batch: int) -> None:
        rows = features(700, 16, 1)
        whole, looked = moments_of(rows, 700), Moments(16)
        for start in range(0, 700, batch):
            looked.update(rows[start : start + batch])
            if looked.n > 1:
                looked.statistics()
        assert np.array_equal(whole.mu, looked.statistics().mu)
        assert np.array_equal(whole.sigma, looked.statistics().sigma)

    def test_of_merged_parts_in_another_order_equal_the_whole(self) -> None:
        rows = features(700, 16, 3)
        first, second = Moments(16), Moments(16)
        first.update(rows[:122:-1])
        second.update(rows[122::-1])
        first.merge(second)
        first.merge(Moments(16))
        np.testing.assert_allclose(first.statistics().sigma, np.cov(rows, rowvar=False), rtol=0, atol=1e-12)
        assert first.n == 700

    def test_survive_a_large_common_offset(self) -> None:
        # The sum of squares minus the square of the sum loses everything here.
        rows = features(5000, 4, 4) + 1e7
        expected = np.cov(rows - 1e7, rowvar=False)
        naive = (rows.T @ rows - len(rows) * np.outer(rows.mean(0), rows.mean(0))) / (len(rows) - 1)
        assert np.abs(naive - expected).max() > 1e-3
        np.testing.assert_allclose(moments_of(rows).sigma, expected, rtol=1e-6)


class TestFid:
    @pytest.mark.parametrize(("n", "width"), [(300, 8), (2000, 64), (300, 100)])
    def test_equals_torch_fidelity_and_the_matrix_root_and_is_symmetric(self, n: int, width: int) -> None:
        rows = features(n, width, 1), features(n + 50, width, 2, shift=0.2)
        statistics = [fid_features_to_statistics(torch.from_numpy(each)) for each in rows]
        theirs = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
        a, b = map(moments_of, rows)
        root = sqrtm(a.sigma @ b.sigma).real
        by_root = np.square(a.mu - b.mu).sum() + np.trace(a.sigma + b.sigma - 2 * root)
        assert [fid(a, b), fid(b, a)] == pytest.approx([theirs] * 2, rel=1e-8)
        assert fid(a, b) == pytest.approx(by_root, rel=1e-8)

    @given(st.lists(st.floats(0, 10), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
    def test_equals_the_closed_form_for_diagonal_covariances(self, variances: list[float], seed: int) -> None:
        rng = np.random.default_rng(seed)
        first = np.array(variances)
        second, (mu1, mu2) = rng.uniform(0, 10, len(first)), rng.normal(size=(2, len(first)))
        expected = np.square(mu1 - mu2).sum() + np.square(np.sqrt(first) - np.sqrt(second)).sum()
        got = fid(FeatureStatistics(mu1, np.diag(first)), FeatureStatistics(mu2, np.diag(second)))
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-9)

    def test_of_a_set_with_itself_is_zero(self) -> None:
        a = moments_of(features(500, 32, 5))
        assert abs(fid(a, a)) < 1e-9 * np.trace(a.sigma)

    def test_survives_a_covariance_without_full_rank(self) -> None:
        rows, other = features(500, 32, 8), features(500, 32, 9)
        rows[:, 5] = rows[:, 6] = 0.0
        other[:, 6] = 0.0
        a, b = moments_of(rows), moments_of(other)
        assert math.isfinite(fid(a, b))
        assert fid(a, b) == pytest.approx(fid(b, a), rel=1e-6)
        assert np.isfinite(fid_influence(a, b)(rows)).all()


class TestInceptionScore:
    @pytest.mark.parametrize(
        ("n", "splits", "seed"), [(500, 10, 2020), (123, 10, 2020), (64, 1, 7), (97, 4, 0), (200, 10, None)]
    )
    def test_equals_torch_fidelity(self, n: int, splits: int, seed: int | None) -> None:
        logits = np.random.default_rng(n).normal(0, 3, (n, 20))
        theirs = isc_features_to_metric(torch.from_numpy(logits), splits, seed is not None, seed)
        ours = inception_score(logits, splits=splits, shuffle_seed=seed)
        assert ours == pytest.approx(theirs["inception_score_mean"], rel=1e-12)

    def test_of_certain_and_even_classes_is_their_number_and_of_equal_predictions_one(self) -> None:
        logits = np.repeat(1e4 * np.eye(7), 30, axis=0)
        assert inception_score(logits, splits=1) == pytest.approx(7.0, rel=1e-12)
        assert inception_score(np.tile(np.arange(9.0), (50, 1))) == pytest.approx(1.0, rel=1e-12)


def kid_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """Write the definition out: a double loop over pairs."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    xy = sum(k(a, b) for a in x for b in y) / (n * m)
    return xx + yy - 2 * xy


class TestKid:
    def test_equals_a_double_loop(self) -> None:
        x, y = features(30, 5, 1), features(41, 5, 2, shift=0.4)
        assert kid(x, y) == pytest.approx(kid_by_hand(x, y), rel=1e-11)

    def test_does_not_depend_on_the_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x, y = features(100, 5, 3), features(77, 5, 4)
        whole = kid(x, y)
        monkeypatch.setattr("pytest_sdbench.metrics.distances.mmd._BLOCK", 13)
        assert kid(x, y) == pytest.approx(whole, rel=1e-10)

    @pytest.mark.parametrize(("n", "subsets", "size"), [(400, 1, 400), (500, 20, 100)])
    def test_of_subsets_equals_torch_fidelity(self, n: int, subsets: int, size: int) -> None:
        x, y = features(n, 64, 7), features(n + 100 * (subsets > 1), 64, 8, shift=0.1)
        theirs = kid_features_to_metric(
            torch.from_numpy(x), torch.from_numpy(y), kid_subsets=subsets, kid_subset_size=size, verbose=False
        )
        rng = np.random.RandomState(2020)
        draws = [[rng.choice(len(rows), size, replace=False) for rows in (x, y)] for _ in range(subsets)]
        ours = np.array([kid(x[ours], y[theirs]) for ours, theirs in draws])
        assert ours.mean() == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
        assert ours.std() == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-9)
        if subsets == 1:
            assert kid(x, y) == pytest.approx(ours[0], rel=1e-9)


def test_clip_score_is_the_mean_with_its_standard_error_if_there_are_two() -> None:
    value, error = clip_score(np.array([0.2, 0.3, 0.25, -0.05], np.float32))
    assert value == pytest.approx(0.175)
    assert error == pytest.approx(np.std([0.2, 0.3, 0.25, -0.05], ddof=1) / 2)
    assert clip_score(np.array([0.3])) == (0.3, None)


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda: Moments(4).update(np.zeros((2, 3))), r"\[B, 4\], not \[2, 3\]"),
        (lambda: Moments(2).update(np.array([[0.0, np.nan]])), "NaN"),
        (lambda: Moments(2).statistics(), "at least 2 images, not 0"),
        (lambda: Moments(0), "at least 1"),
        (lambda: fid(moments_of(ROWS), moments_of(ROWS[:, :4])), "8 features and the reference 4"),
        (lambda: kid(ROWS, ROWS[:, :4]), "do not match"),
        (lambda: kid(ROWS[:1], ROWS), "at least 2"),
        (lambda: INCOMPLETE.score(), "19 of 20 images"),
        (lambda: INCOMPLETE.update(np.zeros((2, 3))), "more than the announced 20"),
        (lambda: InceptionScore(9), "9 images cannot be split in 10"),
        (lambda: clip_score(np.zeros(0)), "no images"),
        (lambda: clip_score(np.array([29.58])), "cosines"),
    ],
)
def test_what_cannot_be_computed_is_refused(compute: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute()
