"""The exact binomial bounds against scipy, and the verdicts on shares that rest on them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import special, stats

from pytest_sdbench.base.paths import reference
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.cards.cases import as_candidate
from pytest_sdbench.gate.binomial import (
    beta_cdf,
    chance_of_at_least,
    chance_of_at_most,
    chance_of_rise,
    lower_bound,
    most_rise,
    most_that_pass,
    repeats_of,
    trials_of,
    trials_to_tell,
    upper_bound,
)
from pytest_sdbench.gate.verdict import Score, judge_score, judge_scores
from pytest_sdbench.protocols.load import load_protocol


def test_the_beta_function_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = 10 ** rng.uniform(-1, 4, (2, 1000))
    near = stats.beta.rvs(a, b, random_state=rng)
    for x, first, second in zip(near, a, b, strict=True):
        assert beta_cdf(x, first, second) == pytest.approx(special.betainc(first, second, x), abs=1e-9)
    assert (beta_cdf(0, 2, 3), beta_cdf(1, 2, 3)) == (0, 1)
    # By rounding, here and in its mirror image the fraction converges slowly.
    assert beta_cdf(16 / 17, 30.999999999999996, 1.0) == pytest.approx((16 / 17) ** 31)


@pytest.mark.parametrize(("count", "n"), [(0, 1), (1, 1), (0, 512), (5, 512), (10, 1000), (512, 512)])
@pytest.mark.parametrize("level", [0.05, 0.025, 0.001])
def test_bounds_are_those_of_clopper_and_pearson(count: int, n: int, level: float) -> None:
    expected = stats.binomtest(count, n).proportion_ci(1 - 2 * level, "exact")
    assert lower_bound(count, n, level) == pytest.approx(expected.low, abs=1e-9)
    assert upper_bound(count, n, level) == pytest.approx(expected.high, abs=1e-9)
    assert chance_of_at_most(count, n, 0.01) == pytest.approx(stats.binom.cdf(count, n, 0.01), abs=1e-9)
    assert chance_of_at_least(count, n, 0.01) == pytest.approx(stats.binom.sf(count - 1, n, 0.01), abs=1e-9)


@pytest.mark.parametrize(
    ("more", "fewer", "n", "rise"),
    [(0, 0, 48, 0.06), (3, 1, 1000, 0.01), (0, 15, 1000, -0.004), (5, 9, 100, -0.1), (300, 280, 1000, 0.05)],
)
def test_a_rise_has_the_chance_that_combined_confidence_distributions_give_it(
    more: int, fewer: int, n: int, rise: float
) -> None:
    """Integrated over the part that became ones, where we integrate over the share that changed."""
    changed = more + fewer
    found = chance_of_rise(more, fewer, n, rise)
    part = stats.beta(more + 1, fewer) if fewer else None
    if rise >= 0:
        share = stats.beta(changed + 1, n - changed)
        expected = (
            share.sf(rise)
            if part is None
            else part.expect(lambda p: share.sf(rise / (2 * p - 1)), lb=(1 + rise) / 2, ub=1)
        )
    else:
        share = stats.beta(changed, n - changed + 1)
        assert part is not None
        expected = 1 - part.expect(lambda p: share.sf(-rise / (1 - 2 * p)), lb=0, ub=(1 + rise) / 2)
    assert found == pytest.approx(expected, abs=1e-6)
    assert chance_of_rise(more, fewer, n, most_rise(more, fewer, n, 0.05)) == pytest.approx(0.05, abs=1e-4)


@pytest.mark.parametrize(("more", "fewer"), [(5, 12), (12, 5), (0, 3), (3, 0), (4, 4)])
def test_that_a_share_rose_at_all_is_mcnemars_exact_test(more: int, fewer: int) -> None:
    expected = stats.binomtest(more, more + fewer, alternative="less").pvalue
    assert chance_of_rise(more, fewer, 100, 0.0) == pytest.approx(expected, abs=1e-9)
    # All trials changed.
    assert chance_of_rise(more, fewer, more + fewer, 0.0) == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("rise", [0.05, 0.2, 0.5])
def test_a_share_that_rose_by_the_margin_is_called_wrongly_no_more_often_than_said(rise: float) -> None:
    """Summed over all that 20 trials may come to, whatever share ceases to be one."""
    n = 20
    more, fewer = (each.ravel() for each in np.mgrid[: n + 1, : n + 1])
    more, fewer = more[more + fewer <= n], fewer[more + fewer <= n]
    at_most = np.array([chance_of_rise(a, b, n, rise) for a, b in zip(more, fewer, strict=True)])
    at_least = np.array([chance_of_rise(b, a, n, -rise) for a, b in zip(more, fewer, strict=True)])
    for ceases in np.linspace(0, (1 - rise) / 2, 21):
        shares = [rise + ceases, ceases, max(0.0, 1 - rise - 2 * ceases)]
        chances = stats.multinomial.pmf(np.stack([more, fewer, n - more - fewer], 1), n, shares)
        assert chances.sum() == pytest.approx(1)
        for level in (0.05, 0.01):
            assert chances[at_most <= level].sum() <= level
            assert chances[at_least <= level].sum() <= level


@pytest.mark.parametrize(
    ("changed", "measured", "margin", "images"),
    [
        # Where nothing changed: log 0.05 / log(1 - 0.02) = 148 trials. Else z^2 variance / gap^2.
        ((0, 0), 0.05, 0.02, 150),
        ((3, 3), 0.05, 0.03, 190),
        ((3, 0), 0.08, 0.01, 200),
    ],
)
def test_how_many_images_would_tell_of_a_paired_share(
    changed: tuple[int, int], measured: float, margin: float, images: int
) -> None:
    score = Score("Lost", 0.05, measured, margin, False, 4, None, n=100, trials=100, changed=changed)
    verdict = judge_score(score)
    assert verdict.outcome == "inconclusive"
    assert f"about {images} images would" in verdict.reason
    rise = measured - 0.05
    assert verdict.figures["at_most"] == pytest.approx(most_rise(*changed, 100, 0.05))
    assert verdict.figures["at_least"] == pytest.approx(-most_rise(*changed[::-1], 100, 0.05))
    # A claim that is rounded moves all of it, and the limit stays.
    rounded = judge_score(replace(score, claimed=0.06, shift=-0.01))
    assert rounded.figures["at_most"] == pytest.approx(verdict.figures["at_most"] - 0.01)
    assert rounded.figures["worse_by"] == pytest.approx(rise - 0.01)


@pytest.mark.parametrize(
    ("margin", "unpaired", "told"),
    [
        # Less than what floating point tells apart, and what no thousand million images would.
        (0.03 + 1e-17, None, "the score lies on the margin"),
        (math.nextafter(0.03, 1), None, "the score lies on the margin"),
        (0.03 + 1e-12, None, "the score lies on the margin"),
        # Both must fail where a machine may have moved the pairs: one of them never will.
        (0.01, 0.005, "the recorded pairs alone show it: record the card anew on this set-up"),
        (0.01, 0.03, "about 460 images would"),
    ],
)
def test_no_number_of_images_is_named_that_would_not_tell(
    margin: float, unpaired: float | None, told: str
) -> None:
    alone = Score("Lost", 0.05, 0.05 + (unpaired or 0), margin, False, 4, None, n=100, trials=100)
    paired = replace(alone, changed=(3, 0), unpaired=None if unpaired is None else alone)
    verdict = judge_score(paired)
    assert verdict.outcome == "inconclusive"
    assert f"cannot tell: {told}" in verdict.reason


@pytest.mark.parametrize("part", [0.001, 0.3, 0.5, 0.9, 0.999])
def test_the_chance_of_a_rise_is_right_between_whole_numbers_of_trials(part: float) -> None:
    """Nearly all trials changed: it is no less than where all did, and no more than a chance can be."""
    trials, changed = 20.0, 19.0 + part
    more = changed / 2
    for rise in (0.0, 0.2, 0.5):
        here = chance_of_rise(more, changed - more, trials, rise)
        all_changed = chance_of_at_most(more, changed, (1 + rise) / 2)
        assert here == all_changed
        assert chance_of_rise(more, changed - more, trials, -rise) <= 1


def test_a_prompt_that_repeats_counts_once() -> None:
    assert trials_of(12, None) == 12
    assert trials_of(12, np.repeat(np.arange(4), 3)) == pytest.approx(4)
    assert trials_of(4, np.array([0, 0, 0, 1])) == pytest.approx(1.6)


@pytest.mark.parametrize(
    ("sizes", "lost"), [([200, *[1] * 800], 200), ([3, 1, 1, 1, 2], 3), ([2, *[1] * 998], 11), ([5, 2], 0)]
)
@pytest.mark.parametrize("share", [0.004, 0.05, 0.3])
def test_unequal_prompts_are_lost_as_wholes(sizes: list[int], lost: int, share: float) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    n, trials, repeats = len(groups), trials_of(len(groups), groups), repeats_of(groups)
    sums = np.ones(1)  # chances of 0, 1, 2, ... lost pairs, a prompt at a time
    for size in sizes:
        sums = np.convolve(sums, [1 - share, *[0] * (size - 1), share])
    few, many = sums[: lost + 1].sum(), sums[lost:].sum()
    count = lost / n * trials
    assert chance_of_at_least(count, trials, share, repeats) >= many - 1e-9
    assert chance_of_at_most(count, trials, share, repeats) >= few - 1e-9
    alone = chance_of_at_least(count, trials, share)
    assert chance_of_at_least(count, trials, share, repeats) == pytest.approx(max(alone, many), abs=1e-9)


def test_one_prompt_of_many_pairs_fails_nothing_by_itself() -> None:
    groups = np.repeat(np.arange(801), [200, *[1] * 800])
    trials, repeats = trials_of(1000, groups), repeats_of(groups)
    score = lost(200, 1000, 0.05, trials=trials)
    assert judge_score(score).outcome == "fail"
    assert judge_score(replace(score, repeats=repeats)).outcome == "inconclusive"
    assert repeats_of(np.repeat(np.arange(4), 3)) == repeats_of(None) == ()


@pytest.mark.parametrize(
    ("n", "limit", "most"), [(1000, 0.004, 0), (512, 0.004, None), (1000, 0.0405, 30), (9, 1.0, 8)]
)
def test_so_many_lost_pass(n: int, limit: float, most: int | None) -> None:
    assert most_that_pass(n, n, limit, 0.05) == most
    if most is not None and most < n - 1:
        assert stats.binom.cdf(most, n, limit) <= 0.05 < stats.binom.cdf(most + 1, n, limit)


@pytest.mark.parametrize(
    ("count", "outcome"), [(0, "pass"), (1, "inconclusive"), (10, "inconclusive"), (11, "fail")]
)
def test_the_shipped_protocol_says_what_fails(count: int, outcome: str) -> None:
    """As its comment and docs/fidelity.md do: beside all scores of the card."""
    protocol = load_protocol("scenes-lcm4-fidelity")
    card = as_candidate(read_card(reference() / "cards" / "scenes-tiny-lcm.md"))
    family = len({(claim.gate_protocol, claim.metric) for claim in card.claims if claim.gate_protocol})
    score = lost(count, protocol.n, protocol.margins["lost"])
    assert judge_score(score, family=family).outcome == outcome


@pytest.mark.parametrize(
    ("share", "limit", "least"), [(0.0, 0.01, 299), (0.01, 0.004, None), (0.0039, 0.004, None)]
)
def test_so_many_trials_tell(share: float, limit: float, least: int | None) -> None:
    needed = trials_to_tell(share, limit, 0.05)
    assert needed is not None
    if least is not None:  # (1 - limit)^n = 5 %
        assert needed == pytest.approx(least, abs=1)
    tail = chance_of_at_most if share < limit else chance_of_at_least
    assert tail(share * needed, needed, limit) <= 0.05 < tail(share * needed / 1.1, needed / 1.1, limit)
    assert trials_to_tell(0.5, 0.5, 0.05) is None


def lost(count: int, n: int, margin: float, claimed: float = 0.0, trials: float | None = None) -> Score:
    return Score(
        label="Lost",
        claimed=claimed,
        measured=count / n,
        margin=margin,
        higher_is_better=False,
        decimals=4,
        error=None,
        n=n,
        most=n,
        trials=n if trials is None else trials,
    )


@pytest.mark.parametrize(
    ("score", "outcome", "says"),
    [
        (lost(5, 512, 0.001), "fail", "at least 0.0039 worse"),
        (lost(0, 512, 0.01), "pass", "at most 0.0058 worse"),
        (lost(0, 512, 0.001), "inconclusive", "about 3,000 images would, and there are 512"),
        (lost(0, 1000, 0.004), "pass", "measured 0.0000 (95 % interval 0.0000 to 0.0037)"),
        (lost(1, 1000, 0.004), "inconclusive", "anything from 0.0001 worse to 0.0047 worse"),
        (lost(10, 1000, 0.004), "fail", "chance of a wrong fail 0.8 %"),
        (lost(10, 1000, 0.004, claimed=0.01), "inconclusive", "no difference"),
        # The same pairs, four to a prompt, are worth a quarter.
        (lost(5, 512, 0.001, trials=128), "inconclusive", "claimed 0.0000"),
        (lost(0, 512, 0.01, trials=128), "inconclusive", "about 1,200 images would"),
        (lost(512, 512, 0.5), "fail", "worse by 1.0000"),
    ],
)
def test_a_share_is_judged_by_its_exact_bounds(score: Score, outcome: str, says: str) -> None:
    verdict = judge_score(score)
    assert verdict.outcome == outcome
    assert says in verdict.reason


def test_fails_of_shares_are_corrected_for_their_number() -> None:
    scores = [lost(10, 1000, 0.004)] + [lost(0, 1000, 0.004)] * 6
    assert [str(each.outcome) for each in judge_scores(scores)] == ["inconclusive"] + ["pass"] * 6
    assert str(judge_scores(scores[:6])[0].outcome) == "fail"
