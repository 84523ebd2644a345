"""Verdicts on parameters, multiply-accumulates, speed, latency and memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
from scipy.stats import binom

from pytest_sdbench.gate.hardware import (
    judge_compute,
    judge_count,
    judge_latency,
    judge_memory,
    judge_recorded_latency,
    judge_speed,
    worst,
)
from pytest_sdbench.gate.verdict import (
    Outcome,
    Verdict,
)

PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE
UNCALIBRATED = Outcome.UNCALIBRATED


# --- parameters and multiply-accumulates ---


def test_counts_are_exact() -> None:
    same = judge_count(label="U-Net", claimed=482_346_884, measured=482_346_884)
    assert same == Verdict(PASS, "U-Net: 482,346,884 parameters, as claimed")
    more = judge_count(label="U-Net", claimed=482_346_884, measured=482_346_885)
    assert more.outcome is FAIL
    assert more.reason == "U-Net: claimed 482,346,884 parameters, counted 482,346,885 (+1)"
    assert judge_count(label="U-Net", claimed=5, measured=3).reason.endswith("(-2)")


def test_compute_agrees_within_a_thousandth_or_the_tolerance() -> None:
    passes = {255.4e9: True, 255.65e9: True, 255.67e9: False, 255.15e9: True, 255.13e9: False}
    for measured, expected in passes.items():
        assert judge_compute(claimed=255.4e9, measured=measured).outcome is (PASS if expected else FAIL)
    for measured, expected in {6.0: True, 6.1: False, 1.9: False}.items():
        verdict = judge_compute(claimed=4.0, measured=measured, tolerance=0.5)
        assert verdict.outcome is (PASS if expected else FAIL)
    assert judge_compute(claimed=1e9, measured=1.001025e9).reason.endswith("(+0.103 %)")
    verdict = judge_compute(claimed=255.4e9, measured=300e9)
    assert verdict.reason == "claimed 255.4 G MACs a call, counted 300 G (+17.46 %)"


# --- speed ---


def speed(seconds: Sequence[float], baseline: Sequence[float], *, ratio: float = 0.9) -> Verdict:
    return judge_speed(
        label="0.9 s a call", largest=0.75, ratio=ratio, seconds=seconds, baseline_seconds=baseline
    )


def rounds(n: int, middle: float, step: float) -> list[float]:
    """Return n times around a middle, no two the same."""
    return [middle + step * (i - (n - 1) / 2) for i in range(n)]


def test_speed_fails_where_ratio_ranks_and_floor_agree() -> None:
    verdict = speed(rounds(10, 0.9, 0.001), rounds(10, 1.0, 0.001))
    assert verdict.outcome is FAIL
    assert verdict.reason == (
        "0.9 s a call: 0.900 of the baseline, at most 0.750 claimed; over by 150 ms a call, "
        "chance of a wrong fail below 0.1 %"
    )
    assert verdict.figures == {"wrong_call": pytest.approx(1 / math.comb(20, 10))}


def test_speed_within_the_claim_passes_whatever_the_rounds_say() -> None:
    slow, fast = rounds(10, 0.9, 0.001), rounds(10, 1.0, 0.001)
    verdict = speed(slow, fast, ratio=0.75)
    assert verdict == Verdict(PASS, "0.9 s a call: 0.750 of the baseline, at most 0.750 claimed")
    assert speed(slow, fast, ratio=0.1).outcome is PASS
    assert speed(slow, fast, ratio=0.7501).outcome is FAIL
    assert "0.7501 of the baseline, at most 0.7500 claimed" in speed(slow, fast, ratio=0.7501).reason


def test_speed_that_scatters_is_left_open() -> None:
    """The ratio and the medians are over; the ranks overlap."""
    verdict = speed(rounds(10, 0.9, 0.1), rounds(10, 1.0, 0.1))
    assert verdict.outcome is INCONCLUSIVE
    cause = "; cannot tell: the rounds scatter too much (p 0.14, below 0.002 tells); run it on a quieter"
    assert cause in verdict.reason


@pytest.mark.parametrize(
    ("seconds", "baseline", "cause"),
    [
        # Ten rounds in all have 252 orders, 1 in 500 cannot be seen among them; twelve have 924.
        ([2.0] * 5, [1.0] * 4 + [9.0], "5 rounds are too few"),
        ([2.0] * 6, [1.0] * 5 + [9.0], "scatter too much"),
        # At best it is the longest of 500, which is as likely as what the ranks must be below.
        ([2.0], [1.0 + i / 1000 for i in range(499)], "1 rounds are too few"),
    ],
)
def test_rounds_that_are_too_few_are_said_to_be_too_few(
    seconds: list[float], baseline: list[float], cause: str
) -> None:
    verdict = speed(seconds, baseline)
    assert verdict.outcome is INCONCLUSIVE
    assert cause in verdict.reason


NOTHING = (0.0, -1.0, math.nan)


@pytest.mark.parametrize(
    ("judge", "figures", "told"),
    [
        (lambda x: judge_speed(label="", largest=x, ratio=0.9), NOTHING, "the allowed ratio"),
        (
            lambda x: judge_speed(label="1 s", largest=0.75, ratio=x),
            NOTHING,
            r"1 s: the measured ratio is .*above 0",
        ),
        (lambda x: speed([1.0, x], [1.0, 1.0]), (math.nan, math.inf), "finite and above 0"),
        (lambda x: speed([x], [1.0]), (math.inf,), "finite and above 0"),
        (lambda x: speed([1.0, 1.0], [x, 1.0]), NOTHING, "finite and above 0"),
        (lambda x: judge_latency(claimed=0.5, seconds=[]), (0.0,), "needs rounds"),
        (lambda x: judge_latency(claimed=0.5, seconds=[x]), (*NOTHING, math.inf), "finite and above 0"),
        (lambda x: judge_latency(claimed=0.5, seconds=[1.0, x]), NOTHING, "finite and above 0"),
        (lambda x: judge_latency(claimed=x, seconds=[1.0]), NOTHING, "finite and above 0"),
        (lambda x: judge_memory(claimed=1.0, measured=x), NOTHING, "a peak is above 0"),
        (lambda x: judge_memory(claimed=x, measured=1.0), NOTHING, "the claimed peak"),
    ],
)
def test_a_figure_of_nothing_is_refused(
    judge: Callable[[float], Verdict], figures: tuple[float, ...], told: str
) -> None:
    for figure in figures:
        with pytest.raises(ValueError, match=told):
            judge(figure)


def test_speed_over_by_next_to_nothing_passes() -> None:
    """The ratio and the ranks are over, by less than 0.1 ms a call."""
    baseline = rounds(10, 1e-3, 1e-9)
    under = speed(rounds(10, 0.75e-3 + 0.9e-4, 1e-9), baseline)
    assert under.outcome is PASS
    assert under.reason.endswith("; over by 0.090 ms a call, which is no difference")
    assert speed(rounds(10, 0.75e-3 + 1.1e-4, 1e-9), baseline).outcome is FAIL
    for ratio, outcome in ((2, PASS), (2.01, FAIL)):  # over by just the floor, and by more
        seconds, ones = [ratio * 1e-4] * 10, [1e-4] * 10
        found = judge_speed(label="1 s", largest=1.0, ratio=ratio, seconds=seconds, baseline_seconds=ones)
        assert found.outcome is outcome


def test_speed_needs_a_rank_below_two_in_a_thousand() -> None:
    """One round above all of 499 others has a chance of just 1 in 500."""
    assert speed([9.0], rounds(499, 1, 0.001)).outcome is INCONCLUSIVE
    assert speed([9.0], rounds(500, 1, 0.001)).outcome is FAIL
    # Of the orders of 3 and 3 rounds 1 in 20 is the worst; of 5 and 5, 1 in 252; of 6 and 6, 1 in 924.
    for n in (1, 2, 3, 4, 5, 6):
        assert speed(rounds(n, 900, 1), rounds(n, 1, 0.001)).outcome is (FAIL if n == 6 else INCONCLUSIVE)


def test_speed_of_one_architecture_is_the_ratio_alone() -> None:
    assert judge_speed(label="1 s", largest=0.75, ratio=0.7501).outcome is FAIL
    assert judge_speed(label="1 s", largest=0.75, ratio=0.75).outcome is PASS
    assert speed([1.0, 1.1], []).outcome is FAIL
    assert speed([], [1.0, 1.1]).outcome is FAIL


def test_a_chance_of_just_a_tenth_of_a_percent_is_not_below_it() -> None:
    """One round above all of 999 others has a chance of just 1 in 1000."""
    assert "wrong fail 0.1 %" in speed([9.0], rounds(999, 1, 0.001)).reason
    assert "wrong fail below 0.1 %" in speed([9.0], rounds(1000, 1, 0.001)).reason


# --- latency ---


def test_latency_passes_within_the_claim_or_over_it_by_the_floor() -> None:
    verdict = judge_latency(claimed=0.5, seconds=[0.4, 0.5, 0.9])
    assert verdict == Verdict(PASS, "0.5 s a call, at most 0.5 s claimed on this device")
    assert judge_latency(claimed=1e-4, seconds=[2e-4] * 20).outcome is PASS
    assert judge_latency(claimed=0.5, seconds=[0.50009] * 20).outcome is PASS
    assert judge_latency(claimed=0.5, seconds=[0.50011] * 20).outcome is FAIL


@pytest.mark.parametrize("n", [*range(1, 30), 100])
def test_latency_fails_by_the_sign_test(n: int) -> None:
    for below in range((n + 1) // 2):
        verdict = judge_latency(claimed=0.5, seconds=[0.4] * below + [0.6] * (n - below))
        chance = binom.cdf(below, n, 0.5)
        assert verdict.outcome is (FAIL if chance < 0.002 else INCONCLUSIVE)
        if verdict.outcome is FAIL:
            assert verdict.figures["wrong_call"] == pytest.approx(chance, rel=1e-9)


def test_latency_tells_how_many_rounds_are_within() -> None:
    """A round on the claim is within it."""
    told = "0.61 s a call, at most 0.5 s claimed on this device; "
    verdict = judge_latency(claimed=0.5, seconds=[0.5] + [0.61] * 9)
    assert verdict.reason == f"{told}cannot tell: 1 of 10 rounds are within it"
    failed = judge_latency(claimed=0.5, seconds=[0.61] * 9)
    assert failed.reason == f"{told}chance of a wrong fail 0.2 %"
    for number, cause in ((8, "8 rounds are too few"), (9, "1 of 9 rounds")):
        verdict = judge_latency(claimed=0.5, seconds=[0.4] + [0.61] * (number - 1))
        assert verdict.outcome is INCONCLUSIVE
        assert cause in verdict.reason


def test_a_latency_next_to_its_claim_shows_by_how_much_it_is_over() -> None:
    verdict = judge_latency(claimed=1.0, seconds=[1.0002] * 20)
    assert verdict.outcome is FAIL
    assert verdict.reason.startswith("1.0002 s a call, at most 1 s claimed on this device;")


@pytest.mark.parametrize(("seconds", "outcome"), [(1.8, PASS), (2.19, PASS), (2.21, FAIL)])
def test_a_recorded_latency_may_be_a_tenth_longer_another_day(seconds: float, outcome: Outcome) -> None:
    verdict = judge_recorded_latency(recorded=2.0, seconds=[seconds] * 20)
    assert verdict.outcome is outcome
    assert verdict.reason.endswith("(recorded 2 s, margin 10%)")
    assert "at most 2.2 s claimed on this device" in verdict.reason
    assert ("wrong_call" in verdict.figures) is (outcome is FAIL)


# --- memory ---

MIB = 2**20


@pytest.mark.parametrize(
    ("claimed", "over", "outcome"),
    [
        (4000 * MIB, -1000 * MIB, PASS),
        (4000 * MIB, 0, PASS),
        (4000 * MIB, 39 * MIB, PASS),  # within 1 %
        (4000 * MIB, 41 * MIB, FAIL),
        (1600 * MIB, 16 * MIB, PASS),
        (1600 * MIB, 16 * MIB + 1, FAIL),
        (1 * MIB, 1 * MIB, PASS),  # twice the claim, and within 1 MiB
        (1 * MIB, 1 * MIB + 1, FAIL),
    ],
)
def test_memory_fails_over_one_percent_and_one_mebibyte(claimed: int, over: int, outcome: Outcome) -> None:
    assert judge_memory(claimed=claimed, measured=claimed + over).outcome is outcome


def test_memory_is_told_in_mebibytes() -> None:
    verdict = judge_memory(claimed=4000 * MIB, measured=4100 * MIB)
    assert verdict.reason == "4,100 MiB at the peak, at most 4,000 MiB claimed"
    assert judge_memory(claimed=1.0, measured=1.0).outcome is PASS


# --- verdicts joined, and those without a judgement ---


@pytest.mark.parametrize(
    ("one", "other"), [*itertools.combinations((PASS, UNCALIBRATED, INCONCLUSIVE, FAIL), 2)]
)
def test_the_worse_of_two_verdicts_decides_and_both_are_told(one: Outcome, other: Outcome) -> None:
    first, second = Verdict(one, "one", {"worse_by": 1}), Verdict(other, "other", {"worse_by": 2})
    decides = first if other is UNCALIBRATED else second
    assert worst(first, second) == Verdict(decides.outcome, "one; other", decides.figures)
    assert worst(second, first) == Verdict(decides.outcome, "other; one", decides.figures)
    assert worst(first, first).outcome is one
