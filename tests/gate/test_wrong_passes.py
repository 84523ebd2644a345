"""How often a checkpoint that is worse by just its margin passes, where scores of pairs are not normal."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.gate.coverage_pairs import KINDS, drawn, is_higher_better, measured, population
from pytest_sdbench.gate.fidelity import identity_score
from pytest_sdbench.gate.verdict import Outcome, Score, judge_score
from pytest_sdbench.metrics.registry import METRICS

PAIRS = [kind for kind in KINDS if kind != "imported-votes"]


def wrong_passes(kind: str, times: int, n: int, runs: int) -> float:
    """Return the share of runs that pass a claim of the reference's own pictures at the very margin."""
    scores, rng, passed = population(kind)[0], np.random.default_rng(5), 0
    name = "feature_cosine" if kind.startswith("cosine") else kind.partition("-")[0]
    perfect, truth = METRICS[name].perfect, float(scores.mean())
    assert perfect is not None
    for _ in range(runs):
        prompts, images, groups = drawn(rng, n, times)
        found = measured(kind, scores[prompts, images], groups)
        margin, higher = abs(perfect - truth), is_higher_better(kind)
        score = Score(name, perfect, found.value, margin, higher, 6, None, n=n)
        passed += judge_score(identity_score(score, found, groups)).outcome is Outcome.PASS
    return passed / runs


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize("kind", PAIRS)
def test_a_mean_of_pairs_passes_at_the_margin_more_seldom_than_one_time_in_twenty(
    kind: str, times: int
) -> None:
    assert wrong_passes(kind, times, 512, 400) < 0.05


@pytest.mark.slow
def test_64_pictures_do_not_show_one_failure_in_a_hundred() -> None:
    assert wrong_passes("ssim-failures", 1, 64, 400) > 0.05
