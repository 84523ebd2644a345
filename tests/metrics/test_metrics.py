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
from pytest_sdbench.metrics.frechet import fid, fid_influence
from pytest_sdbench.metrics.inception_score import InceptionScore, inception_score
from pytest_sdbench.metrics.kid import kid
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
    def test_equal_numpy(self) -> None:
        rows = features(1000, 32, 0) + 100.0
        got = moments_of(rows)
        np.testing.assert_allclose(got.mu, rows.mean(axis=0), rtol=1e-13)
        np.testing.assert_allclose(got.sigma, np.cov(rows, rowvar=False), rtol=1e-11, atol=1e-13)
        assert got.n == 1000

    @pytest.mark.parametrize("batch", [1, 7, 32, 1000])
    def test_do_not_depend_on_the_batch_size(self, batch: int) -> None:
        rows = features(700, 16, 1)
        whole, parts = moments_of(rows, 700), moments_of(rows, batch)
        assert np.array_equal(whole.mu, parts.mu)
        assert np.array_equal(whole.sigma, parts.sigma)

    def test_hardly_depend_on_the_order(self) -> None:
        rows = features(700, 16, 2)
        forward, backward = moments_of(rows), moments_of(rows[::-1])
        np.testing.assert_allclose(forward.sigma, backward.sigma, rtol=0, atol=1e-12)

    def test_of_merged_parts_equal_the_whole(self) -> None:
        rows = features(700, 16, 3)
        first, second = Moments(16), Moments(16)
        first.update(rows[:123])
        second.update(rows[123:])
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

    def test_looking_changes_nothing(self) -> None:
        rows = features(700, 8, 5)
        moments = Moments(8)
        for start in range(0, 700, 50):
            moments.update(rows[start : start + 50])
            moments.statistics()
        assert np.array_equal(moments.statistics().sigma, moments_of(rows).sigma)

    def test_are_float64_whatever_comes_in(self) -> None:
        rows = features(3000, 4, 6).astype(np.float32)
        np.testing.assert_allclose(moments_of(rows).mu, rows.astype(np.float64).mean(0), rtol=1e-14)


class TestFid:
    @pytest.mark.parametrize(("n", "width"), [(300, 8), (2000, 64), (300, 100)])
    def test_equals_torch_fidelity(self, n: int, width: int) -> None:
        a, b = features(n, width, 1), features(n + 50, width, 2, shift=0.2)
        theirs = fid_statistics_to_metric(
            fid_features_to_statistics(torch.from_numpy(a)),
            fid_features_to_statistics(torch.from_numpy(b)),
            False,
        )
        assert fid(moments_of(a), moments_of(b)) == pytest.approx(
            theirs["frechet_inception_distance"], rel=1e-8
        )

    def test_equals_the_matrix_square_root(self) -> None:
        a, b = moments_of(features(900, 40, 3)), moments_of(features(800, 40, 4, shift=0.1))
        root = sqrtm(a.sigma @ b.sigma).real
        expected = np.square(a.mu - b.mu).sum() + np.trace(a.sigma + b.sigma - 2 * root)
        assert fid(a, b) == pytest.approx(expected, rel=1e-8)

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

    def test_is_symmetric(self) -> None:
        a, b = moments_of(features(500, 32, 6)), moments_of(features(500, 32, 7, shift=0.3))
        assert fid(a, b) == pytest.approx(fid(b, a), rel=1e-10)

    def test_survives_a_covariance_without_full_rank(self) -> None:
        a, b = features(500, 32, 8), features(500, 32, 9)
        a[:, 5] = a[:, 6] = 0.0
        b[:, 6] = 0.0
        value = fid(moments_of(a), moments_of(b))
        assert math.isfinite(value)
        assert value == pytest.approx(fid(moments_of(b), moments_of(a)), rel=1e-6)


class TestFidStandardError:
    def test_is_the_spread_over_independent_samples(self) -> None:
        width, n, reference = 8, 400, moments_of(features(20_000, 8, 1))
        values, errors = [], []
        for seed in range(2, 152):
            rows = features(n, width, seed, shift=0.3)
            sample = moments_of(rows)
            values.append(fid(sample, reference))
            errors.append(fid_influence(sample, reference)(rows).std(ddof=1) / math.sqrt(n))
        assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.2)

    def test_is_finite_without_full_rank(self) -> None:
        rows = features(300, 8, 3)
        rows[:, 2] = 0.0
        reference = features(300, 8, 4)
        reference[:, 3] = 0.0
        assert np.isfinite(fid_influence(moments_of(rows), moments_of(reference))(rows)).all()

    def test_is_not_what_a_bootstrap_says(self) -> None:
        # The once-popular way: every resampled FID lies above the measured one, since repeats shrink the
        # covariance.
        rows, reference = features(300, 32, 5), moments_of(features(5000, 32, 6))
        measured = fid(moments_of(rows), reference)
        rng = np.random.default_rng(0)
        bootstrap = [fid(moments_of(rows[rng.integers(0, 300, 300)]), reference) for _ in range(20)]
        error = fid_influence(moments_of(rows), reference)(rows).std(ddof=1) / math.sqrt(300)
        assert min(bootstrap) > measured + 2 * error


class TestInceptionScore:
    @pytest.mark.parametrize(
        ("n", "splits", "seed"), [(500, 10, 2020), (123, 10, 2020), (64, 1, 7), (97, 4, 0), (200, 10, None)]
    )
    def test_equals_torch_fidelity(self, n: int, splits: int, seed: int | None) -> None:
        logits = np.random.default_rng(n).normal(0, 3, (n, 20))
        theirs = isc_features_to_metric(torch.from_numpy(logits), splits, seed is not None, seed)
        ours = inception_score(logits, splits=splits, shuffle_seed=seed)
        assert ours == pytest.approx(theirs["inception_score_mean"], rel=1e-12)

    def test_of_certain_and_even_classes_is_their_number(self) -> None:
        logits = np.repeat(1e4 * np.eye(7), 30, axis=0)
        assert inception_score(logits, splits=1) == pytest.approx(7.0, rel=1e-12)

    def test_of_equal_predictions_is_one(self) -> None:
        assert inception_score(np.tile(np.arange(9.0), (50, 1))) == pytest.approx(1.0, rel=1e-12)

    @pytest.mark.parametrize("batch", [1, 7, 32])
    def test_does_not_depend_on_the_batch_size(self, batch: int) -> None:
        logits = np.random.default_rng(2).normal(0, 3, (150, 12)).astype(np.float32)
        score = InceptionScore(150)
        for start in range(0, 150, batch):
            score.update(logits[start : start + batch])
        assert score.score() == pytest.approx(inception_score(logits), rel=1e-12)


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
        monkeypatch.setattr("pytest_sdbench.metrics.kid._BLOCK", 13)
        assert kid(x, y) == pytest.approx(whole, rel=1e-10)

    @pytest.mark.parametrize(("n", "subsets", "size"), [(400, 1, 400), (500, 20, 100)])
    def test_of_subsets_equals_torch_fidelity(self, n: int, subsets: int, size: int) -> None:
        x, y = features(n, 64, 7), features(n + 100 * (subsets > 1), 64, 8, shift=0.1)
        theirs = kid_features_to_metric(
            torch.from_numpy(x),
            torch.from_numpy(y),
            kid_subsets=subsets,
            kid_subset_size=size,
            verbose=False,
        )
        rng = np.random.RandomState(2020)
        draws = [[rng.choice(len(rows), size, replace=False) for rows in (x, y)] for _ in range(subsets)]
        ours = np.array([kid(x[ours], y[theirs]) for ours, theirs in draws])
        assert ours.mean() == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
        assert ours.std() == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-9)
        if subsets == 1:
            assert kid(x, y) == pytest.approx(ours[0], rel=1e-9)

    def test_is_unbiased_where_the_diagonal_would_bias_it(self) -> None:
        # Two samples of one distribution: zero on average; with the diagonal left in, always above.
        values, biased = [], []
        for seed in range(60):
            x, y = features(60, 4, 2 * seed), features(60, 4, 2 * seed + 1)
            values.append(kid(x, y))
            diagonal = sum(float((a @ a / 4 + 1) ** 3) for a in (*x, *y))
            biased.append(values[-1] + diagonal / (60 * 60))
        assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(60)
        assert np.mean(biased) > 10 * np.std(values) / math.sqrt(60)


class TestClipScore:
    def test_is_the_mean_with_its_standard_error(self) -> None:
        cosines = np.array([0.2, 0.3, 0.25, -0.05], np.float32)
        value, error = clip_score(cosines)
        assert value == pytest.approx(0.175)
        assert error == pytest.approx(np.std([0.2, 0.3, 0.25, -0.05], ddof=1) / 2)

    def test_of_one_image_has_no_standard_error(self) -> None:
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
