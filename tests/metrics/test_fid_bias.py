"""Features whose tails are heavy because some images lie farther from the mean than others."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pytest_sdbench.metrics.fid import fid_estimate
from pytest_sdbench.metrics.fid_bias import Scales, scales, squared_scales, sum_of_roots
from tests.metrics.populations import Array, eigenvalues, exact, moments, power_law


def distances(rows: Array) -> Array:
    return np.asarray(np.square(rows - rows.mean(axis=0)).sum(axis=1))


class TestSquaredScales:
    def test_are_those_that_the_images_were_drawn_with(self) -> None:
        rng = np.random.default_rng(1)
        true = 3 / rng.chisquare(5, 3_000)
        rows = rng.normal(size=(3_000, 400)) * np.sqrt(true)[:, None] * np.sqrt(power_law(400, 0.3))
        found = squared_scales(distances(rows), moments(rows))
        assert found.mean() == pytest.approx(1)
        assert found.min() >= 0
        # 400 features of which the first count most tell a scale to some 8 %.
        off = np.log(found / (true / true.mean()))
        assert np.abs(off).mean() < 0.1

    def test_vary_as_much_as_the_true_ones_where_a_feature_has_few_images(self) -> None:
        rng = np.random.default_rng(9)
        found = []
        for _ in range(300):
            true = rng.choice([0.5, 1.5], 80)
            rows = rng.normal(size=(80, 40)) * np.sqrt(true)[:, None]
            found.append(squared_scales(distances(rows), moments(rows)).var())
        assert np.mean(found) == pytest.approx(0.25, rel=0.05)

    @pytest.mark.parametrize("exponent", [0.0, 1.0])
    def test_gaussian_images_have_nearly_one(self, exponent: float) -> None:
        rng = np.random.default_rng(2)
        spread, plain = [], []
        for _ in range(20):
            rows = rng.normal(size=(600, 40)) * np.sqrt(power_law(40, exponent))
            away = distances(rows)
            plain.append((away / away.mean()).var())
            spread.append(squared_scales(away, moments(rows)).var())
        assert np.mean(spread) < 0.1 * np.mean(plain)

    @pytest.mark.parametrize("images", ["on a sphere", "all the same"])
    def test_images_that_vary_less_than_gaussian_ones_have_one(self, images: str) -> None:
        rows = (
            np.ones((10, 3)) if images == "all the same" else np.random.default_rng(3).normal(size=(500, 20))
        )
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        assert (squared_scales(distances(rows), moments(rows)) == 1).all()


class TestScales:
    def test_points_stand_for_all_images(self) -> None:
        squares = 1 / np.random.default_rng(4).chisquare(5, 2_000)
        squares /= squares.mean()
        found = scales(7 * squares)
        assert len(found.squares) < 40
        assert found.shares.sum() == pytest.approx(1)
        assert found.squares @ found.shares == pytest.approx(1)
        for power in (2, 5):
            assert found.squares**power @ found.shares == pytest.approx((squares**power).mean(), rel=1e-9)
        for e in (0.1, 20.0, -0.5 / squares.max(), 0.3 + 0.2j):
            got = (e * found.squares / (1 + e * found.squares)) @ found.shares
            assert got == pytest.approx((e * squares / (1 + e * squares)).mean(), rel=1e-4)

    def test_as_few_points_as_there_are_scales(self) -> None:
        found = scales(np.array([1.0, 1.0, 1.0, 5.0]))
        np.testing.assert_allclose(found.squares, [0.5, 2.5])
        np.testing.assert_allclose(found.shares, [0.75, 0.25])
        np.testing.assert_allclose(scales(np.full(9, 3.0)).squares, [1.0])


class TestSumOfRoots:
    @pytest.mark.parametrize("times", [2, 6])
    def test_is_that_of_the_population_where_images_have_scales(self, times: int) -> None:
        rng = np.random.default_rng(5)
        true, n = power_law(80, 0.7), 80 * times
        recovered, blind = [], []
        for _ in range(12):
            squares = 3 / rng.chisquare(5, n)
            squares /= squares.mean()
            rows = rng.normal(size=(n, 80)) * np.sqrt(true) * np.sqrt(squares)[:, None]
            values = eigenvalues(rows.T @ rows / n)
            recovered.append(sum_of_roots(values, n, scales(squares)))
            blind.append(sum_of_roots(values, n))
        expected = np.sqrt(true).sum()
        assert np.mean(recovered) == pytest.approx(expected, rel=0.008)
        assert np.mean(blind) < 0.98 * expected

    def test_of_two_features_is_the_contour_integral(self) -> None:
        # Of two scales e is the root of a quadratic equation, and the contour may be any other one.
        values, n, known = np.array([0.5, 2.0]), 9, Scales(np.array([0.5, 3.0]), np.array([0.8, 0.2]))
        angle = (np.arange(40_000) + 0.5) * 2 * np.pi / 40_000
        z = 1.6 + 1.25 * np.cos(angle) + 0.6j * np.sin(angle)
        step = (-1.25 * np.sin(angle) + 0.6j * np.cos(angle)) * 2 * np.pi / 40_000
        g = (values / (values - z[:, None])).sum(axis=1) / n
        (s, t), (p, q) = known.squares, known.shares
        # g = p e s / (1 + e s) + q e t / (1 + e t), multiplied out.
        a, b, c = s * t * (1 - g), p * s + q * t - g * (s + t), -g
        both = [(-b + sign * np.sqrt(b * b - 4 * a * c)) / (2 * a) for sign in (1, -1)]
        slope = (values / np.square(values - z[:, None])).sum(axis=1)
        # The trace of a covariance is that of its sample: only one of the two has it.
        (e,) = [e for e in both if np.isclose((z * e / g * slope * step).sum() / (2j * np.pi), values.sum())]
        expected = (np.sqrt(z * e / g) * slope * step).sum() / (1j * np.pi)
        assert sum_of_roots(values, n, known) == pytest.approx(expected.real, rel=1e-6)

    def test_one_image_that_is_nearly_all_there_is_has_no_solution(self) -> None:
        squares = np.where(np.arange(512) == 0, 2_000.0, 1.0)
        rows = np.random.default_rng(0).normal(size=(512, 64)) * np.sqrt(
            np.outer(squares, power_law(64, 0.7))
        )
        values = eigenvalues(np.cov(rows, rowvar=False))
        assert math.isnan(sum_of_roots(values, 511, scales(squares)))


class TestFid:
    WIDTH = 64
    REFERENCE = exact(np.diag(power_law(WIDTH, 0.7)[::-1]))

    def rows(self, rng: np.random.Generator, n: int) -> Array:
        squares = 3 / rng.chisquare(5, n)
        sigma = power_law(self.WIDTH, 0.7)
        return np.asarray(rng.normal(size=(n, self.WIDTH)) * np.sqrt(np.outer(squares, sigma)))

    @pytest.mark.slow
    @pytest.mark.parametrize(("times", "count"), [(2, 80), (8, 60)])
    def test_heavy_tails_leave_hardly_a_bias(self, times: int, count: int) -> None:
        rng = np.random.default_rng(7)
        sigma = power_law(self.WIDTH, 0.7)
        truth = 2 * (sigma.sum() - np.sqrt(sigma * sigma[::-1]).sum())
        found = []
        for _ in range(count):
            rows = self.rows(rng, times * self.WIDTH)
            found.append(fid_estimate([rows[:50], rows[50:]], self.REFERENCE))
        off = np.array([each.corrected for each in found], float) - truth
        raw = np.array([each.value for each in found]) - truth
        assert abs(off.mean()) < 0.1 * raw.mean()

    @pytest.mark.parametrize("grouped", [False, True])
    def test_corrected_is_the_jackknife_over_blocks_of_images_with_their_scales(self, grouped: bool) -> None:
        rng = np.random.default_rng(10)
        n = 4 * self.WIDTH
        rows = self.rows(rng, n)
        # Five prompts follow each other twice, then the next five.
        groups = np.arange(n) % 5 + 5 * (np.arange(n) // 10) if grouped else np.arange(n)
        squares = squared_scales(distances(rows), moments(rows))

        def elliptical(kept: Array) -> float:
            part = moments(rows[kept])
            root = np.diag(np.sqrt(np.diag(self.REFERENCE.sigma)))
            values = eigenvalues(root @ part.sigma @ root)
            trace = float(np.trace(part.sigma))
            roots = sum_of_roots(values, int(kept.sum()) - 1, scales(squares[kept]))
            bias = trace / kept.sum()
            return float(part.mu @ part.mu + trace + np.trace(self.REFERENCE.sigma) - 2 * roots - bias)

        left = [elliptical(groups % 5 != k) for k in range(5)]
        expected = 5 * elliptical(np.ones(n, bool)) - 4 * np.mean(left)
        found = fid_estimate([rows[:50], rows[50:]], self.REFERENCE, groups if grouped else None)
        assert found.corrected == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("nearly_all", ["one image", "one prompt"])
    def test_what_is_nearly_all_there_is_leaves_the_bias_unknown(self, nearly_all: str) -> None:
        n = 2 * self.WIDTH
        rows, groups = self.rows(np.random.default_rng(11), n), np.arange(n)
        if nearly_all == "one image":
            rows[0] *= 10_000
        else:
            groups = np.maximum(groups - n // 2 + 1, 0) % 5
        found = fid_estimate([rows], self.REFERENCE, groups)
        assert found.corrected is None
        assert found.standard_error is not None
        assert found.at(10_000) is None
