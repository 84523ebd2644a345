"""Judge sizes, multiply-accumulates, latencies and memory by claimed figures: pure functions on numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from pytest_sdbench.gate.verdict import Outcome, Verdict
from pytest_sdbench.gate.words import digits_apart, percent

RANK_LEVEL = 0.002
"""Of the rank test that a speed must fail: machines are noisy in ways that no model of theirs covers."""

LATENCY_FLOOR = 1e-4
"""Seconds a call by which a latency must be over before it fails."""

LATENCY_MARGIN = 0.1
"""Share of a recorded latency that a device's clock, temperature and driver may add another day."""

MEMORY_MARGIN, MEMORY_FLOOR = 0.01, 1 << 20
"""Share of the claim, and bytes, by which a peak must be over before it fails."""


def judge_count(*, label: str, claimed: int, measured: int) -> Verdict:
    """Judge a number of parameters, which is exact."""
    if claimed == measured:
        return Verdict(Outcome.PASS, f"{label}: {measured:,} parameters, as claimed")
    return Verdict(
        Outcome.FAIL,
        f"{label}: claimed {claimed:,} parameters, counted {measured:,} ({measured - claimed:+,})",
    )


def judge_compute(*, claimed: float, measured: float, tolerance: float = 1e-3) -> Verdict:
    """Judge multiply-accumulates of one U-Net call; a claim is printed to four digits, hence 0.1 %."""
    off = measured / claimed - 1
    digits = digits_apart(100 * abs(off), 100 * tolerance, 2)
    share = f"{100 * abs(off):.{digits}f}"
    counted = f"{measured / 1e9:,.4g} G ({'-' if off < 0 else '+'}{share} %)"
    figures = f"claimed {claimed / 1e9:,.4g} G MACs a call, counted {counted}"
    return Verdict(Outcome.PASS if abs(off) <= tolerance else Outcome.FAIL, figures)


def judge_speed(
    *,
    label: str,
    largest: float,
    ratio: float,
    seconds: Sequence[float] = (),
    baseline_seconds: Sequence[float] = (),
) -> Verdict:
    """Judge a latency ratio by the largest one that the card allows; rounds were taken in turn, in seconds.

    It fails only where three agree: the ratio is above the claim, the candidate's rounds are longer than
    the allowed share of the baseline's by their ranks (Mann and Whitney 1947, one-sided, p < 0.002), and
    the medians differ by more than 0.1 ms. Above the claim without the ranks' support is inconclusive;
    below the floor is a pass. Without rounds (architectures that are equal) the ratio alone decides.
    Raises ValueError for a ratio, an allowed ratio or a time that is not above 0.
    """
    for name, figure in (("measured", ratio), ("allowed", largest)):
        if not figure > 0:
            raise ValueError(f"{label}: the {name} ratio is {figure}; a ratio is above 0")
    _check_times([*seconds, *baseline_seconds])
    digits = digits_apart(ratio, largest, 3)
    figures = f"{label}: {ratio:.{digits}f} of the baseline, at most {largest:.{digits}f} claimed"
    if ratio <= largest:
        return Verdict(Outcome.PASS, figures)
    if not seconds or not baseline_seconds:
        return Verdict(Outcome.FAIL, figures)
    allowed = [largest * time for time in baseline_seconds]
    over = median(seconds) - median(allowed)
    if over <= LATENCY_FLOOR:
        small = f"over by {1e3 * max(over, 0.0):.3f} ms a call, which is no difference"
        return Verdict(Outcome.PASS, f"{figures}; {small}")
    chance = larger_by_rank(seconds, allowed)
    if chance < RANK_LEVEL:
        return Verdict(
            Outcome.FAIL,
            f"{figures}; over by {1e3 * over:.3g} ms a call, chance of a wrong fail {percent(chance)}",
            {"wrong_call": chance},
        )
    best = 1 / math.comb(len(seconds) + len(allowed), len(seconds))
    cause = f"{len(seconds)} rounds are too few" if best >= RANK_LEVEL else "the rounds scatter too much"
    return Verdict(
        Outcome.INCONCLUSIVE,
        f"{figures}; cannot tell: {cause} (p {chance:.2g}, below {RANK_LEVEL} tells); run it on a quieter or "
        "faster machine",
    )


def judge_latency(*, claimed: float, seconds: Sequence[float]) -> Verdict:
    """Judge the rounds of a call, in seconds, by the largest median that is claimed of the same device.

    It fails only where the median is over by more than 0.1 ms and nearly all rounds are over: by the sign
    test, p < 0.002. Raises ValueError without rounds or for a time that is not above 0.
    """
    if not seconds:
        raise ValueError("a latency needs rounds")
    _check_times([*seconds, claimed])
    middle = median(seconds)
    digits = digits_apart(middle, claimed, 4, "g")
    figures = f"{middle:.{digits}g} s a call, at most {claimed:.{digits}g} s claimed on this device"
    if middle <= claimed + LATENCY_FLOOR:
        return Verdict(Outcome.PASS, figures)
    below = sum(time <= claimed for time in seconds)
    chance = sum(math.comb(len(seconds), k) for k in range(below + 1)) / 2 ** len(seconds)
    if chance < RANK_LEVEL:
        return Verdict(
            Outcome.FAIL, f"{figures}; chance of a wrong fail {percent(chance)}", {"wrong_call": chance}
        )
    few = 0.5 ** len(seconds) >= RANK_LEVEL
    cause = f"{len(seconds)} rounds are too few" if few else f"{below} of {len(seconds)} rounds are within it"
    return Verdict(Outcome.INCONCLUSIVE, f"{figures}; cannot tell: {cause}")


def judge_recorded_latency(*, recorded: float, seconds: Sequence[float]) -> Verdict:
    """Judge the rounds of a call, in seconds, by what it took on the same device another day.

    As `judge_latency`, with a margin for the device's clock.
    """
    verdict = judge_latency(claimed=(1 + LATENCY_MARGIN) * recorded, seconds=seconds)
    margin = f"recorded {recorded:.4g} s, margin {LATENCY_MARGIN:.0%}"
    return replace(verdict, reason=f"{verdict.reason} ({margin})")


def judge_memory(*, claimed: float, measured: float) -> Verdict:
    """Judge a peak in bytes; a peak of nothing is a failed measurement, never a pass.

    Allocators round: it fails if it is over by more than 1 % and by more than 1 MiB.
    """
    for name, figure in (("measured", measured), ("claimed", claimed)):
        if not figure > 0:
            raise ValueError(f"the {name} peak is {figure} bytes; a peak is above 0")
    figures = f"{measured / 2**20:,.0f} MiB at the peak, at most {claimed / 2**20:,.0f} MiB claimed"
    over = measured - claimed
    failed = over > MEMORY_MARGIN * claimed and over > MEMORY_FLOOR
    return Verdict(Outcome.FAIL if failed else Outcome.PASS, figures)


def worst(first: Verdict, second: Verdict) -> Verdict:
    """Join two verdicts of one test: what is worse decides, and both are told; what has no claim does not."""
    order = (
        Outcome.UNCALIBRATED,
        Outcome.PASS,
        Outcome.UNAVAILABLE,
        Outcome.MISMATCH,
        Outcome.INCONCLUSIVE,
        Outcome.FAIL,
        Outcome.ERROR,
    )
    decided = max(first, second, key=lambda verdict: order.index(verdict.outcome))
    return Verdict(decided.outcome, f"{first.reason}; {second.reason}", decided.figures)


def _check_times(seconds: Sequence[float]) -> None:
    for time in seconds:
        if not 0 < time < math.inf:
            raise ValueError(f"a time is {time} seconds; a time is finite and above 0")


def larger_by_rank(first: Sequence[float], second: Sequence[float]) -> float:
    """Return how likely the first sample ranks as high above the second as it does, were both of one kind.

    The one-sided p-value of the U test (Mann and Whitney 1947) from U's exact distribution without ties; a
    tie counts against the finding, which keeps the p-value valid. Raises ValueError for an empty sample.
    """
    if not first or not second:
        raise ValueError("a rank test needs two samples")
    above = sum(a > b for a in first for b in second)
    counts = _orders(len(first), len(second))
    return sum(counts[above:]) / sum(counts)


def _orders(n: int, m: int) -> list[int]:
    """Return in how many orders of n and m values U is 0, 1, ..., n m: the Gaussian binomial's coefficients.

    They are those of prod_i (1 - q^(m + i)) / (1 - q^i), i = 1 ... n.
    """
    size = n * m + 1
    counts = [1] + [0] * (size - 1)
    for i in range(1, n + 1):
        for u in range(size - 1, m + i - 1, -1):
            counts[u] -= counts[u - m - i]
        for u in range(i, size):
            counts[u] += counts[u - i]
    return counts
