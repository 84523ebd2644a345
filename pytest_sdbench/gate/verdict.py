"""Judge a measured figure by a claimed one: pure functions on numbers that return a printable verdict.

Identity comes first: figures of two protocols, or of two numbers of images, are never compared. Then a score
is put to a non-inferiority test: it passes when it is surely no worse than the claim by more than the margin,
fails when it is surely worse by more, and is inconclusive in between, where more images are the remedy.
What is sure is said by the normal distribution, and of a share of images by the exact binomial one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from statistics import NormalDist

from pytest_sdbench.gate.binomial import (
    Repeats,
    chance_of_at_least,
    chance_of_at_most,
    chance_of_rise,
    lower_bound,
    most_rise,
    trials_to_tell,
    upper_bound,
)
from pytest_sdbench.gate.words import digits_apart, percent

ALPHA = 0.05
"""Largest chance of a wrong call, one-sided: for a pass of each score, for a fail of all that are claimed
together (the published scores of a card, or the recorded ones)."""

POWER = 0.8
"""A margin must let an identical checkpoint pass at least so often."""

_MOST_TRIALS = 1e9
"""A paired share that more trials than these would tell from its margin lies on it."""

_NORMAL = NormalDist()


class Outcome(StrEnum):
    """What a claim comes to."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    """Measured, but too coarsely for this margin."""
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
    figures: Mapping[str, float] = field(default_factory=dict)
    """What the outcome rests on, for reports: ``worse_by``, ``error``, ``at_most``, ``at_least``, and
    ``wrong_call``, the chance of this outcome where it is wrong."""


def noted(verdict: Verdict, notes: Sequence[str]) -> Verdict:
    """Return a verdict whose reason ends in these notes, in parentheses."""
    return replace(verdict, reason=f"{verdict.reason} ({'; '.join(notes)})") if notes else verdict


@dataclass(frozen=True)
class Score:
    """A score to be judged: all figures in the metric's own unit."""

    label: str
    claimed: float
    measured: float
    margin: float
    higher_is_better: bool
    decimals: int
    error: float | None
    """Standard error of measured - claimed; None where it is not known, which is never a pass."""
    claim_error: float = 0.0
    """The part of `error` that more images do not lessen: what is uncertain about the claim."""
    unseen: float = 0.0
    """By how much one more image, as bad as the worst that is known, would make the score worse."""
    interval: float | None = None
    """Standard error of the measured score alone, for its printed interval."""
    bounds: tuple[float, float] = (-math.inf, math.inf)
    """Between what the metric lies: an interval that is printed ends there."""
    n: int = 0
    """Images behind the measured score."""
    most: int | None = None
    """Images that there can be; None: any number."""
    trials: float | None = None
    """Of a share, lower being better: how many independent images it is of (`binomial.trials_of`). Its errors
    are not asked then, and the claim is taken as it stands: the limit is claim + margin. None: no share."""
    repeats: Repeats = ()
    """Of a share whose prompts are not repeated alike: `binomial.repeats_of`."""
    changed: tuple[float, float] | None = None
    """Of a share paired with the claim's images: how many of `trials` count now alone, and how many there."""
    shift: float = 0.0
    """By how much the share of all the claim's images is above a claim that is rounded."""
    unpaired: Score | None = None
    """The same score without pairing, where a machine may have moved the recorded images: both must fail."""

    @property
    def limit(self) -> float:
        """The value that is worse than the claim by just the margin."""
        return self.claimed - self.margin if self.higher_is_better else self.claimed + self.margin

    @property
    def rise(self) -> float:
        """By how much a paired share is above that of the claim's images."""
        assert self.changed is not None
        assert self.trials is not None
        return (self.changed[0] - self.changed[1]) / self.trials

    @property
    def worse(self) -> float:
        """How much worse the measured score is than the claim; below zero: better."""
        if self.changed is not None:
            return self.rise + self.shift
        return self.claimed - self.measured if self.higher_is_better else self.measured - self.claimed


def judge_score(score: Score, *, family: int = 1, share: float = 1.0) -> Verdict:
    """Judge one score (see `judge_scores`)."""
    return judge_scores([score], family=family, share=share)[0]


def judge_scores(scores: Sequence[Score], *, family: int | None = None, share: float = 1.0) -> list[Verdict]:
    """Judge the scores of a card that were measured together.

    A card passes when every score passes, so a wrong pass of the card is no likelier than one of a score:
    each is tested at 5 %. A card fails when one score fails, so the fail decisions are corrected for their
    number, after Holm (1979). `family` is the number of scores of the whole card; those that are not in
    `scores` count as not failing, which only makes a fail harder. `share` is the part of the 5 % that this
    look of a sequence may spend. Raises ValueError for a figure that is not finite, for a margin or an error
    below zero, and for a family smaller than `scores`.
    """
    family = len(scores) if family is None else family
    if family < len(scores):
        raise ValueError(f"a family of {family} cannot hold {len(scores)} scores")
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; give the part of the error rate to spend, above 0 and at most 1")
    for score in scores:
        _check(score)
    verdicts: dict[int, Verdict] = {}
    chances = [_chance_of_wrong_fail(score) for score in scores]
    failed, level = True, ALPHA
    for rank, i in enumerate(sorted(range(len(scores)), key=lambda i: chances[i])):
        # The first that does not fail stops the rest, which would have to meet its level.
        level = ALPHA * share / (family - rank) if failed else level
        failed = failed and chances[i] <= level
        verdicts[i] = _conclude(scores[i], chances[i], failed=failed, level=level, share=share)
    return [verdicts[i] for i in range(len(scores))]


def smallest_margin(error: float, *, claims: int = 1, assumed: float | None = None) -> float:
    """Return the margin with which an identical checkpoint passes with a probability of 80 %.

    `error` is the standard error of measured - claimed with all images of the protocol, at one look (a
    sequence of looks passes it with 70 %). With `claims` above 1 it is the margin that each of so many
    independent claims needs for all of them to pass. `assumed` is the error that the test reckons with, where
    that is not the true one.
    """
    assumed = error if assumed is None else assumed
    return assumed * _NORMAL.inv_cdf(1 - ALPHA) + error * _NORMAL.inv_cdf(POWER ** (1 / claims))


def chance_of_pass(margin: float, error: float, *, assumed: float | None = None) -> float:
    """Return how likely an identical checkpoint passes: measured - claimed has mean 0 and this error.

    `assumed` is as in `smallest_margin`.
    """
    room = margin - (error if assumed is None else assumed) * _NORMAL.inv_cdf(1 - ALPHA)
    if error == 0:
        return 1.0 if room >= 0 else 0.0
    return _NORMAL.cdf(room / error)


def _conclude(score: Score, wrong_fail: float, *, failed: bool, level: float, share: float) -> Verdict:
    worse, error, unit = score.worse, score.error, f".{score.decimals}f"
    head = f"{score.label}: claimed {score.claimed:{unit}}, measured {_measured(score, unit)}: "
    shown = f"{head}{_by(worse, unit)}"
    margin = f"margin {score.margin:{unit}}"
    if error is None and score.trials is None:
        return Verdict(
            Outcome.INCONCLUSIVE,
            f"{shown}, {margin}; cannot tell: these images do not say what the standard error is (too few "
            "images or prompts, or a few that outweigh the rest)",
            {"worse_by": worse},
        )
    at_least, at_most = _at_least(score, ALPHA * share), _at_most(score, ALPHA * share)
    figures = {"worse_by": worse, "at_least": at_least, "at_most": at_most}
    figures |= {} if error is None else {"error": error}
    wrong_pass = _chance_of_wrong_pass(score)
    if not failed and wrong_pass <= ALPHA * share:
        good = ", better than the claim by more than the margin: look" if at_most < -score.margin else ""
        sure = f"{_bound(at_most, unit)}, {margin}; chance of a wrong pass {percent(wrong_pass)}{good}"
        if float(f"{worse:{unit}}") == float(f"{at_most:{unit}}") == 0:
            sure = margin  # beside no difference at all a chance says nothing
        return Verdict(Outcome.PASS, f"{shown}, {sure}", figures | {"wrong_call": wrong_pass})
    # At the level of its family, which says less than one at that of a single score.
    figures["at_least"] = at_least = _at_least(score, level)
    if failed:
        fine = f".{digits_apart(at_least, score.margin, score.decimals)}f"
        return Verdict(
            Outcome.FAIL,
            f"{head}{_by(worse, fine)}, at least {_signed(at_least, fine)}, margin {score.margin:{fine}}; "
            f"chance of a wrong fail {percent(wrong_fail)}",
            figures | {"wrong_call": wrong_fail},
        )
    least = _signed(at_least, unit)
    remedy = _remedy(score, ALPHA * share if worse < score.margin else level)
    open_ends = f"anything from {least} to {_signed(at_most, unit)}"
    return Verdict(Outcome.INCONCLUSIVE, f"{shown}, {open_ends}, {margin}; cannot tell: {remedy}", figures)


def _chance_of_wrong_pass(score: Score) -> float:
    """Return how likely a checkpoint that is worse by just the margin looks as good as this one.

    Paired images may all be alike, and failures too rare to be among them still make up the margin. So the
    error is at least that of the count of failures as bad as `unseen` that would (a score test, after Wilson
    1927: the variance is that of the null hypothesis).
    """
    if score.trials is not None and score.changed is not None:
        return chance_of_rise(*score.changed, score.trials, score.margin - score.shift)
    if score.trials is not None:
        return chance_of_at_most(score.measured * score.trials, score.trials, score.limit, score.repeats)
    assert score.error is not None
    if score.error == score.unseen == 0:
        return 0.0 if score.worse <= score.margin + _rounding(score) else 1.0
    error = max(score.error, math.sqrt(_unseen_variance(score)))
    return _NORMAL.cdf((score.worse - score.margin) / error) if error else 1.0


def _unseen_variance(score: Score) -> float:
    """Return the variance of failures as bad as `unseen`, as many as make the score worse by the margin."""
    return score.unseen * max(score.margin, score.margin - score.worse)


def _at_least(score: Score, level: float) -> float:
    """Return by how much a score is worse than the claim at least, but for a chance of `level`."""
    if score.unpaired is not None:
        return min(_at_least(each, level) for each in (replace(score, unpaired=None), score.unpaired))
    if score.trials is not None and score.changed is not None:
        more, fewer = score.changed
        return score.shift - most_rise(fewer, more, score.trials, level)
    if score.trials is not None:
        count = score.measured * score.trials
        return lower_bound(count, score.trials, level, score.repeats) - score.claimed
    assert score.error is not None
    return score.worse - _NORMAL.inv_cdf(1 - level) * score.error


def _at_most(score: Score, level: float) -> float:
    """Return by how much a score is worse at most: by no more is the pass of any margin wrong."""
    if score.trials is not None and score.changed is not None:
        return score.shift + most_rise(*score.changed, score.trials, level)
    if score.trials is not None:
        count = score.measured * score.trials
        return upper_bound(count, score.trials, level, score.repeats) - score.claimed
    assert score.error is not None
    quantile = _NORMAL.inv_cdf(1 - level)
    half = quantile * score.unseen / 2
    failures = quantile * (half + math.sqrt(half**2 + score.unseen * max(score.worse, 0.0)))
    return score.worse + max(quantile * score.error, failures)


def _chance_of_wrong_fail(score: Score) -> float:
    """Return how likely a checkpoint that is worse by just the margin looks as bad as this one."""
    if score.unpaired is not None:
        return max(_chance_of_wrong_fail(each) for each in (replace(score, unpaired=None), score.unpaired))
    if score.trials is not None and score.changed is not None:
        more, fewer = score.changed
        return chance_of_rise(fewer, more, score.trials, score.shift - score.margin)
    if score.trials is not None:
        return chance_of_at_least(score.measured * score.trials, score.trials, score.limit, score.repeats)
    if score.error is None:
        return 1.0
    if score.error == 0:
        return 0.0 if score.worse > score.margin + _rounding(score) else 1.0
    return _NORMAL.cdf((score.margin - score.worse) / score.error)


def _remedy(score: Score, level: float) -> str:
    """Say how many images would tell at this level, if any number would."""
    if abs(score.worse - score.margin) <= _rounding(score):
        return "the score lies on the margin"
    if score.unpaired is not None and score.worse > score.margin:
        if score.unpaired.worse > score.margin:
            return _remedy(score.unpaired, level)
        return "the recorded pairs alone show it: record the card anew on this set-up, with --sdbench-update"
    if score.trials is not None and score.changed is not None:
        gap, quantile = abs(score.margin - score.worse), _NORMAL.inv_cdf(1 - level)
        variance = sum(score.changed) / score.trials - score.rise**2
        # Where nothing changed, so many trials without any change would tell.
        needed = max((quantile / gap) ** 2 * variance, -math.log(level) / gap)
        return _images(score, math.inf if needed > _MOST_TRIALS else needed * score.n / score.trials)
    if score.trials is not None:
        trials = trials_to_tell(score.measured, score.limit, level)
        return _images(score, math.inf if trials is None else trials * score.n / score.trials)
    assert score.error is not None
    gap = abs(score.margin - score.worse) / _NORMAL.inv_cdf(1 - level)
    if gap <= score.claim_error:
        return f"the claim itself is uncertain by {score.claim_error:.{score.decimals}f}"
    needed = score.n * (score.error**2 - score.claim_error**2) / (gap**2 - score.claim_error**2)
    if score.worse < score.margin:
        needed = max(needed, score.n * _unseen_variance(score) / gap**2)
    return _images(score, needed)


def _images(score: Score, needed: float) -> str:
    """Say that so many images would tell, or that there are not so many."""
    if needed > _MOST_TRIALS:
        return "the score lies on the margin"
    magnitude = 10 ** max(0, len(str(int(needed))) - 2)
    rounded = math.ceil(needed / magnitude) * magnitude
    longer = "a longer protocol tells, or a wider margin"
    if score.most is not None and rounded > score.most:
        return f"about {rounded:,} images would, and there are {score.most:,}: {longer}"
    if score.n == score.most:
        return f"these are all images there are: {longer}"
    return f"about {rounded:,} images would" if rounded > score.n else "a few more images would"


def _check(score: Score) -> None:
    for name in ("claimed", "measured", "margin", "error", "claim_error", "unseen", "interval"):
        figure = getattr(score, name)
        if figure is not None and not math.isfinite(figure):
            raise ValueError(f"{score.label}: {name} is {figure}; a verdict needs finite figures")
        if name not in ("claimed", "measured") and figure is not None and figure < 0:
            raise ValueError(f"{score.label}: {name} is {figure}; give 0 or more, in the unit of the metric")


def _measured(score: Score, unit: str) -> str:
    if score.trials is not None:
        count = score.measured * score.trials
        low = lower_bound(count, score.trials, 0.025, score.repeats)
        high = upper_bound(count, score.trials, 0.025, score.repeats)
    elif score.interval is None:
        return f"{score.measured:{unit}}"
    else:
        reach, (least, most) = _NORMAL.inv_cdf(0.975) * score.interval, score.bounds
        low, high = score.measured - reach, score.measured + reach
        # Beyond its bounds a score is none that may be claimed, but it is what was measured.
        if least <= score.measured <= most:
            low, high = max(low, least), min(high, most)
    return f"{score.measured:{unit}} (95 % interval {low:{unit}} to {high:{unit}})"


def _by(worse: float, unit: str) -> str:
    shown = f"{abs(worse):{unit}}"
    if float(shown) == 0:
        return "no difference"
    return f"worse by {shown}" if worse > 0 else f"better by {shown}"


def _signed(worse: float, unit: str) -> str:
    return f"{abs(worse):{unit}} {'better' if worse < 0 else 'worse'}"


def _bound(worse: float, unit: str) -> str:
    """Say the most by which a score is worse: the least by which it is better, where that is below zero."""
    if float(f"{worse:{unit}}") < 0:
        return f"at least {_signed(worse, unit)}"
    return f"at most {abs(worse):{unit}} worse"


def _rounding(score: Score) -> float:
    """Allow for the last bit: 16.98 + 0.45 and 17.43 differ by one, and 17.43 lies on the margin."""
    return 4 * max(math.ulp(score.claimed), math.ulp(score.measured))


def mismatch(difference: str) -> Verdict:
    """Say that two figures cannot be compared, and what differs."""
    return Verdict(Outcome.MISMATCH, f"not comparable: {difference}")


def uncalibrated(reason: str) -> Verdict:
    """Say that a figure was measured and has nothing to be compared with."""
    return Verdict(Outcome.UNCALIBRATED, reason)
