"""Standard errors and values without bias, against known populations, simulation and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.linalg import sqrtm

from pytest_sdbench.evaluation.estimate import estimate
from pytest_sdbench.metrics.distances.kid import kid
from pytest_sdbench.metrics.distances.mmd import cubic, mmd_estimate
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.fid import fid_estimate
from pytest_sdbench.metrics.fid_bias import degenerate_variance, sum_of_roots
from pytest_sdbench.metrics.frechet import fid, fid_influence
from pytest_sdbench.metrics.inception_score import inception_score
from pytest_sdbench.metrics.moments import FeatureStatistics
from pytest_sdbench.metrics.standard_error import groups_of, standard_error
from tests.metrics.populations import Array, eigenvalues, exact, moments, off, power_law, root_mean_square


def protocol(metric: str, splits: int = 1) -> Any:
    spec = SimpleNamespace(metric=metric, extractor="net", splits=splits, shuffle_seed=None)
    return SimpleNamespace(metrics={metric: spec})


def one(
    metric: str,
    rows: Array,
    reference: FeatureStatistics | None = None,
    groups: Array | None = None,
    *,
    splits: int = 1,
    batch: int = 10_000,
) -> Estimate:
    column = {"inception_score": "net-logits", "clip_score": "net-cosine"}.get(metric, "net")
    batches = [{column: rows[start : start + batch]} for start in range(0, len(rows), batch)]
    references = {} if reference is None else {metric: reference}
    found = estimate(protocol(metric, splits), batches, references, groups)[metric]
    assert isinstance(found, Estimate)
    return found


def measured(found: list[Estimate]) -> tuple[Array, Array, Array]:
    """Values, corrected values and standard errors of many sets of images."""
    assert all(each.corrected is not None and each.standard_error is not None for each in found)
    table = np.array([[each.value, each.corrected, each.standard_error] for each in found], float)
    return table[:, 0], table[:, 1], table[:, 2]


class TestStandardError:
    def test_is_that_of_a_mean(self) -> None:
        values = np.random.default_rng(0).normal(size=50)
        got = standard_error(values - values.mean())
        assert got == pytest.approx(values.std(ddof=1) / math.sqrt(50), rel=1e-12)

    def test_repeats_of_images_add_no_certainty(self) -> None:
        values = np.random.default_rng(1).uniform(0.2, 0.4, 40)
        once = one("clip_score", values)
        thrice = one("clip_score", np.repeat(values, 3), groups=np.repeat(np.arange(40), 3))
        blind = one("clip_score", np.repeat(values, 3))
        assert thrice.value == pytest.approx(once.value, rel=1e-12)
        assert thrice.standard_error == pytest.approx(once.standard_error, rel=1e-12)
        assert blind.standard_error < 0.6 * once.standard_error

    def test_images_of_one_prompt_count_together(self) -> None:
        rng = np.random.default_rng(2)
        groups = np.tile(np.arange(30), 4)

        def draw() -> Array:
            return np.asarray(0.3 + 0.02 * (rng.normal(size=30)[groups] + rng.normal(size=120)))

        values, _, errors = measured([one("clip_score", draw(), groups=groups) for _ in range(400)])
        assert root_mean_square(errors) == pytest.approx(values.std(ddof=1), rel=0.12)

    @pytest.mark.parametrize("blocks", [None, 2])
    def test_a_score_at_its_optimum(self, blocks: int | None) -> None:
        # The squared mean of columns whose mean is zero: all of its variance is of second order.
        rng = np.random.default_rng(27)
        n, width = 40, 500
        scores, errors = [], []
        for _ in range(200):
            rows = rng.normal(size=(n, width))
            mean = rows.mean(axis=0)
            score = mean @ mean
            if blocks is not None:
                halves = [rows[n // 2 :].mean(axis=0), rows[: n // 2].mean(axis=0)]
                score = 2 * score - np.mean([half @ half for half in halves])
            scores.append(score)
            errors.append(
                standard_error(2 * (rows - mean) @ mean, degenerate=2 * width / n**2, blocks=blocks)
            )
        assert root_mean_square(np.array(errors, float)) == pytest.approx(np.std(scores, ddof=1), rel=0.15)

    def test_prompts_are_the_same_group_wherever_they_stand(self) -> None:
        groups = groups_of(("cat", "dog", "cat", "owl"))
        assert groups[0] == groups[2]
        assert len(set(groups.tolist())) == 3
        assert groups_of(("cat", "dog", "owl")) is None

    def test_one_prompt_has_none(self) -> None:
        assert one("clip_score", np.array([0.1, 0.2]), groups=np.zeros(2, int)).standard_error is None


class TestSumOfRoots:
    @pytest.mark.parametrize("exponent", [0.0, 0.7, 1.5])
    def test_is_that_of_the_population(self, exponent: float) -> None:
        rng = np.random.default_rng(3)
        true, n = power_law(80, exponent), 160
        recovered, plain = [], []
        for _ in range(8):
            rows = rng.normal(size=(n, 80)) * np.sqrt(true)
            values = eigenvalues(rows.T @ rows / n)
            recovered.append(sum_of_roots(values, n))
            plain.append(np.sqrt(values).sum())
        expected = np.sqrt(true).sum()
        assert np.mean(recovered) == pytest.approx(expected, rel=0.005)
        assert np.mean(plain) < 0.95 * expected

    @pytest.mark.parametrize("values", [[1.0, 2.0, 2.0, 3.0], [0.3, 1.1, 1.4, 9.0], [2.0, 2.0, 2.0, 2.0]])
    def test_is_the_contour_integral(self, values: list[float]) -> None:
        n, p = 12, len(values)
        # An ellipse around the eigenvalues and the zeros between them; it leaves the origin outside.
        left, right = 0.3 * values[0], 2 * values[-1]
        angle = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
        middle, half = (left + right) / 2, (right - left) / 2
        z = middle + half * np.cos(angle) + 0.5j * half * np.sin(angle)
        step = (-half * np.sin(angle) + 0.5j * half * np.cos(angle)) * (angle[1] - angle[0])
        transform = ((1 / (np.array(values) - z[:, None])).sum(axis=1) - (n - p) / z) / n
        # The branch of the root is followed around the contour.
        root = np.sqrt(np.abs(transform)) * np.exp(0.5j * np.unwrap(np.angle(-transform)))
        integral = n / (np.pi * 1j) * (root * step).sum()
        assert sum_of_roots(np.array(values), n) == pytest.approx(integral.real, rel=1e-6)

    def test_many_samples_need_no_correction(self) -> None:
        values = power_law(10, 1.0)[::-1]
        assert sum_of_roots(values, 10_000_000) == pytest.approx(np.sqrt(values).sum(), rel=1e-5)


class TestFid:
    WIDTH = 32
    REFERENCE = exact(np.diag(power_law(WIDTH, 0.7)))
    SIGMA = power_law(WIDTH, 0.7) * np.tile([0.5, 1.6], WIDTH // 2)
    SHIFT = 0.1
    # Both covariances are diagonal, so the roots commute and the distance is elementary.
    TRUTH = float(WIDTH * SHIFT**2 + np.square(np.sqrt(SIGMA) - np.sqrt(np.diag(REFERENCE.sigma))).sum())

    def estimates(self, n: int, count: int, seed: int) -> list[Estimate]:
        rng = np.random.default_rng(seed)
        rows = (rng.normal(size=(n, self.WIDTH)) * np.sqrt(self.SIGMA) + self.SHIFT for _ in range(count))
        return [one("fid", each, self.REFERENCE) for each in rows]

    @pytest.mark.slow
    def test_corrected_is_that_of_the_population_from_twice_the_width_on(self) -> None:
        values, corrected, errors = measured(self.estimates(2 * self.WIDTH, 60, 5))
        assert abs(off(corrected, self.TRUTH)) < 4
        assert (values - self.TRUTH).min() > 3 * errors.mean()
        assert root_mean_square(errors) == pytest.approx(corrected.std(ddof=1), rel=0.3)

    @pytest.mark.slow
    def test_corrected_is_without_bias_at_distance_zero_and_may_be_negative(self) -> None:
        rng = np.random.default_rng(6)
        width = 16
        reference = exact(np.diag(power_law(width, 1.0)))
        rows = [rng.normal(size=(6 * width, width)) * np.sqrt(power_law(width, 1.0)) for _ in range(150)]
        values, corrected, errors = measured([one("fid", each, reference) for each in rows])
        assert abs(off(corrected, 0.0)) < 4
        assert corrected.min() < 0 < values.min()
        # The first order vanishes here: what remains is the second, once and not twice (which is 1.4 times).
        assert float(np.median(errors)) == pytest.approx(corrected.std(ddof=1), rel=0.25)

    @pytest.mark.slow
    def test_predicts_the_value_of_another_number_of_images(self) -> None:
        few = self.estimates(2 * self.WIDTH, 60, 9)
        many = np.array([each.value for each in self.estimates(8 * self.WIDTH, 40, 10)])
        predicted = np.array([each.at(8 * self.WIDTH) for each in few], float)
        plain = np.array([each.value for each in few])
        gap = plain.mean() - many.mean()
        assert abs(predicted.mean() - many.mean()) < 0.25 * gap
        assert few[0].at(2 * self.WIDTH) == few[0].value

    def test_degenerate_variance_is_the_variance_at_distance_zero(self) -> None:
        rng = np.random.default_rng(11)
        width, n, sigma = 16, 400, power_law(16, 0.8)
        reference = exact(np.diag(sigma))
        values, predicted = [], []
        for _ in range(800):
            rows = rng.normal(size=(n, width)) * np.sqrt(sigma)
            sample = moments(rows)
            values.append(fid(sample, reference))
            predicted.append(degenerate_variance(fid_influence(sample, reference).eigenvalues, sample))
        assert np.mean(predicted) == pytest.approx(np.var(values, ddof=1), rel=0.2)

    def test_degenerate_variance_of_one_feature(self) -> None:
        # FID of one feature is (mean - 0)^2 + (sd - 1)^2, and both are drawn directly.
        rng = np.random.default_rng(28)
        n = 300
        sd = np.sqrt(rng.chisquare(n - 1, 200_000) / (n - 1))
        values = np.square(rng.normal(0, 1 / math.sqrt(n), 200_000)) + np.square(sd - 1)
        sample = FeatureStatistics(np.zeros(1), np.ones((1, 1)), n)
        assert degenerate_variance(np.ones(1), sample) == pytest.approx(values.var(), rel=0.04)

    def test_influence_is_the_derivative_with_the_weight_of_an_image(self) -> None:
        rng = np.random.default_rng(12)
        rows = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5)) + 0.5
        reference = exact(np.cov(rng.normal(size=(60, 5)), rowvar=False), np.full(5, 0.1))

        def weighted(weights: Array) -> float:
            mu = np.average(rows, axis=0, weights=weights)
            sigma = np.cov(rows, rowvar=False, aweights=weights, ddof=0)
            shift = mu - reference.mu
            root = np.real(sqrtm(sigma @ reference.sigma))
            return float(shift @ shift + np.trace(sigma + reference.sigma - 2 * root))

        sigma = np.cov(rows, rowvar=False, ddof=0)
        got = fid_influence(FeatureStatistics(rows.mean(axis=0), sigma, 40), reference)(rows)
        step = 1e-4
        for i in range(0, 40, 7):
            more, less = np.ones(40), np.ones(40)
            more[i], less[i] = 1 + step, 1 - step
            numeric = 40 * (weighted(more) - weighted(less)) / (2 * step)
            assert got[i] == pytest.approx(numeric, rel=1e-4, abs=1e-5)

    def test_influence_of_wide_features(self) -> None:
        # Wider than what is computed at a time; T is also R (S R)^-1/2, which takes no symmetric root.
        rng = np.random.default_rng(29)
        width = 300
        rows = rng.normal(size=(900, width)) * rng.uniform(0.5, 2, width) + 0.1
        other = rng.normal(size=(700, width)) @ rng.normal(size=(width, width))
        sample = moments(rows)
        reference = exact(np.cov(other, rowvar=False))
        transport = reference.sigma @ np.linalg.inv(np.real(sqrtm(sample.sigma @ reference.sigma)))
        centred = rows - sample.mu
        expected = 2 * centred @ sample.mu + ((centred - centred @ transport) * centred).sum(axis=1)
        got = fid_influence(sample, reference)(rows)
        np.testing.assert_allclose(got - got.mean(), expected - expected.mean(), rtol=1e-6, atol=1e-6)

    def test_corrected_is_the_jackknife_of_what_is_exact_for_gaussians(self) -> None:
        rng = np.random.default_rng(30)
        width, n = 300, 1003
        sigma = power_law(width, 0.5)
        rows = rng.normal(size=(n, width)) * np.sqrt(sigma) + 0.2
        turned = np.linalg.qr(rng.normal(size=(width, width)))[0]
        reference = exact((turned * sigma) @ turned.T)

        def gaussian(part: Array) -> float:
            covariance = np.cov(part, rowvar=False)
            values = np.sort(np.real(np.linalg.eigvals(covariance @ reference.sigma)))
            apart = part.mean(axis=0) @ part.mean(axis=0) - np.trace(covariance) / len(part)
            roots = sum_of_roots(values, len(part) - 1)
            return float(apart + np.trace(covariance) + np.trace(reference.sigma) - 2 * roots)

        left = [gaussian(rows[np.arange(n) % 5 != k]) for k in range(5)]
        expected = 5 * gaussian(rows) - 4 * np.mean(left)
        assert one("fid", rows, reference, batch=128).corrected == pytest.approx(expected, rel=1e-8)

    def test_without_twice_the_width_the_value_stands_alone(self) -> None:
        rows = np.random.default_rng(13).normal(size=(2 * self.WIDTH, self.WIDTH))
        for n in (self.WIDTH + 1, 2 * self.WIDTH - 1):
            found = fid_estimate([rows[:n]], self.REFERENCE)
            assert found.value > 0
            assert found.standard_error is None
            assert found.corrected is None
            assert found.at(10 * n) is None
        assert isinstance(fid_estimate([rows[: self.WIDTH]], self.REFERENCE), Undefined)
        assert fid_estimate([rows], self.REFERENCE).standard_error is not None

    @pytest.mark.slow
    def test_images_of_one_prompt_widen_the_error(self) -> None:
        rng = np.random.default_rng(14)
        n = 6 * self.WIDTH
        groups = np.tile(np.arange(n // 4), 4)
        found, blind = [], []
        for _ in range(100):
            of_prompts = rng.normal(size=(n // 4, self.WIDTH))[groups]
            rows = np.sqrt(0.5) * (of_prompts + rng.normal(size=(n, self.WIDTH)))
            rows = rows * np.sqrt(self.SIGMA) + self.SHIFT
            found.append(one("fid", rows, self.REFERENCE, groups))
            blind.append(one("fid", rows, self.REFERENCE))
        _, corrected, errors = measured(found)
        assert root_mean_square(errors) == pytest.approx(corrected.std(ddof=1), rel=0.25)
        assert root_mean_square(measured(blind)[2]) < 0.85 * root_mean_square(errors)
        # Images of one prompt resemble each other, so their bias is larger; blocks of whole prompts see it.
        assert abs(off(corrected, self.TRUTH)) < 4
        assert off(measured(blind)[1], self.TRUTH) > 4


class TestInceptionScore:
    TYPES = np.random.default_rng(15).normal(size=(40, 12)) * np.tile([[0.3], [8.0]], (20, 1))
    """Logits of the only images there are, doubtful and clear ones; all are equally frequent."""

    def divergences(self) -> Array:
        """KL(p(y|x) || p(y)) of each type, [40]; the true score is exp of their mean."""
        p = np.exp(self.TYPES)
        p /= p.sum(axis=1, keepdims=True)
        return np.asarray((p * np.log(p / p.mean(axis=0))).sum(axis=1))

    def draw(self, rng: np.random.Generator, n: int) -> Array:
        return np.asarray(self.TYPES[rng.integers(0, 40, n)])

    def test_corrected_is_that_of_infinitely_many_images(self) -> None:
        rng = np.random.default_rng(16)
        divergences = self.divergences()
        truth = math.exp(divergences.mean())
        found, luck = [], []
        for _ in range(500):
            drawn = rng.integers(0, 40, 150)
            found.append(one("inception_score", self.TYPES[drawn]))
            # What the draw moves the score to first order has the mean zero: without it little noise is left.
            luck.append(truth * (divergences[drawn].mean() - divergences.mean()))
        values, corrected, errors = measured(found)
        assert abs(off(corrected - luck, truth)) < 4
        assert off(values - luck, truth) < -20
        assert root_mean_square(errors) == pytest.approx(corrected.std(ddof=1), rel=0.12)

    def test_splits_change_the_value_and_not_the_corrected_one(self) -> None:
        rows = self.draw(np.random.default_rng(17), 600)
        whole, parts = one("inception_score", rows), one("inception_score", rows, splits=10)
        assert parts.value < whole.value
        assert parts.corrected == pytest.approx(whole.corrected, rel=1e-12)

    @pytest.mark.parametrize("splits", [1, 10])
    def test_pictures_that_repeat_with_their_prompts_say_no_more_than_once(self, splits: int) -> None:
        rows = self.draw(np.random.default_rng(22), 600)
        once, groups = one("inception_score", rows, splits=splits), np.repeat(np.arange(600), 4)
        again = one("inception_score", np.repeat(rows, 4, axis=0), groups=groups, splits=splits)
        assert again.value == pytest.approx(once.value)
        assert again.corrected == pytest.approx(once.corrected, rel=1e-6)
        assert again.standard_error == pytest.approx(once.standard_error)
        assert again.at(9600) == pytest.approx(once.at(2400), rel=1e-6)

    @pytest.mark.parametrize(("splits", "times"), [(1, 8), (4, 2)])
    def test_predicts_the_value_of_another_number_of_images(self, splits: int, times: int) -> None:
        rng = np.random.default_rng(18)
        images = 30 * np.eye(8)
        few = [
            one("inception_score", images[rng.integers(0, 8, 100 * splits)], splits=splits)
            for _ in range(200)
        ]
        n = 100 * splits * times
        many = [inception_score(images[rng.integers(0, 8, n)], splits=splits) for _ in range(200)]
        predicted = np.array([each.at(n) for each in few], float)
        between = math.hypot(predicted.std(), np.std(many)) / math.sqrt(200)
        gap = np.mean(many) - np.mean([each.value for each in few])
        assert gap > 10 * between
        assert abs(predicted.mean() - np.mean(many)) < 4 * between

    def test_too_few_images_for_the_classes_have_no_corrected_value(self) -> None:
        rng = np.random.default_rng(19)
        logits = 30 * np.eye(200)[rng.integers(0, 200, 300)]
        found = one("inception_score", logits)
        assert found.corrected is None
        assert found.standard_error is not None
        assert found.at(3000) is None

    def test_influence_is_the_derivative_with_the_weight_of_an_image(self) -> None:
        n = 400
        logits = self.draw(np.random.default_rng(20), n)
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

        def weighted(weights: Array) -> float:
            share = weights / weights.sum()
            return math.exp(float(share @ (p * np.log(p / (share @ p))).sum(axis=1)))

        found = one("inception_score", logits)
        assert found.value == pytest.approx(weighted(np.ones(n)), rel=1e-10)
        for i in range(0, n, 60):
            more, less = np.ones(n), np.ones(n)
            more[i], less[i] = 1 + 1e-4, 1 - 1e-4
            numeric = n * (weighted(more) - weighted(less)) / 2e-4
            # Influence is on the scale of the corrected value.
            moved = found.influence[i] * found.value / found.corrected
            assert moved == pytest.approx(numeric, rel=1e-5, abs=1e-6)


class TestKid:
    @staticmethod
    def reference(width: int = 4, n: int = 80) -> FeatureStatistics:
        rows = np.random.default_rng(21).normal(size=(n, width))
        return FeatureStatistics(rows.mean(axis=0), np.cov(rows, rowvar=False), n, rows)

    def test_standard_error_is_the_spread_over_sets_of_images(self) -> None:
        rng = np.random.default_rng(22)
        reference = self.reference(16, 300)
        found = [one("kid", rng.normal(0.6, 1, (200, 16)), reference) for _ in range(300)]
        found = [each for each in found if each.standard_error is not None]
        assert len(found) > 270
        values, _, errors = measured(found)
        assert root_mean_square(errors) == pytest.approx(values.std(ddof=1), rel=0.15)

    def test_is_that_of_the_population(self) -> None:
        rng = np.random.default_rng(26)
        kinds = rng.normal(size=(30, 3))
        rows = rng.normal(0.4, 1.2, (20, 3))

        def kernel(x: Array, y: Array) -> Array:
            return np.asarray((x @ y.T / 3 + 1) ** 3)

        # Images are of 30 kinds, equally often: two may be of one kind, rows of the reference are not.
        others = kernel(rows, rows)[~np.eye(20, dtype=bool)].mean()
        truth = kernel(kinds, kinds).mean() + others - 2 * kernel(kinds, rows).mean()
        found = [kid(kinds[rng.integers(0, 30, 8)], rows) for _ in range(1000)]
        assert abs(off(np.array(found), float(truth))) < 4

    def test_a_few_images_that_outweigh_the_rest_leave_the_error_open(self) -> None:
        rows = np.random.default_rng(27).normal(size=(300, 4))
        assert one("kid", rows, self.reference()).standard_error is not None
        rows[:2] *= 12
        found = one("kid", rows, self.reference())
        assert found.standard_error is None
        assert found.corrected == found.value == found.at(5000), "KID has no bias"

    @pytest.mark.slow
    def test_heavy_tails_leave_the_error_open_though_most_sets_of_images_lack_the_largest(self) -> None:
        rng = np.random.default_rng(32)

        def student(n: int) -> Array:
            # Five degrees of freedom: the kernel of an image with itself has no mean.
            return np.asarray(rng.normal(size=(n, 16)) * np.sqrt(3 / rng.chisquare(5, n))[:, None])

        def supported(draw: Callable[[int], Array], reference: Array) -> int:
            known = FeatureStatistics(np.zeros(16), np.eye(16), len(reference), reference)
            found = [one("kid", draw(200), known) for _ in range(80)]
            return sum(each.standard_error is not None for each in found)

        def gaussian(n: int) -> Array:
            return rng.normal(size=(n, 16))

        assert supported(student, student(500)) <= 1
        assert supported(gaussian, gaussian(500)) == 80
        # A reference without tails does not vouch for images with them.
        assert supported(student, gaussian(500)) <= 8

    def test_enough_images_may_be_uneven(self) -> None:
        # Of two Gaussian features one image in eight makes up the kernel with itself: six thousand suffice.
        rng = np.random.default_rng(33)
        rows, known = rng.normal(size=(6000, 2)), self.reference(2, 300)
        assert one("kid", rows[:300], known).standard_error is None
        assert one("kid", rows, known).standard_error is not None

    @pytest.mark.slow
    def test_images_that_are_near_by_luck_are_not_certain_to_be_near(self) -> None:
        # The error falls with the distance: intervals that do not reach up to the truth are short ones.
        rng = np.random.default_rng(34)
        scale = np.arange(1, 17) ** -0.35
        rows = np.random.default_rng(21).normal(size=(300, 16)) * scale
        reference = FeatureStatistics(np.zeros(16), np.eye(16), 300, rows)
        found = [one("kid", rng.normal(size=(400, 16)) * scale, reference) for _ in range(500)]
        values, _, errors = measured(found)
        truth = values.mean()
        assert (values + 1.645 * errors < truth).mean() < 0.10
        assert (np.abs(values - truth) < 1.96 * errors).mean() > 0.93
        # The delta method alone would be 1.4 times the spread where nothing is shifted.
        assert root_mean_square(errors) == pytest.approx(values.std(ddof=1), rel=0.12)

    @pytest.mark.slow
    def test_images_of_one_prompt_are_not_compared_with_each_other(self) -> None:
        rng = np.random.default_rng(28)
        reference = self.reference(4, 300)
        found = []
        for _ in range(200):
            prompts = rng.normal(size=(60, 4))
            rows = np.repeat(prompts, 4, axis=0) * 0.8 + 0.6 * rng.normal(size=(240, 4))
            found.append(one("kid", rows, reference, np.repeat(np.arange(60), 4)))
        truth = [one("kid", rng.normal(size=(1000, 4)), reference).value for _ in range(60)]
        values = np.array([each.value for each in found])
        corrected = np.array([each.corrected for each in found], float)
        assert off(values, float(np.mean(truth))) > 8
        assert abs(off(corrected, float(np.mean(truth)))) < 4

    def test_influence_is_what_leaving_an_image_out_changes(self) -> None:
        rng = np.random.default_rng(23)
        rows, reference = rng.normal(0.5, 1, (150, 4)), self.reference().features
        found = mmd_estimate("kid", [rows], reference, cubic)
        left = np.array([kid(np.delete(rows, i, axis=0), reference) for i in range(150)])
        changed = 149 * (found.value - left)
        changed -= changed.mean()
        # Leaving one out divides by n - 2 where the influence divides by n - 1.
        np.testing.assert_allclose(found.influence, changed, atol=0.03 * changed.std())


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("batch", [1, 23, 256])
def test_batches_change_nothing(batch: int, repeated: bool) -> None:
    rng = np.random.default_rng(25)
    n, width = 96, 6
    groups = np.tile(np.arange(n // 3), 3) if repeated else None
    features = rng.normal(size=(n, width)) * 1.3 + 0.2
    plain = moments(rng.normal(size=(200, width)))
    reference = FeatureStatistics(plain.mu, plain.sigma, 200, rng.normal(size=(50, width)))
    rows = {
        "fid": features,
        "kid": features,
        "inception_score": rng.normal(0, 2, (n, 5)),
        "clip_score": rng.uniform(size=n),
    }
    for metric, columns in rows.items():
        whole = one(metric, columns, reference, groups)
        parts = one(metric, columns, reference, groups, batch=batch)
        assert parts.value == pytest.approx(whole.value, rel=1e-10)
        assert parts.standard_error == pytest.approx(whole.standard_error, rel=1e-9)
        assert parts.corrected == pytest.approx(whole.corrected, rel=1e-9)
        np.testing.assert_allclose(parts.influence, whole.influence, rtol=1e-8, atol=1e-10)


def test_one_prompt_that_repeats_hardly_moves_a_standard_error() -> None:
    """Whatever the mean of what is averaged: groups of different sizes are not different for it."""
    rng = np.random.default_rng(31)
    n = 400
    groups = np.arange(n)
    groups[-2:] = groups[0]
    rows = {"inception_score": rng.normal(0, 2, (n, 5)), "clip_score": rng.normal(0.9, 0.01, n)}
    for metric, columns in rows.items():
        apart, together = one(metric, columns), one(metric, columns, None, groups)
        assert together.standard_error == pytest.approx(apart.standard_error, rel=0.05)
