"""Looks at growing numbers of images: together they are wrong no more often than one look may be."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from pytest_sdbench.gate.looks import UNASKED, WEIGHTS, looks
from pytest_sdbench.gate.verdict import Outcome, Score, judge_scores

MARGIN, SPREAD = 0.5, 12.0
"""Of a score; its standard error with n images is SPREAD / sqrt(n), below the margin at every look."""


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 999, 1000, 1001, 5000, 30_000, 50_000])
def test_the_shares_are_one_error_rate_and_the_last_look_has_all_images(n: int) -> None:
    plan = looks(n)
    sizes = [look.n for look in plan]
    assert sum(look.share for look in plan) == pytest.approx(1)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == n
    assert all(look.share > 0 for look in plan)


def test_a_run_that_is_not_asked_for_more_ends_at_a_look() -> None:
    assert UNASKED in WEIGHTS


def test_the_last_look_has_two_fifths_few_images_little_and_many_share_alike() -> None:
    assert [(look.n, look.share) for look in looks(5000)] == [
        (256, pytest.approx(0.0075)),
        (1000, pytest.approx(0.03)),
        (2000, pytest.approx(0.5625)),
        (5000, 0.4),
    ]
    assert [(look.n, look.share) for look in looks(1000)] == [(256, pytest.approx(0.6)), (1000, 0.4)]
    shares = {look.n: look.share for look in looks(50_000)}
    assert shares[5000] == shares[10_000] == shares[30_000]
    assert shares[2000] == pytest.approx(7.5 * shares[5000])
    assert shares[50_000] == 0.4


def test_a_protocol_larger_than_all_looks_has_one_more() -> None:
    assert [look.n for look in looks(50_000)] == [256, 1000, 2000, 5000, 10_000, 30_000, 50_000]
    assert looks(30_001)[-2].n == 30_000


@pytest.mark.parametrize("n", [1, 255, 256])
def test_a_protocol_no_larger_than_the_first_look_is_judged_once_and_in_full(n: int) -> None:
    assert [(look.n, look.share) for look in looks(n)] == [(n, 1.0)]


@pytest.mark.parametrize("n", [256, 1000, 5000, 30_000])
def test_a_budget_takes_looks_away_and_changes_no_share(n: int) -> None:
    whole = looks(n)
    for budget in (0, 1, 255, 256, 257, 999, 1000, 5000, n - 1, n, n + 1):
        assert looks(n, budget) == [look for look in whole if look.n <= budget]
    assert looks(n, None) == whole


def test_a_look_is_worth_the_images_it_adds() -> None:
    for earlier, later in itertools.pairwise(WEIGHTS):
        assert later >= 2 * earlier


def first_decisions(draws: int, scores: int, shares: list[float], seed: int) -> list[set[Outcome]]:
    """Return what the looks of cards at the margin come to; a look's images are among those of the next."""
    sizes = np.array([look.n for look in looks(5000)])
    added = np.diff(sizes, prepend=0)
    rng = np.random.default_rng(seed)
    sums = np.cumsum(rng.normal(MARGIN * added, SPREAD * np.sqrt(added), (draws, scores, len(added))), axis=2)
    found = []
    for card in sums / sizes:
        outcomes: dict[int, Outcome] = {}
        for look, (n, share) in enumerate(zip(sizes, shares, strict=True)):
            verdicts = judge_scores(
                [
                    Score("FID", 0.0, float(each[look]), MARGIN, False, 2, SPREAD / math.sqrt(n), n=int(n))
                    for each in card
                ],
                share=share,
            )
            for i, verdict in enumerate(verdicts):
                if outcomes.get(i, Outcome.INCONCLUSIVE) is Outcome.INCONCLUSIVE:
                    outcomes[i] = verdict.outcome
            if Outcome.INCONCLUSIVE not in outcomes.values() or Outcome.FAIL in outcomes.values():
                break
        found.append(set(outcomes.values()))
    return found


@pytest.mark.slow
def test_four_looks_are_wrong_no_more_often_than_one_may_be() -> None:
    """On the margin both calls are wrong: it is where either is likeliest."""
    found = first_decisions(20_000, 1, [look.share for look in looks(5000)], 1)
    for wrong in (Outcome.PASS, Outcome.FAIL):
        assert 0.02 < sum(wrong in outcomes for outcomes in found) / len(found) <= 0.05


@pytest.mark.slow
def test_four_looks_at_a_card_of_four_scores_fail_it_no_more_often() -> None:
    found = first_decisions(3000, 4, [look.share for look in looks(5000)], 2)
    assert sum(Outcome.FAIL in outcomes for outcomes in found) / len(found) <= 0.05


def test_looks_that_each_spend_everything_would_be_wrong_more_often() -> None:
    found = first_decisions(3000, 1, [1.0] * 4, 3)
    assert sum(Outcome.PASS in outcomes for outcomes in found) / len(found) > 0.08
