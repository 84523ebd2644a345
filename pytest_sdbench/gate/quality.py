"""Judge a card's claims under one protocol: join what was measured, recorded and claimed into verdicts.

The claims of a protocol are judged together, since their images are the same and since fail decisions are
corrected for their number; with a budget, again and again on growing numbers of images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sdbench.base.errors import CardError, Unavailable
from pytest_sdbench.cards.card import Card, Claim
from pytest_sdbench.cards.cases import Case, other_protocol
from pytest_sdbench.cards.claims import passes_anything
from pytest_sdbench.features.references import reference_of
from pytest_sdbench.gate import fidelity, margins
from pytest_sdbench.gate.calibration import Calibration, read_calibration
from pytest_sdbench.gate.ending import outcome_of
from pytest_sdbench.gate.looks import Look, looks
from pytest_sdbench.gate.pairing import Pairing, decimals_of
from pytest_sdbench.gate.recorded import RecordedEvidence, evidence_path, read_recorded
from pytest_sdbench.gate.verdict import (
    Outcome,
    Score,
    Verdict,
    chance_of_pass,
    judge_scores,
    mismatch,
    noted,
    smallest_margin,
    uncalibrated,
)
from pytest_sdbench.metrics.difference import FEWEST_PROMPTS, Difference, difference
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.metrics.standard_error import count_prompts
from pytest_sdbench.protocols.metric_specs import ReferencedSpec
from pytest_sdbench.protocols.protocol import Protocol

if TYPE_CHECKING:
    from pytest_sdbench.evaluation.evaluate import Evaluation


@dataclass(frozen=True)
class Judgement:
    """What a score came to, and the look at which it did."""

    verdict: Verdict
    evaluation: Evaluation
    measured: float | None
    """The score, or what it is predicted to be with all images of the protocol."""
    estimate: Estimate | Undefined | None
    margin: float | None
    images: fidelity.ImageScores | None = None
    """What each image has, where the score is their mean."""


def incomparable(case: Case, protocol: Protocol | None) -> Verdict | None:
    """Return the verdict of a score that nothing can be compared with; None where a measurement tells.

    `protocol` is that of the case; None where its source states none. Raises CardError for a figure of the
    card that cannot be.
    """
    if case.problem is not None:
        if case.problem.fails:
            raise case.problem.error
        return mismatch(str(case.problem.error))
    if not case.metric:
        return uncalibrated(
            "no score is claimed; name protocols in sdbench.protocols, and --sdbench-update records theirs"
        )
    if protocol is None:
        doubt = case.claim.ungated if case.claim is not None else ""
        return mismatch(doubt or "the source does not state the protocol of this figure")
    other = other_protocol(case.claim, protocol) if case.claim is not None else ""
    return mismatch(other) if other else None


def check_metric(card: Card, case: Case, protocol: Protocol, data_root: Path | None) -> None:
    """Raise where the metric of a case cannot be computed: no image is made for it then.

    Raises CardError for a metric that the protocol lacks, Unavailable for statistics that are not here.
    """
    spec = protocol.metrics.get(case.metric)
    if spec is None:
        raise CardError(
            f"{protocol.name} has no {METRICS[case.metric].label}",
            file=card.path,
            key=case.id,
            remedy=f"It has {', '.join(protocol.metrics)}; name another protocol, or remove the claim",
        )
    if isinstance(spec, ReferencedSpec):
        reference_of(protocol, spec, data_root)


def judge(
    card: Card,
    protocol: Protocol,
    evaluate: Callable[[int | None], Evaluation],
    budget: int | None = None,
    recorded: RecordedEvidence | None = None,
) -> dict[str, Judgement]:
    """Return the verdict of each claim of a card under a protocol, by the claim's id.

    `evaluate` takes the number of images, None for all. Without `budget` there is one look, at all images.
    With it the looks of `looks.looks` are taken until every claim is decided, one has failed, or the budget
    is spent; a claim keeps the verdict of the look that decided it. `recorded` are the images to be paired
    with; by default those that lie beside the card.
    """
    gated = [claim for claim in card.claims if claim.gate_protocol is not None]
    family = len({(claim.gate_protocol, claim.metric) for claim in gated})
    claims = [claim for claim in gated if claim.gate_protocol == protocol.name]
    claims = [claim for claim in claims if not other_protocol(claim, protocol)]
    pairing = Pairing.of(card, protocol, recorded)
    plan = [Look(protocol.n, 1.0)] if budget is None else looks(protocol.n)
    gate = _Gate(card, protocol, pairing, read_calibration(protocol), family, plan)
    found: dict[str, Judgement] = {}
    for look in plan if budget is None else looks(protocol.n, budget):
        try:
            evaluation = evaluate(None if look.n == protocol.n else look.n)
        except Unavailable as lacking:
            if not found:
                raise
            # What earlier looks found stands; what they left open stays open.
            found = {name: _left_open(judgement, lacking) for name, judgement in found.items()}
            break
        fresh = gate.judge(claims, evaluation, look)
        for claim in claims:
            known = found.get(claim.id)
            if known is None or known.verdict.outcome is Outcome.INCONCLUSIVE:
                found[claim.id] = fresh[claim.id]
        outcomes = {judgement.verdict.outcome for judgement in found.values()}
        if Outcome.INCONCLUSIVE not in outcomes or outcomes & {Outcome.FAIL, Outcome.ERROR}:
            break
    return found


def _left_open(judgement: Judgement, lacking: Unavailable) -> Judgement:
    if judgement.verdict.outcome is not Outcome.INCONCLUSIVE:
        return judgement
    reason = f"{judgement.verdict.reason}; no more images: {lacking}"
    return replace(judgement, verdict=replace(judgement.verdict, reason=reason))


@dataclass(frozen=True)
class _Question:
    """A score to be judged, with what is to be said of it."""

    claim: Claim
    score: Score
    notes: Sequence[str]
    refusal: str = ""
    """Why nothing but a fail counts; empty where the margin is wider than the noise."""


@dataclass(frozen=True)
class _Gate:
    """What the claims of one card under one protocol are judged by."""

    card: Card
    protocol: Protocol
    pairing: Pairing
    calibration: Calibration | None
    family: int
    """Scores that the card is gated by, under all protocols."""
    plan: Sequence[Look]
    """All looks, those beyond the budget too."""

    def judge(self, claims: Sequence[Claim], evaluation: Evaluation, look: Look) -> dict[str, Judgement]:
        """Return the verdict of each claim at one look, by the claim's id."""
        found: dict[str, Judgement] = {}
        # A figure that is published and recorded is one score claimed twice: each kind is a family.
        for kind in dict.fromkeys(claim.kind for claim in claims):
            questions: list[_Question] = []
            for claim in (claim for claim in claims if claim.kind == kind):
                verdict = self._without_test(claim, evaluation, look)
                if verdict is None:
                    questions.append(self._question(claim, evaluation, look))
                else:
                    found[claim.id] = self._judgement(claim, verdict, evaluation)
            verdicts = judge_scores(
                [question.score for question in questions],
                family=max(self.family, len(questions)),
                share=look.share,
            )
            for question, verdict in zip(questions, verdicts, strict=True):
                claim, notes = question.claim, question.notes
                # What is surely worse fails, however coarse the margin is for what is not.
                if question.refusal and verdict.outcome is not Outcome.FAIL:
                    verdict = Verdict(Outcome.ERROR, question.refusal)
                judgement = self._judgement(
                    claim, fidelity.spare(verdict, claim, evaluation), evaluation, notes
                )
                found[claim.id] = replace(judgement, measured=question.score.measured)
        return found

    def _judgement(
        self, claim: Claim, verdict: Verdict, evaluation: Evaluation, notes: Sequence[str] = ()
    ) -> Judgement:
        assumed = [f"assumed protocol {self.protocol.name}"] if claim.assumed else []
        verdict = noted(verdict, [*notes, *assumed, *evaluation.notes, *evaluation.changes])
        estimate = evaluation.estimates.get(claim.metric)
        value = estimate.value if isinstance(estimate, Estimate) else None
        images = fidelity.image_scores(estimate, evaluation, self.pairing.recorded)
        return Judgement(verdict, evaluation, value, estimate, self._margin(claim), images)

    def _margin(self, claim: Claim) -> float | None:
        return claim.margin if claim.margin is not None else self.protocol.margins.get(claim.metric)

    def _early(self, evaluation: Evaluation, look: Look) -> bool:
        """Return whether these are fewer images of this very protocol, which foretell the score of all."""
        fewer = look.n < self.protocol.n
        return fewer and evaluation.protocol == self.protocol.with_samples(look.n)

    def _without_test(self, claim: Claim, evaluation: Evaluation, look: Look) -> Verdict | None:
        """Return the verdict where there is no score to be judged, else None."""
        metric, protocol, margin = METRICS[claim.metric], self.protocol, self._margin(claim)
        estimate, early = evaluation.estimates.get(claim.metric), self._early(evaluation, look)
        if estimate is None:
            absent = evaluation.lacking.get(claim.metric) or Unavailable(f"{metric.label} was not measured")
            return Verdict(outcome_of(absent, skipped=False), str(absent))
        if isinstance(estimate, Undefined):
            reason = f"{metric.label} is not defined: {estimate.reason}"
            return Verdict(Outcome.INCONCLUSIVE if early else Outcome.MISMATCH, reason)
        shown = _shown(estimate)
        if not early and evaluation.protocol_fingerprint != protocol.fingerprint:
            return mismatch(f"{shown}; {evaluation.difference(protocol)}")
        if other := fidelity.other_reference(claim, evaluation):
            return mismatch(f"{shown}; {other}; --sdbench-update records it anew")
        if margin is None:
            return uncalibrated(f"{shown}; neither the card nor {protocol.name} has a margin for it")
        if passes_anything(claim.metric, claim.value, margin):
            return Verdict(Outcome.ERROR, margins.too_wide(self.card, protocol, claim, margin))
        if early and not evaluation.foretells:
            lacking = "the protocol repeats these prompts, so they say too little about its score"
        elif early and not metric.foretells:
            lacking = f"it stands for its own number of images alone, and is judged with all {protocol.n:,}"
        elif estimate.at(protocol.n) is None:
            lacking = f"too few images, or a few that outweigh the rest, to predict that of {protocol.n:,}"
        else:
            return None
        return Verdict(Outcome.INCONCLUSIVE, f"{shown}: {lacking}")

    def _question(self, claim: Claim, evaluation: Evaluation, look: Look) -> _Question:
        """Return the score to be judged: paired with the recorded images where that can be."""
        metric, margin, early = METRICS[claim.metric], self._margin(claim), self._early(evaluation, look)
        estimate = evaluation.estimates[claim.metric]
        assert isinstance(estimate, Estimate)
        predicted = estimate.at(self.protocol.n)
        assert margin is not None
        assert predicted is not None
        score = Score(
            label=metric.label,
            claimed=claim.value,
            measured=predicted,
            margin=margin,
            higher_is_better=metric.higher_is_better,
            decimals=max(metric.decimals, decimals_of(claim.text), decimals_of(f"{margin:g}")),
            error=None,
            interval=estimate.standard_error,
            bounds=metric.bounds,
            n=estimate.n,
            most=self.protocol.n,
        )
        notes = [f"a prediction for {self.protocol.n:,} images"] if early else []
        told: list[str] = []
        if metric.share:
            score = fidelity.share_score(score, evaluation.groups)
            if claim.kind != "identity":
                paired = self.pairing.pair(claim, estimate, score, evaluation)
                score, told = paired or score, self.pairing.note(claim, evaluation, paired)
        if metric.reads == "pair":
            notes += fidelity.pair_notes(claim, score, evaluation, look.share)
        if metric.share:
            small = fidelity.too_small_a_margin(score, claim, self.plan)
            refusal = f"{margins.told(self.card, self.protocol, claim, margin)}, {small}" if small else ""
            return _Question(claim, score, [*notes, *told], refusal)
        prompts = count_prompts(estimate.n, evaluation.groups)
        if prompts < FEWEST_PROMPTS:
            return _Question(claim, score, notes)
        if claim.kind == "identity":
            return _Question(claim, fidelity.identity_score(score, estimate, evaluation.groups), notes)
        alone, refusal = self._unpaired(claim, score, estimate.standard_error, early)
        paired = self.pairing.pair(claim, estimate, alone, evaluation)
        notes += self.pairing.note(claim, evaluation, paired)
        return _Question(claim, paired or alone, notes, "" if paired else refusal)

    def _unpaired(self, claim: Claim, score: Score, measured: float | None, early: bool) -> tuple[Score, str]:
        """Add the standard errors, `measured` and the claim's, and refuse a margin below the noise."""
        if measured is None:
            return score, ""
        n = self.protocol.n
        ours = measured * math.sqrt(score.n / n)
        known, recorded = _claim_error(self.pairing, self.calibration, claim.metric)
        claim_error = ours if known is None else known
        # An identical checkpoint scatters as the claim does, but of seeds alone it scatters by less than the
        # test must assume of prompts and seeds. What few images say of the noise of many is too much (its
        # second-order part falls faster), so an early look refuses nothing by itself.
        scatter = math.sqrt(2) * claim_error
        assumed = math.hypot(claim_error if recorded else ours, claim_error)
        needed, refusal = smallest_margin(scatter, assumed=assumed), ""
        if score.margin < needed and not (early and not recorded):
            passing = chance_of_pass(score.margin, scatter, assumed=assumed)
            refusal = margins.too_small(self.card, self.protocol, claim, score.margin, needed, passing)
        # A score that came out low by chance has a small standard error, FID above all, and would pass too
        # often: a candidate is taken for no less uncertain than the checkpoint of the claim.
        theirs = claim_error * math.sqrt(n / score.n) if recorded else 0.0
        error = math.hypot(max(measured, theirs), claim_error)
        return replace(score, error=error, claim_error=claim_error), refusal


def _claim_error(pairing: Pairing, calibration: Calibration | None, metric: str) -> tuple[float | None, bool]:
    """Return the standard error of a claim, and whether a record says it, not the calibration."""
    record = pairing.record(metric)
    if record is not None and record.standard_error is not None:
        return record.standard_error, True
    return (calibration.spread(metric) if calibration else None), False


def judge_unclaimed(metric: str, protocol: Protocol, evaluation: Evaluation) -> Judgement:
    """Return what a score comes to of which nothing is claimed."""
    estimate, label = evaluation.estimates.get(metric), METRICS[metric].label
    value = estimate.value if isinstance(estimate, Estimate) else None
    if isinstance(estimate, Undefined):
        verdict = Verdict(Outcome.MISMATCH, f"{label} is not defined: {estimate.reason}")
    elif estimate is None:
        verdict = uncalibrated(f"{label} was not measured")
    elif not evaluation.complete:
        verdict = mismatch(f"{_shown(estimate)}; {evaluation.difference(protocol)}")
    else:
        verdict = uncalibrated(
            f"{_shown(estimate)}; nothing is claimed under {protocol.name}: --sdbench-update records it"
        )
    verdict = noted(verdict, evaluation.notes)
    return Judgement(verdict, evaluation, value, estimate, protocol.margins.get(metric))


def images_unclaimed(
    protocol: Protocol, budget: int | None, judgements: Callable[[], Mapping[str, Judgement]]
) -> int | None:
    """Return how many images to score of which nothing is claimed; None: all of them.

    With a budget, no more than the claims of the protocol were decided by: they are judged first then.
    """
    if budget is None:
        return None
    looked = [judgement.evaluation.n for judgement in judgements().values()]
    n = max(looked, default=looks(protocol.n, budget)[0].n)
    return n if n < protocol.n else None


def beside(baseline: Card, protocol: Protocol, judgement: Judgement) -> Difference | None:
    """Return a score less that of the baseline's recorded images, prompt by prompt; None without such images.

    Nothing is claimed of it: it is shown. A baseline with another protocol of its own (a consistency model's
    teacher) has no images that compare.
    """
    recorded = read_recorded(evidence_path(baseline.path, protocol.name))
    if recorded is None or not protocol.covers(recorded.protocol_fingerprint):
        return None
    estimate, measured = judgement.estimate, judgement.evaluation.protocol
    if not isinstance(estimate, Estimate) or measured != protocol.with_samples(estimate.n):
        return None
    theirs = recorded.estimate(estimate.n, estimate.metric)
    if theirs is None or not recorded.is_beside(estimate.metric, judgement.evaluation.reference):
        return None
    return difference(estimate, theirs, at=protocol.n, groups=judgement.evaluation.groups)


def claim_errors(card: Card, protocol: Protocol) -> Mapping[str, float]:
    """Return, by metric, the standard error of measured - claimed for an identical checkpoint, unpaired.

    From the records of the card where they say it, else from the protocol's calibration; a metric of which
    neither is known is left out.
    """
    pairing, calibration = Pairing(card, protocol, None, outdated=False), read_calibration(protocol)
    errors = {metric: _claim_error(pairing, calibration, metric)[0] for metric in protocol.metrics}
    return {metric: math.sqrt(2) * error for metric, error in errors.items() if error is not None}


def _shown(estimate: Estimate) -> str:
    metric = METRICS[estimate.metric]
    return f"{metric.label} {estimate.value:.{metric.decimals}f} on {estimate.n:,} images"
