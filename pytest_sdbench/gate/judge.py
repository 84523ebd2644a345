"""Judge a card's claims under one protocol: join what was measured, recorded and claimed into verdicts.

The claims of a protocol are judged together, since their images are the same and since fail decisions are
corrected for their number; with a budget, again and again on growing numbers of images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from pytest_sdbench.base.errors import Unavailable
from pytest_sdbench.cards.card import Card, Claim
from pytest_sdbench.cards.cases import other_protocol
from pytest_sdbench.cards.claims import passes_anything
from pytest_sdbench.cards.edit import scalar
from pytest_sdbench.cards.records import Record, nearly
from pytest_sdbench.gate import verdict as judges
from pytest_sdbench.gate.calibration import Calibration, read_calibration
from pytest_sdbench.gate.looks import Look, looks
from pytest_sdbench.gate.pairing import Recorded, evidence_path, read_recorded
from pytest_sdbench.gate.verdict import (
    Outcome,
    Score,
    Verdict,
    chance_of_pass,
    judge_scores,
    mismatch,
    smallest_margin,
    uncalibrated,
)
from pytest_sdbench.metrics.difference import FEWEST_PROMPTS, Difference, difference, worst_loss
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.names import METRICS
from pytest_sdbench.protocols.protocol import Protocol

if TYPE_CHECKING:
    from pytest_sdbench.evaluation.evaluate import Evaluation

if TYPE_CHECKING:
    from pytest_sdbench.evaluation.evaluate import Evaluation


Evaluate = Callable[[int | None], "Evaluation"]
"""Evaluates the checkpoint under the protocol with so many images; None: with all of them."""


@dataclass(frozen=True)
class Judged:
    """What a claim came to, and the look at which it did."""

    verdict: Verdict
    evaluation: Evaluation
    measured: float | None
    """The score, or what it is predicted to be with all images of the protocol."""
    estimate: Estimate | Undefined | None
    margin: float | None


def gated(card: Card) -> set[tuple[str, str]]:
    """Return the pairs of protocol and metric that a card is gated by."""
    return {(claim.gate_protocol, claim.metric) for claim in card.claims if claim.gate_protocol is not None}


def judge(
    card: Card,
    protocol: Protocol,
    evaluate: Evaluate,
    budget: int | None = None,
    recorded: Recorded | None = None,
) -> dict[str, Judged]:
    """Return the verdict of each claim of a card under a protocol, by the claim's id.

    Without `budget` there is one look, at all images. With it the looks of `sequential.looks` are taken until
    every claim is decided, one has failed, or the budget is spent; a claim keeps the verdict of the look that
    decided it. `recorded` are the images to be paired with; by default those that lie beside the card.
    """
    claims = [claim for claim in card.claims if claim.gate_protocol == protocol.name]
    claims = [claim for claim in claims if not other_protocol(claim, protocol)]
    recorded = recorded or read_recorded(evidence_path(card.path, card.name, protocol.name))
    context = _Context(card, protocol, recorded)
    plan = [Look(protocol.n, 1.0)] if budget is None else looks(protocol.n, budget)
    found: dict[str, Judged] = {}
    for look in plan:
        try:
            evaluation = evaluate(None if look.n == protocol.n else look.n)
        except Unavailable as lacking:
            if not found:
                raise
            # What earlier looks found stands; what they left open stays open.
            found = {name: _left_open(judged, lacking) for name, judged in found.items()}
            break
        fresh = context.judge(claims, evaluation, look)
        for claim in claims:
            known = found.get(claim.id)
            if known is None or known.verdict.outcome is Outcome.INCONCLUSIVE:
                found[claim.id] = fresh[claim.id]
        outcomes = {judged.verdict.outcome for judged in found.values()}
        if Outcome.INCONCLUSIVE not in outcomes or Outcome.FAIL in outcomes or Outcome.ERROR in outcomes:
            break
    return found


def _left_open(judged: Judged, lacking: Unavailable) -> Judged:
    if judged.verdict.outcome is not Outcome.INCONCLUSIVE:
        return judged
    reason = f"{judged.verdict.reason}; no more images: {lacking}"
    return replace(judged, verdict=replace(judged.verdict, reason=reason))


class _Context:
    """What the claims of one card under one protocol are judged by."""

    def __init__(self, card: Card, protocol: Protocol, recorded: Recorded | None) -> None:
        self.card, self.protocol = card, protocol
        fits = recorded is not None and recorded.protocol_fingerprint == protocol.fingerprint
        self.recorded = recorded if fits else None
        self.outdated = recorded is not None and not fits
        self.calibration: Calibration | None = read_calibration(protocol)
        self.family = len(gated(card))

    def judge(self, claims: list[Claim], evaluation: Evaluation, look: Look) -> dict[str, Judged]:
        found: dict[str, Judged] = {}
        # A figure that is published and recorded is one score claimed twice: each kind is a family.
        for kind in dict.fromkeys(claim.kind for claim in claims):
            scores: dict[str, Score] = {}
            notes: dict[str, list[str]] = {}
            refused: dict[str, str] = {}
            for claim in (claim for claim in claims if claim.kind == kind):
                judged = self._prepare(claim, evaluation, look, notes, refused)
                if isinstance(judged, Score):
                    scores[claim.id] = judged
                else:
                    found[claim.id] = judged
            family = max(self.family, len(scores))
            verdicts = judge_scores(list(scores.values()), family=family, share=look.share)
            by_id = {claim.id: claim for claim in claims}
            for (name, score), verdict in zip(scores.items(), verdicts, strict=True):
                claim = by_id[name]
                # What is surely worse fails, however coarse the margin is for what is not.
                if name in refused and verdict.outcome is not Outcome.FAIL:
                    verdict, notes[name] = Verdict(Outcome.ERROR, refused[name]), []
                found[name] = Judged(
                    self._noted(verdict, claim, evaluation, notes[name]),
                    evaluation,
                    score.measured,
                    evaluation.estimates[claim.metric],
                    score.margin,
                )
        return found

    def _prepare(
        self,
        claim: Claim,
        evaluation: Evaluation,
        look: Look,
        notes: dict[str, list[str]],
        refused: dict[str, str],
    ) -> Score | Judged:
        """Return the score to be judged, or the verdict where there is nothing to judge."""
        metric, protocol = METRICS[claim.metric], self.protocol
        margin = claim.margin if claim.margin is not None else protocol.margins.get(claim.metric)
        estimate = evaluation.estimates.get(claim.metric)

        def without(verdict: Verdict) -> Judged:
            value = estimate.value if isinstance(estimate, Estimate) else None
            return Judged(self._noted(verdict, claim, evaluation, []), evaluation, value, estimate, margin)

        if estimate is None:
            return without(Verdict(Outcome.UNAVAILABLE, str(evaluation.lacking.get(claim.metric, ""))))
        early = look.n < protocol.n and evaluation.protocol == protocol.with_samples(look.n)
        if isinstance(estimate, Undefined):
            reason = f"{metric.label} is not defined: {estimate.reason}"
            return without(Verdict(Outcome.INCONCLUSIVE if early else Outcome.MISMATCH, reason))
        shown = f"{metric.label} {estimate.value:.{metric.decimals}f} on {estimate.n:,} images"
        if not early and evaluation.protocol_fingerprint != protocol.fingerprint:
            return without(mismatch(f"{shown}; {evaluation.difference(protocol)}"))
        if margin is None:
            return without(uncalibrated(f"{shown}; neither the card nor {protocol.name} has a margin for it"))
        if passes_anything(claim.metric, claim.value, margin):
            reason = (
                f"{self.card.path}: sdbench.margins: the margin of {metric.label} under {protocol.name}, "
                f"{margin:g}, beside the claim of {claim.text} would pass nearly anything. Give one well "
                f"below {metric.room(claim.value):g}"
            )
            return without(Verdict(Outcome.ERROR, reason))
        if early and not evaluation.foretells:
            once = f"{shown}: prompts that the protocol comes back to, which say too little of its score"
            return without(Verdict(Outcome.INCONCLUSIVE, once))
        notes[claim.id] = [f"a prediction for {protocol.n:,} images"] if early else []
        predicted = estimate.at(protocol.n)
        if predicted is None:
            few = (
                f"{shown}: too few images, or a few that outweigh the rest, to predict that of {protocol.n:,}"
            )
            return without(Verdict(Outcome.INCONCLUSIVE, few))
        score = Score(
            label=metric.label,
            claimed=claim.value,
            measured=predicted,
            margin=margin,
            higher_is_better=metric.higher_is_better,
            decimals=max(metric.decimals, _decimals(claim.text), _decimals(f"{margin:g}")),
            error=None,
            interval=estimate.standard_error,
            n=estimate.n,
            most=protocol.n,
        )
        prompts = estimate.n if evaluation.groups is None else int(evaluation.groups.max()) + 1
        if prompts < FEWEST_PROMPTS:
            return score
        paired = self._paired(claim, estimate, score, evaluation)
        if paired is not None:
            notes[claim.id].append("paired with the recorded images")
            return paired
        if self.outdated:
            notes[claim.id].append(
                "the recorded images are of another protocol: --sdbench-update renews them"
            )
        if self.recorded is not None and not self._recorded_of(claim):
            notes[claim.id].append("without the recorded images, which are not the claim's")
        if estimate.standard_error is None:
            return score
        ours = estimate.standard_error * math.sqrt(estimate.n / protocol.n)
        record = self.record(claim.metric)
        spread = self.calibration.spread(claim.metric) if self.calibration else None
        known = spread if record is None else record.standard_error
        claim_error = ours if known is None else known
        # An identical checkpoint scatters as the claim does, but of seeds alone it scatters by less than the
        # test must assume of prompts and seeds. What few images say of the noise of many is too much (its
        # second-order part falls faster), so an early look refuses nothing by itself.
        assumed = claim_error if record is not None else ours
        needed = smallest_margin(math.sqrt(2) * claim_error, assumed=math.hypot(assumed, claim_error))
        if margin < needed and not (early and record is None):
            chance = chance_of_pass(
                margin, math.sqrt(2) * claim_error, assumed=math.hypot(assumed, claim_error)
            )
            refused[claim.id] = (
                f"{self.card.path}: sdbench.margins: the margin of {metric.label} under {protocol.name}, "
                f"{margin:g}, is smaller than the noise: an identical checkpoint would pass in {chance:.0%} "
                f"of runs. Give at least {_rounded_up(needed)}"
            )
        # A score that came out low by chance has a small standard error, FID above all, and would pass too
        # often: a candidate is taken for no less uncertain than the checkpoint of the claim.
        theirs = claim_error * math.sqrt(protocol.n / estimate.n) if record is not None else 0.0
        error = math.hypot(max(estimate.standard_error, theirs), claim_error)
        return replace(score, error=error, claim_error=claim_error)

    def _paired(self, claim: Claim, estimate: Estimate, score: Score, evaluation: Evaluation) -> Score | None:
        """Return the score as its difference from the card's own recorded images tells it, where it can."""
        if self.recorded is None:
            return None
        whole = self.recorded.looks.get(self.protocol.n, {}).get(claim.metric)
        same = self.recorded.looks.get(estimate.n, {}).get(claim.metric)
        # A claim that is not the score of these images is not as certain as they are.
        if whole is None or same is None or not self._recorded_of(claim):
            return None
        found = difference(estimate, same, at=self.protocol.n, groups=evaluation.groups)
        if found is None or not found.paired or found.standard_error is None:
            return None
        # Of the very checkpoint on the very set-up nothing is unseen. Anything else may fail where these
        # images do not show it, as badly as the worst of those that do.
        unseen = 0.0
        if not self._made_alike(claim, evaluation):
            unseen = worst_loss(estimate, same, evaluation.groups, higher_is_better=score.higher_is_better)
        # The claim is these images' score but for its rounding.
        rounding = abs(whole.value - claim.value)
        return replace(
            score,
            measured=whole.value + found.value,
            error=math.hypot(found.standard_error, rounding),
            claim_error=rounding,
            unseen=unseen,
        )

    def _made_alike(self, claim: Claim, evaluation: Evaluation) -> bool:
        """Return whether the recorded images are this checkpoint's, of such a device and these libraries."""
        assert self.recorded is not None
        record = self._current(claim.metric)
        return (
            evaluation.checkpoint_fingerprint == self.recorded.checkpoint_fingerprint
            and record is not None
            and record.device == evaluation.device
            and record.versions == evaluation.versions
        )

    def _recorded_of(self, claim: Claim) -> bool:
        """Return whether a claim may be the score of the recorded images, for all that they say of it."""
        assert self.recorded is not None
        record = self._current(claim.metric)
        owner = record.checkpoint_fingerprint if record is not None else None
        if owner not in (None, self.recorded.checkpoint_fingerprint):
            return False
        whole = self.recorded.looks.get(self.protocol.n, {}).get(claim.metric)
        if whole is None or _prints_as(whole.value, claim):
            return True
        # The record of these very images may be of another batch size, which moves the last digits.
        return claim.record is not None and owner is not None and nearly(whole.value, claim.value)

    def record(self, metric: str) -> Record | None:
        """Return the record of a score under the protocol as it is, if it has a standard error."""
        found = self._current(metric)
        return found if found is not None and found.standard_error is not None else None

    def _current(self, metric: str) -> Record | None:
        for record in self.card.records:
            current = record.protocol_fingerprint in (None, self.protocol.fingerprint)
            if record.key == (self.protocol.name, metric) and current and record.n == self.protocol.n:
                return record
        return None

    def _noted(self, verdict: Verdict, claim: Claim, evaluation: Evaluation, notes: list[str]) -> Verdict:
        notes = [*notes, *([f"assumed protocol {self.protocol.name}"] if claim.assumed else [])]
        notes += evaluation.notes
        return replace(verdict, reason=verdict.reason + (f" ({'; '.join(notes)})" if notes else ""))


def beside(baseline: Card, protocol: Protocol, judged: Judged) -> Difference | None:
    """Return a score less that of the baseline's recorded images, prompt by prompt; None without such images.

    Nothing is claimed of it: it is shown. A baseline with another protocol of its own (a consistency model's
    teacher) has no images that compare.
    """
    recorded = read_recorded(evidence_path(baseline.path, baseline.name, protocol.name))
    if recorded is None or recorded.protocol_fingerprint != protocol.fingerprint:
        return None
    estimate, measured = judged.estimate, judged.evaluation.protocol
    if not isinstance(estimate, Estimate) or measured != protocol.with_samples(estimate.n):
        return None
    theirs = recorded.looks.get(estimate.n, {}).get(estimate.metric)
    if theirs is None:
        return None
    return difference(estimate, theirs, at=protocol.n, groups=judged.evaluation.groups)


def claim_errors(card: Card, protocol: Protocol) -> Mapping[str, float]:
    """Return, by metric, the standard error of measured - claimed for an identical checkpoint, unpaired.

    From the records of the card where they say it, else from the protocol's calibration; a metric of which
    neither is known is left out.
    """
    context = _Context(card, protocol, None)
    found: dict[str, float] = {}
    for metric in protocol.metrics:
        record = context.record(metric)
        spread = context.calibration.spread(metric) if context.calibration else None
        error = spread if record is None else record.standard_error
        if error is not None:
            found[metric] = math.sqrt(2) * error
    return found


def _decimals(text: str) -> int:
    try:
        exponent = Decimal(text.replace("_", "")).as_tuple().exponent
    except InvalidOperation:
        return 0
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _prints_as(value: float, claim: Claim) -> bool:
    """Return whether a claim is this value, rounded to the digits that the card prints."""
    return abs(value - claim.value) <= 0.5000001 * 10.0 ** -_decimals(claim.text)


def _rounded_up(figure: float) -> str:
    """Return a figure with two digits, none below it."""
    step = 10.0 ** (math.floor(math.log10(figure)) - 1)
    rounded = float(f"{math.ceil(figure / step) * step:.2g}")
    # As a card may hold it: YAML takes 4e-05 for a word.
    return f"{rounded:g}" if rounded >= 1e-4 else scalar(rounded)


def _unclaimed(protocol: Protocol, evaluation: Evaluation, metric: str) -> Judged:
    estimate = evaluation.estimates.get(metric)
    label, decimals = METRICS[metric].label, METRICS[metric].decimals
    value = estimate.value if isinstance(estimate, Estimate) else None
    if isinstance(estimate, Undefined):
        verdict = judges.Verdict(judges.Outcome.MISMATCH, f"{label} is not defined: {estimate.reason}")
    elif value is None:
        verdict = judges.uncalibrated(f"{label} was not measured")
    elif not evaluation.complete:
        shown = f"{label} {value:.{decimals}f} on {evaluation.n:,} images"
        verdict = judges.mismatch(f"{shown}; {evaluation.difference(protocol)}")
    else:
        verdict = judges.uncalibrated(
            f"{label} {value:.{decimals}f} on {evaluation.n:,} images; nothing is claimed under "
            f"{protocol.name}: --sdbench-update records it"
        )
    return Judged(verdict, evaluation, value, estimate, protocol.margins.get(metric))
