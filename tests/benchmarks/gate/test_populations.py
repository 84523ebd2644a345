"""A pool as a population: its shortcuts say what the suite says, and draws scatter about its truth."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.gate.populations import METRICS, Population
from pytest_sdbench.evaluation.estimate import estimate
from pytest_sdbench.metrics.definition import column
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.metrics.moments import FeatureStatistics
from pytest_sdbench.protocols.load import load_protocol

NET, CLIP = "scenes-classifier", "local:scenes-clip-cosine"


@pytest.fixture(scope="module")
def population() -> Population:
    rng = np.random.default_rng(3)
    real = rng.standard_normal((400, 64)) * np.linspace(0.2, 1.5, 64)
    rows = {
        NET: (rng.standard_normal((1500, 64)) * np.linspace(0.3, 1.4, 64) + 0.1),
        column(NET, "logits"): 2 * rng.standard_normal((1500, 56)),
        CLIP: 0.9 + 0.03 * rng.standard_normal(1500),
    }
    reference = FeatureStatistics(real.mean(axis=0), np.cov(real, rowvar=False), len(real), real)
    protocol = load_protocol("scenes-30k")
    return Population(protocol, {k: v.astype(np.float32) for k, v in rows.items()}, reference)


def draw(population: Population, seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, len(population.rows[CLIP]), n)


def test_estimates_of_a_draw_are_those_of_the_suite(population: Population) -> None:
    drawn = draw(population, 0, 600)
    rows = {name: column[drawn] for name, column in population.rows.items()}
    theirs = estimate(population.protocol, [rows], dict.fromkeys(("fid", "kid"), population.reference))
    ours = population.estimates(drawn)
    assert tuple(sorted(ours)) == tuple(sorted(METRICS))
    for metric, mine in ours.items():
        other = theirs[metric]
        assert isinstance(other, Estimate)
        assert mine.value == pytest.approx(other.value, rel=1e-5)
        assert mine.standard_error == pytest.approx(other.standard_error, rel=1e-4)
        assert mine.influence is not None
        np.testing.assert_allclose(mine.influence, other.influence, atol=1e-4 * np.std(other.influence))


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
def test_draws_scatter_about_the_truth(population: Population, metric: str) -> None:
    found = [population.estimates(draw(population, seed, 600))[metric].corrected for seed in range(40)]
    values = np.array(found, dtype=float)
    assert abs(values.mean() - population.truth[metric]) < 4 * values.std() / np.sqrt(len(values))
