"""Judge a measured figure by a claimed one: pure functions on numbers that return a printable verdict.

Identity comes first: figures of two protocols, or of two numbers of images, are never compared. Then one
margin per metric decides: a figure passes when it is no worse than the claim by more than the margin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """What a claim comes to."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    MISMATCH = "mismatch"
    """Not comparable: something else than the weights differs."""
    UNCALIBRATED = "uncalibrated"
    """Measured, but there is nothing to compare it with."""
    UNAVAILABLE = "unavailable"
    """Not measured: this machine lacks something; the reason names the remedy."""
    ERROR = "error"
    """Not measured: the card, the checkpoint or the data is broken."""


@dataclass(frozen=True)
class Verdict:
    """An outcome and one line that a release manager understands."""

    outcome: Outcome
    reason: str


def judge_score(
    *,
    label: str,
    claimed: float,
    measured: float,
    margin: float,
    higher_is_better: bool,
    decimals: int,
    standard_error: float | None = None,
) -> Verdict:
    """Judge a quality score: no worse than the claim by more than the margin.

    All figures are in the metric's own unit. A score that is better than the claim by more than the margin
    passes, and says so: such a surprise deserves a look. Raises ValueError if a figure is not finite or the
    margin is negative.
    """
    for name, figure in (("claimed", claimed), ("measured", measured), ("margin", margin)):
        if not math.isfinite(figure):
            raise ValueError(f"{label}: {name} is {figure}; a verdict needs finite figures")
    if margin < 0:
        raise ValueError(f"{label}: margin is {margin}; give 0 or more, in the unit of the metric")
    worse = claimed - measured if higher_is_better else measured - claimed
    spread = f" ± {standard_error:.{decimals}f}" if standard_error is not None else ""
    figures = f"{label}: claimed {claimed:.{decimals}f}, measured {measured:.{decimals}f}{spread}"
    if worse > margin + _rounding(claimed, measured):
        return Verdict(
            Outcome.FAIL, f"{figures}: worse by {worse:.{decimals}f}, margin {margin:.{decimals}f}"
        )
    if worse < -margin:
        return Verdict(
            Outcome.PASS,
            f"{figures}: better by {-worse:.{decimals}f}, more than the margin {margin:.{decimals}f}: look",
        )
    return Verdict(Outcome.PASS, f"{figures}: within the margin {margin:.{decimals}f}")


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
    figures = f"claimed {claimed / 1e9:,.4g} G MACs a call, counted {measured / 1e9:,.4g} G ({off:+.2%})"
    return Verdict(Outcome.PASS if abs(off) <= tolerance else Outcome.FAIL, figures)


def judge_ratio(*, label: str, largest: float, measured: float) -> Verdict:
    """Judge a ratio to the baseline (latency or memory) by the largest one that the card allows."""
    if not measured > 0:
        raise ValueError(f"{label}: the measured ratio is {measured}; a ratio is above 0")
    figures = f"{label}: {measured:.3f} of the baseline, at most {largest:.3f} claimed"
    return Verdict(Outcome.PASS if measured <= largest else Outcome.FAIL, figures)


def judge_memory(*, claimed: float, measured: float) -> Verdict:
    """Judge a peak in bytes; a peak of nothing is a failed measurement, never a pass."""
    if not measured > 0:
        raise ValueError(f"the measured peak is {measured} bytes; a peak is above 0")
    figures = f"{measured / 2**20:,.0f} MiB at the peak, at most {claimed / 2**20:,.0f} MiB claimed"
    return Verdict(Outcome.PASS if measured <= claimed else Outcome.FAIL, figures)


def mismatch(difference: str) -> Verdict:
    """Say that two figures cannot be compared, and what differs."""
    return Verdict(Outcome.MISMATCH, f"not comparable: {difference}")


def uncalibrated(reason: str) -> Verdict:
    """Say that a figure was measured and has nothing to be compared with."""
    return Verdict(Outcome.UNCALIBRATED, reason)


def _rounding(claimed: float, measured: float) -> float:
    """Allow for the last bit: 16.98 + 0.45 and 17.43 differ by one, and 17.43 lies on the margin."""
    return 4 * max(math.ulp(claimed), math.ulp(measured))
