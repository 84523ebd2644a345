"""How often a checkpoint that is worse by just its margin passes, where scores of pairs are not normal."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.gate.coverage_pairs import KINDS, drawn, is_higher_better, measured, population
from pytest_sdbench.gate.fidelity import identity_score
from pytest_sdbench.gate.verdict import Outcome, Score, judge_score
from pytest_sdbench.metrics.definition import Sample
from pytest_sdbench.metrics.difference import difference, rest, worst_loss
from pytest_sdbench.metrics.imported import imported_metric
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
def test_64_pictures_that_show_no_failure_pass_no_claim_that_allows_one_in_a_hundred() -> None:
    assert wrong_passes("ssim-failures", 1, 64, 400) < 0.05


@pytest.mark.parametrize(("n", "margin", "share"), [(64, 0.02, 1.0), (512, 0.002, 1.0), (512, 0.004, 0.5)])
def test_votes_of_which_none_changed_are_not_certain(n: int, margin: float, share: float) -> None:
    """Images of yes or no, the recorded ones all yes or half of them; new failures make up the margin."""
    rng, passed = np.random.default_rng(7), 0
    recorded = (np.arange(n) < share * n).astype(np.float64)
    votes = imported_metric("votes", "votes", higher_is_better=True, minimum=0.0, maximum=1.0)
    for _ in range(400):
        candidate = recorded * (rng.random(n) >= margin / share)
        first, second = (
            votes.estimate(Sample([each], n), None, votes.options()) for each in (candidate, recorded)
        )
        unseen = max(
            worst_loss(first, second, higher_is_better=True),
            rest(first, second, votes.minimum, votes.maximum),
        )
        error = difference(first, second).standard_error
        score = Score("votes", second.value, first.value, margin, True, 4, error, unseen=unseen, n=n)
        passed += judge_score(score).outcome is Outcome.PASS
    assert passed / 400 <= 0.05
