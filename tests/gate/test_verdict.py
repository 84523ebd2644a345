"""Verdicts: what passes, fails and is left open, how often that is wrong, and what the reader is told."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import binom, norm

from pytest_sdbench.gate.verdict import (
    Outcome,
    Score,
    Verdict,
    chance_of_pass,
    judge_score,
    judge_scores,
    mismatch,
    smallest_margin,
    uncalibrated,
)

PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE
UNCALIBRATED = Outcome.UNCALIBRATED
FID = Score("FID", 16.98, 16.98, 0.45, False, 2, 0.1, n=1000)
CLIP = Score("CLIP score", 0.2677, 0.2677, 0.0008, True, 4, 0.0002, n=1000)
BOTH = pytest.mark.parametrize("score", [FID, CLIP], ids=["lower-is-better", "higher-is-better"])
DRAWS = 20_000
"""Of a simulation, where a chance of 5 % has to come out."""


def worse(score: Score, by: float, **changes: float | None) -> Score:
    """Return a score that is worse than its claim by so much, in its unit."""
    measured = score.claimed - by if score.higher_is_better else score.claimed + by
    return replace(score, measured=measured, **changes)  # type: ignore[arg-type]


def off(z: float, *, error: float = 0.1, **changes: float | None) -> Score:
    """Return a score whose difference is so many standard errors above the margin; the claim is 0."""
    base = replace(FID, claimed=0.0, error=error)
    return worse(base, base.margin + z * error, **changes)


def outcomes(verdicts: Sequence[Verdict]) -> list[Outcome]:
    return [verdict.outcome for verdict in verdicts]


def share_of(chance: float) -> float:
    """Return the share of the 5 % that is this very number, to stand on a boundary."""
    share = chance / 0.05
    for _ in range(8):
        if share * 0.05 == chance:
            return share
        share = math.nextafter(share, 1 if share * 0.05 < chance else 0)
    raise AssertionError(f"no share of 5 % is {chance}")


# --- one score ---


@BOTH
@pytest.mark.parametrize(
    ("outcome", "zs"),
    [(PASS, (-100, -1.6449)), (INCONCLUSIVE, (-1.6448, -0.5, 0, 0.5, 1.6448)), (FAIL, (1.6449, 100))],
)
def test_1645_errors_off_the_margin_decide(score: Score, outcome: Outcome, zs: tuple[float, ...]) -> None:
    assert score.error is not None
    for z in zs:
        assert judge_score(worse(score, score.margin + z * score.error)).outcome is outcome, z


@pytest.mark.parametrize("higher", [False, True])
def test_a_chance_of_just_what_is_allowed_decides(higher: bool) -> None:
    at = Score("FID", 0.0, 0.0, 0.0, higher, 2, 1.0, n=1000)
    for z, decided in ((-1.75, PASS), (1.75, FAIL)):
        share = share_of(judge_score(worse(at, z)).figures["wrong_call"])
        assert judge_score(worse(at, z), share=share).outcome is decided
        assert judge_score(worse(at, z), share=share * (1 - 1e-12)).outcome is INCONCLUSIVE


@pytest.mark.parametrize("claimed", [0.05, 1.1, 16.98, 250.3])
def test_every_printed_score_on_the_margin_passes_and_the_next_fails(claimed: float) -> None:
    for hundredths in range(1, 1500, 7):
        margin = hundredths / 100
        on = replace(FID, claimed=claimed, measured=round(claimed + margin, 2), margin=margin, error=0.0)
        verdict = judge_score(on)
        assert (verdict.outcome, verdict.figures["wrong_call"]) == (PASS, 0)
        assert judge_score(replace(on, measured=round(claimed + margin + 0.01, 2))).outcome is FAIL
        up = replace(on, claimed=on.measured, measured=claimed, higher_is_better=True)
        assert judge_score(up).outcome is PASS


def test_no_more_than_the_last_bits_are_forgiven() -> None:
    at = replace(FID, claimed=1.0, margin=0.5, error=0.0)
    for bits, outcome in ((1, PASS), (4, PASS), (5, FAIL), (100, FAIL)):
        assert judge_score(replace(at, measured=1.5 + bits * math.ulp(1.5))).outcome is outcome


@BOTH
@pytest.mark.parametrize("z", [-3.3, -2.0, -1.7, -0.5, 0.0, 1.7, 2.0, 3.3, 50.0])
def test_figures_are_the_normal_tail_at_the_margin_and_bounds_at_five_percent(score: Score, z: float) -> None:
    assert score.error is not None
    by = score.margin + z * score.error
    figures = dict(judge_score(worse(score, by)).figures)
    if abs(z) > 1.645:
        assert figures.pop("wrong_call") == pytest.approx(norm.sf(abs(z)), rel=1e-6)
    bound = norm.isf(0.05) * score.error
    expected = {"worse_by": by, "at_most": by + bound, "at_least": by - bound, "error": score.error}
    assert figures == pytest.approx(expected)


def test_a_score_without_an_error_is_open_however_good_or_bad() -> None:
    for by in (-100.0, 0.0, 100.0):
        verdict = judge_score(worse(FID, by, error=None))
        assert verdict.outcome is INCONCLUSIVE
        assert verdict.figures == {"worse_by": pytest.approx(by)}
        assert "cannot tell" in verdict.reason
        assert "standard error" in verdict.reason


@pytest.mark.parametrize("name", ["claimed", "measured", "margin", "error", "claim_error"])
def test_a_figure_that_cannot_be_has_no_verdict(name: str) -> None:
    for figure in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=rf"FID: {name} is -?(nan|inf); .*finite"):
            judge_scores([CLIP, replace(FID, **{name: figure})])  # type: ignore[arg-type]
    below = replace(FID, **{name: -0.1})  # type: ignore[arg-type]
    if name in ("claimed", "measured"):  # a score may itself be below zero
        judge_score(below)
    else:
        with pytest.raises(ValueError, match=rf"FID: {name} is -0.1; give 0 or more"):
            judge_score(below)


def test_a_fail_next_to_the_margin_shows_by_how_much_it_is_over() -> None:
    at = replace(FID, claimed=16.98, measured=17.4304, error=0.0)
    told = "worse by 0.4504, at least 0.4504 worse, margin 0.4500; chance of a wrong fail below 0.1 %"
    verdict = judge_score(at)
    assert (verdict.outcome, verdict.reason.partition(": ")[2].partition(": ")[2]) == (FAIL, told)
    assert (
        "worse by 0.46, at least 0.46 worse, margin 0.45;" in judge_score(replace(at, measured=17.44)).reason
    )


def test_a_margin_of_zero_asks_for_better_than_claimed() -> None:
    even = judge_score(worse(FID, 0.0, margin=0.0))
    assert even.outcome is INCONCLUSIVE
    assert "wrong_call" not in even.figures
    assert judge_score(worse(FID, -0.17, margin=0.0)).outcome is PASS
    assert judge_score(replace(FID, claimed=-0.3, measured=-0.2)).outcome is PASS


# --- what is printed ---


@pytest.mark.parametrize(
    ("score", "told"),
    [
        (
            worse(FID, 0.12, interval=0.08),
            "FID: claimed 16.98, measured 17.10 (95 % interval 16.94 to 17.26): worse by 0.12, "
            "at most 0.28 worse, margin 0.45; chance of a wrong pass below 0.1 %",
        ),
        (  # random weights: below what may be claimed, and the interval is that of what was measured
            replace(CLIP, claimed=0.3, measured=-0.05, margin=0.2, interval=0.03, bounds=(0.0, 1.0)),
            "measured -0.0500 (95 % interval -0.1088 to 0.0088)",
        ),
        (
            worse(CLIP, 0.0013),
            "CLIP score: claimed 0.2677, measured 0.2664: worse by 0.0013, at least 0.0010 worse, "
            "margin 0.0008; chance of a wrong fail 0.6 %",
        ),
        (
            # 0.09 off the margin, 1.645 errors of 0.1 are 0.164: (0.164 / 0.09)^2 times the images.
            worse(FID, 0.36),
            "FID: claimed 16.98, measured 17.34: worse by 0.36, anything from 0.20 worse to 0.52 worse, "
            "margin 0.45; cannot tell: about 3,400 images would",
        ),
        (worse(FID, 0.43, error=0.3), ": worse by 0.43, anything from 0.06 better to 0.92 worse, margin"),
        (worse(FID, 0.1, error=None), "measured 17.08: worse by 0.10, margin 0.45; cannot tell: these"),
        (worse(FID, 0.004), ": no difference, at most 0.17 worse, margin"),
        (worse(FID, 0.0), ": no difference, at most 0.16 worse, margin"),
        (worse(FID, -0.3), ": better by 0.30, at least 0.14 better, margin"),
        (worse(FID, -0.1), ": better by 0.10, at most 0.06 worse, margin"),
        (worse(FID, 0.2), ": worse by 0.20, at most 0.36 worse, margin"),
        (replace(FID, error=0.0), "no difference, margin 0.45"),
    ],
)
def test_a_verdict_tells_claim_interval_bounds_margin_chance_and_remedy(score: Score, told: str) -> None:
    reason = judge_score(score).reason
    if told.startswith(score.label):
        assert reason == told
    else:
        assert told in reason


@pytest.mark.parametrize(
    ("chance", "told"), [(0.0009, "below 0.1 %"), (0.0011, "0.1 %"), (0.0123, "1.2 %"), (0.0496, "5.0 %")]
)
def test_the_chance_is_told_in_tenths_of_a_percent(chance: float, told: str) -> None:
    z = norm.isf(chance)
    assert f"chance of a wrong pass {told}" in judge_score(off(-z)).reason
    assert f"chance of a wrong fail {told}" in judge_score(off(z)).reason


def test_a_score_that_is_too_good_is_reported() -> None:
    told = "better than the claim by more than the margin: look"
    assert judge_score(worse(FID, -0.62)).reason.endswith(told)
    assert told not in judge_score(worse(FID, -0.60)).reason  # at least 0.44 better
    assert told not in judge_score(worse(FID, 0.1)).reason
    on = replace(FID, claimed=0.5, measured=0.25, margin=0.25, error=0.0)
    assert told not in judge_score(on).reason
    assert told in judge_score(replace(on, measured=0.24)).reason


@BOTH
def test_a_verdict_is_one_line_with_claim_and_measurement(score: Score) -> None:
    for by in (-10, -1, 0, 0.8, 1, 1.2, 10):
        for error in (score.error, 0.0, None):
            reason = judge_score(worse(score, by * score.margin, error=error)).reason
            assert "\n" not in reason
            assert f"{score.label}: claimed {score.claimed:.{score.decimals}f}, measured " in reason
            assert f"margin {score.margin:.{score.decimals}f}" in reason


# --- what would tell ---


def test_a_score_on_the_margin_is_decided_by_no_number_of_images() -> None:
    score = Score("FID", 16.0, 16.5, 0.5, False, 2, error=0.125, n=1000)
    reason = judge_score(score).reason
    assert reason.endswith("cannot tell: the score lies on the margin")
    off_it = judge_score(replace(score, measured=16.5 + 2**-10)).reason
    assert "images would" in off_it
    # 16.98 + 0.45 and 17.43 differ by a bit, and nobody makes a billion images.
    for close in (
        Score("FID", 16.98, 17.43, 0.45, False, 2, 0.0225, n=512),
        replace(score, measured=16.5 + 2**-20),
    ):
        assert judge_score(close).reason.endswith("cannot tell: the score lies on the margin")


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_better_score_needs_what_a_pass_takes_whatever_the_family(share: float) -> None:
    """A pass is tested at 5 % (of this look's share), a fail at what Holm leaves of it."""
    passing, failing = norm.isf(0.05 * share), norm.isf(0.05 * share / 4)
    for each, level in ((off(-1.0), passing), (off(1.0), failing)):
        verdict = judge_score(each, family=4, share=share)
        assert verdict.reason.endswith(" images would")
        assert images_told(verdict) == pytest.approx(each.n * level**2, rel=0.06)


def images_told(verdict: Verdict) -> int | None:
    """Return the number of images that a verdict says would tell, if it names one."""
    found = re.search(r"about ([\d,]+) images would", verdict.reason)
    return int(found[1].replace(",", "")) if found else None


def test_what_keeps_holm_from_a_fail_is_what_the_lines_say() -> None:
    """Four scores: the first is short of its level, and holds back the second, which would meet its own."""
    chances = (0.013, 0.016, 0.9, 0.9)
    scores = [replace(off(norm.isf(chance)), n=1000, most=1000) for chance in chances]
    verdicts = judge_scores(scores)
    assert outcomes(verdicts) == [Outcome.INCONCLUSIVE] * 4
    for score, verdict in zip(scores, verdicts, strict=True):
        assert verdict.figures["at_least"] < score.margin
        assert "a few more images" not in verdict.reason
    assert images_told(verdicts[0])
    wanted = 1000 * (norm.isf(0.05 / 4) / norm.isf(0.016)) ** 2
    assert images_told(verdicts[1]) == pytest.approx(wanted, rel=0.06)


def test_more_images_than_there_are_are_no_remedy() -> None:
    figure = asked_for(off(-1.0))
    for most, told in ((figure - 1, True), (figure, False), (figure + 1, False)):
        reason = judge_score(replace(off(-1.0), most=most)).reason
        assert f"about {figure:,} images would" in reason
        assert ("a longer protocol tells, or a wider margin" in reason) is told


def test_a_bound_of_nothing_is_told_as_no_better() -> None:
    z = NormalDist().inv_cdf(0.95)
    verdict = judge_score(Score("FID", 0.0, z, 2.0, False, 2, error=1.0, n=10))
    assert verdict.outcome is INCONCLUSIVE
    assert "anything from 0.00 worse to 3.29 worse" in verdict.reason


def with_images(score: Score, n: int) -> Score:
    """Return the score with so many images: only the part of the error that is not the claim's shrinks."""
    assert score.error is not None
    ours = (score.error**2 - score.claim_error**2) * score.n / n
    error, unseen = math.sqrt(ours + score.claim_error**2), score.unseen * score.n / n
    return replace(score, n=n, error=error, unseen=unseen)


def asked_for(score: Score) -> int:
    verdict = judge_score(score)
    found = images_told(verdict)
    assert found, verdict.reason
    assert verdict.reason.endswith(" images would")
    return found


@BOTH
@pytest.mark.parametrize("n", [3, 17, 200, 1000, 5000])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5])
def test_the_images_that_would_tell_do_tell_and_far_fewer_do_not(score: Score, n: int, share: float) -> None:
    assert score.error is not None
    for z in (-1.5, -1.2, -0.9, 0.9, 1.2, 1.5):
        coarse = replace(score, n=n, claim_error=share * score.error)
        coarse = worse(coarse, score.margin + z * score.error)
        needed = asked_for(coarse)
        assert needed > n
        assert judge_score(with_images(coarse, needed)).outcome is (FAIL if z > 0 else PASS)
        fewer = with_images(coarse, math.ceil(0.9 * needed) - 1)
        assert judge_score(fewer).outcome is INCONCLUSIVE


@pytest.mark.parametrize(("n", "told"), [(2, "5"), (20, "43"), (200, "430"), (2000, "4,300")])
def test_the_images_that_would_tell_are_told_with_two_digits(n: int, told: str) -> None:
    # (1.645 / 1.13)^2 is 2.12.
    assert judge_score(off(-1.13, n=n)).reason.endswith(f"; cannot tell: about {told} images would")


def test_an_uncertain_claim_makes_more_images_useless() -> None:
    # 0.45 - 0.37 is 0.08, and 1.645 x 0.05 is more: no number of images takes the claim's own error away.
    hopeless = judge_score(worse(FID, 0.37, claim_error=0.05))
    assert hopeless.outcome is INCONCLUSIVE
    assert hopeless.reason.endswith("cannot tell: the claim itself is uncertain by 0.05")
    assert judge_score(with_images(worse(FID, 0.37, claim_error=0.05), 10**12)).outcome is INCONCLUSIVE
    assert asked_for(worse(FID, 0.37, claim_error=0.04)) > 1000
    gap = worse(FID, 0.37)
    just = abs(gap.margin - gap.worse) / NormalDist().inv_cdf(0.95)
    assert "the claim itself is uncertain" in judge_score(replace(gap, claim_error=just)).reason


def test_images_that_are_there_already_or_of_unknown_number_are_not_asked_for() -> None:
    """A look that may spend less than 5 % is open where 5 % would have decided."""
    for z in (-2.4, -1.65, -1.646, -1.7, 1.65):
        verdict = judge_score(off(z), share=0.1)
        assert verdict.outcome is INCONCLUSIVE
        number = images_told(verdict)
        assert number is None or number > 1000
    unknown = judge_score(Score("FID", 0.0, 0.4, 0.45, False, 2, 0.1))
    assert unknown.outcome is INCONCLUSIVE
    assert "about" not in unknown.reason
    assert "the claim" not in unknown.reason


# --- failures that these images do not show ---


@BOTH
@pytest.mark.parametrize("share", [1.0, 1 / 6])
def test_without_any_error_a_pass_rules_out_failures_worth_the_margin(score: Score, share: float) -> None:
    # n images without a failure, each of which would cost 100 margins: the margin is a failure in 100 images.
    for n in (10, 200, 400, 700, 5000):
        clean = replace(score, error=0.0, unseen=100 * score.margin / n, n=n)
        passes = judge_score(clean, share=share).outcome is PASS
        # At most so often does a checkpoint that fails once in 100 images show none of it.
        assert passes is (n > 100 * NormalDist().inv_cdf(1 - 0.05 * share) ** 2)
        if passes:
            assert binom.pmf(0, n, 0.01) < 1.5 * 0.05 * share


@BOTH
def test_the_larger_of_both_errors_decides(score: Score) -> None:
    assert score.error is not None
    close = worse(score, score.margin - 2 * score.error)
    # Failures that make up the margin have as large an error as leaves two of it where 1.645 are needed.
    most = (2 * score.error / NormalDist().inv_cdf(0.95)) ** 2 / score.margin
    for unseen, outcome in ((0.0, PASS), (0.99 * most, PASS), (1.01 * most, INCONCLUSIVE)):
        verdict = judge_score(replace(close, unseen=unseen))
        assert verdict.outcome is outcome
        assert (verdict.figures["at_most"] <= score.margin) is (outcome is PASS)
    known = judge_score(close).figures
    assert judge_score(replace(close, unseen=0.01 * most)).figures == known
    assert judge_score(replace(close, unseen=2 * most)).figures["at_least"] == known["at_least"]


@BOTH
@pytest.mark.parametrize("by", [-0.03, 0.0, 0.4])
def test_the_most_that_a_score_is_worse_is_the_smallest_margin_that_passes(score: Score, by: float) -> None:
    hidden = worse(score, by * score.margin, error=0.0, unseen=score.margin / 50)
    most = judge_score(hidden).figures["at_most"]
    for margin, outcome in ((1.001 * most, PASS), (0.999 * most, INCONCLUSIVE)):
        verdict = judge_score(replace(hidden, margin=margin))
        assert verdict.outcome is outcome
        assert verdict.figures["at_most"] == pytest.approx(most)


@pytest.mark.parametrize("seen", [0, 3])
def test_the_chance_of_a_wrong_pass_is_that_of_so_few_failures(seen: int) -> None:
    # Of 2,000 images `seen` failed, each by 0.5, and of a checkpoint on the margin 16 would.
    n, loss, margin = 2000, 0.5, 0.004
    clip = Score("CLIP score", 0.9, 0.9 - seen * loss / n, margin, True, 4, 0.0, unseen=loss / n, n=n)
    found = judge_score(clip).figures["wrong_call"]
    assert found == pytest.approx(norm.cdf((seen - 16) / 4), rel=1e-6)
    assert binom.cdf(seen, n, margin / loss) < 3 * found + 1e-5


def test_a_better_score_is_not_surer_for_the_failures_that_it_hides() -> None:
    # Better by a margin: to be worse by one in truth, it hides failures of two.
    better = Score("FID", 1.0, 0.6, 0.4, False, 2, 0.0, unseen=0.2)
    assert judge_score(better).figures["wrong_call"] == pytest.approx(norm.cdf(-0.8 / math.sqrt(0.16)))


def test_a_fail_asks_for_no_failure_that_was_not_seen() -> None:
    for unseen in (0.0, 10.0):
        bad = replace(off(2.0), unseen=unseen)
        assert judge_score(bad).outcome is FAIL
        assert judge_score(replace(bad, error=0.0)).outcome is FAIL


@pytest.mark.parametrize("by", [0.45, 0.46])
def test_on_the_margin_or_beyond_nothing_passes_that_may_fail_unseen(by: float) -> None:
    assert judge_score(worse(FID, by, error=0.0, unseen=1e-9)).outcome is not PASS


@pytest.mark.parametrize("error", [0.0, 0.02])
def test_the_images_that_would_show_failures_do_tell(error: float) -> None:
    hidden = worse(FID, 0.2, error=error, unseen=0.5, n=300)
    needed = asked_for(hidden)
    assert needed > 300
    assert judge_score(with_images(hidden, needed)).outcome is PASS
    assert judge_score(with_images(hidden, math.ceil(0.9 * needed) - 1)).outcome is INCONCLUSIVE


# --- several scores ---


def above(*chances: float) -> list[Score]:
    """Return scores that are above the margin with these chances of a wrong fail."""
    return [off(float(norm.isf(chance))) for chance in chances]


@pytest.mark.parametrize(
    ("chances", "failing"),
    [
        ([0.0124, 0.0166, 0.0249, 0.0499], 4),
        ([0.0126, 0.0166, 0.0249, 0.0499], 0),  # the first holds all others up
        ([0.0124, 0.0168, 0.0249, 0.0499], 1),
        ([0.0124, 0.0166, 0.0251, 0.0499], 2),
        ([0.0124, 0.0166, 0.0249, 0.0501], 3),
        ([0.03, 0.03, 0.03, 0.03], 0),
        ([0.0124, 0.0124, 0.0124, 0.0124], 4),
        ([0.0126, 0.0126, 0.0126, 0.0126], 0),
        ([1e-9, 0.02, 0.9, 0.9], 1),
        ([1e-9, 0.016, 0.9, 0.9], 2),
    ],
)
def test_the_first_fails_of_a_card_are_those_of_holm_in_any_order(chances: list[float], failing: int) -> None:
    rng = np.random.default_rng(0)
    for order in [np.arange(4), np.arange(4)[::-1], *(rng.permutation(4) for _ in range(5))]:
        verdicts = judge_scores(above(*(chances[i] for i in order)))
        assert [verdict.outcome is FAIL for verdict in verdicts] == [i < failing for i in order]


def test_a_pass_is_the_same_alone_and_among_others() -> None:
    alone = judge_score(off(-1.7))
    assert alone.outcome is PASS
    assert judge_scores([off(-1.7), *above(1e-9, 0.03, 0.9)])[0] == alone
    assert judge_score(off(-1.7), family=100) == alone


UNKNOWN = replace(off(50), error=None)


@pytest.mark.parametrize(
    ("scores", "family", "expected"),
    [
        (above(0.03, 0.9), None, [INCONCLUSIVE, INCONCLUSIVE]),
        # A sure fail makes the next one as easy as one fewer.
        (above(0.03, 1e-9), None, [FAIL, FAIL]),
        # Scores that were not measured make a fail harder.
        (above(0.03, 1e-9), 3, [INCONCLUSIVE, FAIL]),
        (above(0.024, 1e-9), 3, [FAIL, FAIL]),
        (above(0.012), 4, [FAIL]),
        (above(0.012), 5, [INCONCLUSIVE]),
        # An unknown error counts as a score that does not fail.
        ([UNKNOWN, *above(0.024)], None, [INCONCLUSIVE, FAIL]),
        ([UNKNOWN, *above(0.026)], None, [INCONCLUSIVE, INCONCLUSIVE]),
    ],
)
def test_holm_counts_what_fails_and_what_is_not_known(
    scores: list[Score], family: int | None, expected: list[Outcome]
) -> None:
    assert outcomes(judge_scores(scores, family=family)) == expected


def test_the_least_of_a_fail_is_at_the_level_that_it_was_judged_by() -> None:
    for family in (1, 4):
        found = judge_score(off(4), family=family).figures
        assert found["at_least"] == pytest.approx(0.45 + 0.1 * (4 - norm.isf(0.05 / family)))
        assert found["at_least"] > 0.45


def test_a_family_smaller_than_its_scores_is_refused() -> None:
    with pytest.raises(ValueError, match="a family of 1 cannot hold 2 scores"):
        judge_scores([FID, CLIP], family=1)
    assert len(judge_scores([FID, CLIP], family=2)) == 2
    assert judge_scores([]) == []


# --- a look of a sequence ---


@pytest.mark.parametrize("share", [0.1, 1 / 6, 0.5])
def test_a_share_makes_both_calls_harder(share: float) -> None:
    z = float(norm.isf(0.05 * share))
    for sign, decided in ((-1, PASS), (1, FAIL)):
        assert judge_score(off(sign * (z - 0.001)), share=share).outcome is INCONCLUSIVE
        verdict = judge_score(off(sign * (z + 0.001)), share=share)
        assert verdict.outcome is decided
        figures = judge_score(off(sign * (z - 0.001)), share=share).figures
        assert figures["at_most"] - figures["at_least"] == pytest.approx(2 * z * 0.1)
    assert judge_score(off(z + 0.001), share=share, family=2).outcome is INCONCLUSIVE


@pytest.mark.parametrize("share", [0.0, -0.5, 1.0001, 1.5, math.nan])
def test_a_share_is_a_part(share: float) -> None:
    with pytest.raises(ValueError, match=r"share is .* above 0 and at most 1"):
        judge_score(FID, share=share)
    assert judge_score(FID, share=1.0) == judge_score(FID)


# --- margins ---


def test_the_smallest_margin_of_one_claim_is_the_textbook_one() -> None:
    assert smallest_margin(0.2) == pytest.approx(0.2 * (norm.isf(0.05) + norm.isf(0.2)))
    assert smallest_margin(0.0) == 0
    assert chance_of_pass(0.0, 0.0) == chance_of_pass(0.1, 0.0) == 1


@pytest.mark.parametrize("z", [0.5, 2.0, 2.4865, 4.0])
def test_the_chance_of_a_pass_is_the_share_of_equally_likely_scores_that_pass(z: float) -> None:
    assert chance_of_pass(z * 0.1, 0.1) == pytest.approx(passing(FID, 0.0, margin=z * 0.1), abs=0.001)


def test_verdicts_without_a_judgement_say_why() -> None:
    verdict = mismatch("512 images here, 30,000 in the claim")
    assert verdict == Verdict(Outcome.MISMATCH, "not comparable: 512 images here, 30,000 in the claim")
    assert uncalibrated("no margin") == Verdict(UNCALIBRATED, "no margin")


# --- how often a verdict is wrong ---


def passing(score: Score, true: float, *, margin: float | None = None, draws: int = 4000) -> float:
    """Return the share of passes among equally likely measurements of a score that is truly so much worse."""
    score = replace(score, margin=score.margin if margin is None else margin)
    assert score.error is not None
    noise = score.error * norm.ppf((np.arange(draws) + 0.5) / draws)
    return sum(judge_score(worse(score, true + float(each))).outcome is PASS for each in noise) / draws


@BOTH
def test_a_checkpoint_on_the_margin_passes_in_five_percent(score: Score) -> None:
    assert passing(score, score.margin, draws=DRAWS) == pytest.approx(0.05, abs=2 / DRAWS)


def test_a_checkpoint_beyond_the_margin_passes_less_often() -> None:
    assert passing(FID, FID.margin + 0.05) < 0.02


@BOTH
def test_an_identical_checkpoint_passes_the_smallest_margin_in_four_of_five(score: Score) -> None:
    assert score.error is not None
    assert passing(score, 0.0, margin=smallest_margin(score.error)) == pytest.approx(0.8, abs=0.0005)


def test_what_never_scatters_passes_if_the_test_has_room_for_what_it_assumes() -> None:
    assert chance_of_pass(0.164, 0.0, assumed=0.1) == 0.0
    assert chance_of_pass(0.165, 0.0, assumed=0.1) == 1.0


def test_a_test_that_assumes_more_noise_needs_a_wider_margin() -> None:
    """An identical checkpoint still passes it in four runs of five."""
    margin = smallest_margin(0.1, assumed=0.3)
    drawn = 0.1 * norm.ppf((np.arange(4000) + 0.5) / 4000)
    base = replace(FID, claimed=0.0, margin=margin, error=0.3)
    passed = sum(judge_score(replace(base, measured=float(each))).outcome is PASS for each in drawn)
    assert passed / 4000 == pytest.approx(chance_of_pass(margin, 0.1, assumed=0.3), abs=0.001)
    assert passed / 4000 == pytest.approx(0.8, abs=0.001)


@pytest.mark.parametrize("claims", [2, 4])
def test_all_of_several_claims_pass_their_smallest_margins_in_four_of_five(claims: int) -> None:
    one = passing(FID, 0.0, margin=smallest_margin(0.1, claims=claims))
    assert one**claims == pytest.approx(0.8, abs=0.001)


@pytest.mark.slow
@pytest.mark.parametrize("common", [0.0, 0.7])
def test_a_card_of_four_scores_on_the_margin_fails_in_five_percent(common: float) -> None:
    """The scores come from the same images, so they may go together."""
    rng = np.random.default_rng(1)
    draws = DRAWS if common == 0 else DRAWS // 4
    together, alone = rng.standard_normal((draws, 1)), rng.standard_normal((draws, 4))
    noise = math.sqrt(common) * together + math.sqrt(1 - common) * alone
    failed = sum(
        any(verdict.outcome is FAIL for verdict in judge_scores([off(float(z)) for z in card]))
        for card in noise
    )
    assert failed / draws <= 0.05
    assert failed / draws > (0.045 if common == 0 else 0.01)
