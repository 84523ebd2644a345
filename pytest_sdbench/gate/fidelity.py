"""Judge how close pictures are to those of a reference, pair by pair, and say which are worst."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pytest_sdbench.cards.card import Claim
from pytest_sdbench.gate.binomial import most_that_pass, repeats_of, trials_of, upper_bound
from pytest_sdbench.gate.looks import Look
from pytest_sdbench.gate.recorded import RecordedEvidence
from pytest_sdbench.gate.verdict import ALPHA, Outcome, Score, Verdict
from pytest_sdbench.gate.words import rounded_up
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.fidelity.lost import read_by
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.metrics.standard_error import Groups

if TYPE_CHECKING:
    from pytest_sdbench.evaluation.evaluate import Evaluation

MOST = 10
"""Worst images that a report names."""

DOZEN = 12
"""Images from the first one on that a report shows of every checkpoint, whatever they are like."""


@dataclass(frozen=True)
class ImageScore:
    """One image, and what it has of a metric beside what the reference's has."""

    index: int
    prompt: str
    value: float
    reference: float | None
    """Of the same prompt and noise; None where it is not known."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as a report holds it."""
        known = None if self.reference is None else round(self.reference, 6)
        return {
            "index": self.index,
            "prompt": self.prompt,
            "value": round(self.value, 6),
            "reference": known,
        }


@dataclass(frozen=True)
class ImageScores:
    """What each image has of a metric, [n] each, beside what the reference's has."""

    values: npt.NDArray[np.float64]
    theirs: npt.NDArray[np.float64]
    """NaN where it is not known."""
    losses: npt.NDArray[np.float64]
    """By how much each is worse; -inf for those that are not."""
    prompts: Sequence[str]

    @property
    def worst(self) -> list[ImageScore]:
        """The images that lost most, worst first."""
        order = np.argsort(-self.losses, kind="stable")[:MOST]
        return [self._at(index) for index in order if self.losses[index] > -np.inf]

    @property
    def first(self) -> list[ImageScore]:
        """The first dozen, whatever they have."""
        return [self._at(index) for index in range(min(DOZEN, len(self.values)))]

    def _at(self, index: int) -> ImageScore:
        prompt = self.prompts[index] if index < len(self.prompts) else ""
        value, theirs = float(self.values[index]), float(self.theirs[index])
        return ImageScore(int(index), prompt, value, None if np.isnan(theirs) else theirs)


def image_scores(
    estimate: Estimate | Undefined | None, evaluation: Evaluation, recorded: RecordedEvidence | None
) -> ImageScores | None:
    """Return what each image has of a score, and how much it lost; of `lost` what the threshold is of.

    Of a metric of pairs the reference is what equal pictures have; of any other whose score is the mean of
    what each image has, the `recorded` image of the same index. None for a score of all images together.
    """
    if not isinstance(estimate, Estimate) or estimate.influence is None:
        return None
    metric = METRICS[estimate.metric]
    same = None if recorded is None else recorded.estimate(estimate.n, estimate.metric)
    if not metric.per_image:
        return None
    values = estimate.value + estimate.influence
    theirs = np.full(len(values), np.nan) if metric.perfect is None else np.full(len(values), metric.perfect)
    if metric.perfect is None and same is not None and same.influence is not None:
        theirs = same.value + same.influence
    against = np.where(np.isnan(theirs), estimate.value, theirs)
    losses = against - values if metric.higher_is_better else values - against
    # Recorded images are float32: what a record does not show is no loss.
    is_worse = losses > 0.5 * 10.0**-metric.recorded_decimals
    if (looked_at := estimate.looked_at) is not None:
        # All that are lost are lost alike: how far tells what the threshold is of.
        known = read_by(evaluation.protocol.metrics[estimate.metric].extractor)
        values, theirs = looked_at, np.full(len(looked_at), known.perfect)
        losses = theirs - values if known.higher_is_better else values - theirs
    return ImageScores(values, theirs, np.where(is_worse, losses, -np.inf), evaluation.prompts)


def share_score(score: Score, groups: Groups | None) -> Score:
    """Return a share's score with the number of independent images that it is of."""
    return replace(score, trials=trials_of(score.n, groups), repeats=repeats_of(groups))


def too_small_a_margin(score: Score, claim: Claim, plan: Sequence[Look]) -> str:
    """Say that a share's margin lets no checkpoint pass that loses as many as the claim; empty where it does.

    The checkpoint of the claim itself does: its pictures are the same again, and where the claim's are
    recorded, none of them changes. It is asked of each look of `plan`, the last of them at all images of the
    protocol, whose prompts repeat as often as those of `score`.
    """
    assert score.trials is not None
    n, per_image = score.most or score.n, score.trials / score.n
    shift, share, again = score.shift, 0.0, "in which no picture changes"
    if score.changed is None:
        # A record is rounded, and pictures are whole.
        share, again = max(score.claimed, round(score.claimed * n) / n), f"which loses {claim.text} again"
        shift = -score.claimed

    def needed(look: Look) -> float:
        trials = per_image * look.n
        repeats = score.repeats if score.n == look.n else ()
        return upper_bound(share * trials, trials, ALPHA * look.share, repeats) + shift

    least = min(map(needed, plan))
    if score.margin >= least:
        return ""
    looks = "" if len(plan) == 1 else f" at {len(plan)} looks (without --sdbench-budget there is one)"
    what = f"is too small: an identical checkpoint, {again}, cannot pass with {n:,} images{looks}"
    return f"{what}. Give at least {rounded_up(least)}"


def identity_score(score: Score, estimate: Estimate, groups: Groups | None) -> Score:
    """Return the score of a claim that pictures are the reference's own, which is not uncertain by itself.

    One more image, with nothing in common with the reference's, may be missing among these: a prompt's where
    prompts repeat.
    """
    if estimate.influence is None:
        return score
    prompts = np.arange(estimate.n) if groups is None else groups
    moves = np.bincount(prompts, weights=estimate.influence)
    worst = -moves.min() if score.higher_is_better else moves.max()
    unlike = int(np.bincount(prompts).max()) * abs(estimate.value - METRICS[estimate.metric].unlike)
    return replace(score, error=estimate.standard_error, unseen=max(float(worst), unlike) / estimate.n)


def other_reference(claim: Claim, evaluation: Evaluation) -> str:
    """Say that a record was compared with another reference than this evaluation; empty where it was not."""
    made, here = claim.record and claim.record.reference_fingerprint, evaluation.reference
    if made is None or here is None or made == here.fingerprint:
        return ""
    return f"the record compares with the checkpoint {made}, and this run with {here.fingerprint}"


def pair_notes(claim: Claim, score: Score, evaluation: Evaluation, share: float) -> Iterator[str]:
    """Yield what a reader of a verdict on pairs should know; `share` is that of the 5 % at this look."""
    if (reference := evaluation.reference) is None:
        return
    yield f"beside {reference.spec} ({reference.fingerprint})"
    if claim.kind == "identity":
        yield f"the bound must lie within {score.limit:g}"
    if score.changed is not None:
        trials = "" if score.trials == score.n else f" of {score.trials:g} prompts"
        yield f"{score.changed[0]:g} newly lost and {score.changed[1]:g} no longer{trials}"
    elif score.trials is not None:
        most = most_that_pass(score.n, score.trials, score.limit, ALPHA * share, score.repeats)
        if most is None:
            yield f"of {score.n:,} none lost is too many: more images are needed"
        else:
            yield f"at most {most:,} of {score.n:,} lost pass"
    yield from other_setups(evaluation)


def other_setups(evaluation: Evaluation) -> Iterator[str]:
    """Yield that the pictures and the reference's were drawn on different set-ups, where they were."""
    if (reference := evaluation.reference) is not None and _setups_differ(evaluation):
        places = "; ".join(sorted(", ".join(each) for each in reference.setups | evaluation.setups))
        yield f"the two were drawn on different set-ups: {places}"


def spare(verdict: Verdict, claim: Claim, evaluation: Evaluation) -> Verdict:
    """Return a verdict on pairs that were drawn on two set-ups: what they move is no fault of the weights.

    0.005 LPIPS between versions of libraries and 0.07 between models of GPUs were measured by others.
    """
    pairs = METRICS[claim.metric].reads == "pair"
    if verdict.outcome is not Outcome.FAIL or not pairs or not _setups_differ(evaluation):
        return verdict
    remedy = "draw both on one, in an empty --sdbench-store"
    reason = f"{verdict.reason}; cannot tell: another device or library moves pictures too; {remedy}"
    return Verdict(Outcome.INCONCLUSIVE, reason, verdict.figures)


def _setups_differ(evaluation: Evaluation) -> bool:
    reference = evaluation.reference
    return reference is not None and len(reference.setups | evaluation.setups) > 1
