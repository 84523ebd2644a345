"""Pair a candidate's images with the recorded ones of a released checkpoint, or say why they are not."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from pytest_sdbench.base.paths import told
from pytest_sdbench.cards.card import Card, Claim
from pytest_sdbench.cards.records import Record, nearly
from pytest_sdbench.gate.binomial import repeats_of
from pytest_sdbench.gate.recorded import RecordedEvidence, evidence_path, read_recorded
from pytest_sdbench.gate.verdict import Score
from pytest_sdbench.metrics.difference import changes_of, difference, rest, worst_loss
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.protocols.protocol import Protocol

if TYPE_CHECKING:
    from pytest_sdbench.evaluation.evaluate import Evaluation


@dataclass(frozen=True)
class Pairing:
    """What is recorded of a card under a protocol: its figures, and its images to be paired with."""

    card: Card
    protocol: Protocol
    recorded: RecordedEvidence | None
    """Of the protocol as it is; None where there is none."""
    outdated: bool
    """Whether the recorded images are of another protocol."""

    @classmethod
    def of(cls, card: Card, protocol: Protocol, recorded: RecordedEvidence | None = None) -> Pairing:
        """Return the pairing with `recorded`, or with what lies beside the card."""
        recorded = recorded or read_recorded(evidence_path(card.path, protocol.name))
        fits = recorded is not None and protocol.covers(recorded.protocol_fingerprint)
        return cls(card, protocol, recorded if fits else None, recorded is not None and not fits)

    def record(self, metric: str) -> Record | None:
        """Return the record of a score under the protocol as it is."""
        for record in self.card.records:
            made = record.protocol_fingerprint
            current = made is None or self.protocol.covers(made, metric)
            if record.key == (self.protocol.name, metric) and current and record.n == self.protocol.n:
                return record
        return None

    def pair(self, claim: Claim, estimate: Estimate, score: Score, evaluation: Evaluation) -> Score | None:
        """Return the score as its difference from the recorded images tells it; None where it cannot."""
        if self.recorded is None:
            return None
        whole = self.recorded.estimate(self.protocol.n, claim.metric)
        same = self.recorded.estimate(estimate.n, claim.metric)
        # A claim that is not the score of these images is not as certain as they are.
        if whole is None or same is None or not self._claims_the_images(claim):
            return None
        if score.repeats or not self.recorded.is_beside(claim.metric, evaluation.reference):
            return None
        found = difference(estimate, same, at=self.protocol.n, groups=evaluation.groups)
        if found is None or not found.paired or found.standard_error is None:
            return None
        unpaired = score if self._may_be_the_machine(claim.metric, evaluation) else None
        if score.trials is not None:
            changed, shift = changes_of(estimate, same, score.trials), whole.value - claim.value
            return replace(score, changed=changed, shift=shift, unpaired=unpaired)
        # Of the very checkpoint on the very set-up nothing is unseen. Anything else may fail where these
        # images do not show it, as badly as the worst of those that do.
        own, unseen = evaluation.checkpoint_fingerprint == self.recorded.checkpoint_fingerprint, 0.0
        if not (own and self._is_setup_of(claim.metric, evaluation)):
            unseen = worst_loss(estimate, same, evaluation.groups, higher_is_better=score.higher_is_better)
            metric = METRICS[claim.metric]
            unseen = max(unseen, rest(estimate, same, metric.minimum, metric.maximum, evaluation.groups))
        # The claim is these images' score but for its rounding.
        rounding = abs(whole.value - claim.value)
        return replace(
            score,
            measured=whole.value + found.value,
            error=math.hypot(found.standard_error, rounding),
            claim_error=rounding,
            unseen=unseen,
            unpaired=unpaired,
        )

    def _may_be_the_machine(self, metric: str, evaluation: Evaluation) -> bool:
        """Tell whether another machine may have moved the recorded pairs: no fail may rest on them alone."""
        return METRICS[metric].reads == "pair" and not self._is_setup_of(metric, evaluation)

    def _is_setup_of(self, metric: str, evaluation: Evaluation) -> bool:
        """Tell whether an evaluation is of the device and the libraries that a score is recorded of.

        So must be the pictures of the reference that pairs are of.
        """
        record, recorded, beside = self.record(metric), self.recorded, evaluation.reference
        if record is None or (evaluation.device, evaluation.versions) != (record.device, record.versions):
            return False
        if METRICS[metric].reads != "pair":
            return True
        return recorded is not None and beside is not None and beside.setups == recorded.reference_setups

    def _setup_is_known(self, metric: str) -> bool:
        record, recorded = self.record(metric), self.recorded
        known = recorded is not None and recorded.reference_setups is not None
        return known and record is not None and record.device is not None

    def note(self, claim: Claim, evaluation: Evaluation, paired: Score | None) -> list[str]:
        """Say that a score is paired with recorded images, or why it is not."""
        if paired is not None:
            setup = "another" if self._setup_is_known(claim.metric) else "an unknown"
            alone = "" if paired.unpaired is None else f", of {setup} set-up: no fail rests on them alone"
            return [f"paired with the recorded images{alone}"]
        if self.outdated:
            return ["the recorded images are of another protocol: --sdbench-update renews them"]
        if self.recorded is None:
            record = self.record(claim.metric)
            if record is None or record.checkpoint_fingerprint is None or claim.kind != "recorded":
                return []
            place = told(evidence_path(self.card.path, self.protocol.name))
            return [f"without recorded images: there are none at {place}"]
        if not self._claims_the_images(claim):
            return ["without the recorded images, which are not the claim's"]
        beside = self.recorded.reference_fingerprint
        if beside is not None and not self.recorded.is_beside(claim.metric, evaluation.reference):
            return [f"without the recorded pairs, those beside {beside}: --sdbench-update renews them"]
        here = evaluation.estimates[claim.metric]
        for n in (self.protocol.n, evaluation.n):
            measured = isinstance(here, Estimate) and here.influence is not None
            if measured and self.recorded.estimate(n, claim.metric) is None:
                return [f"nothing is recorded of it at {n:,} images: --sdbench-update records it"]
        if METRICS[claim.metric].share and repeats_of(evaluation.groups):
            return ["without the recorded pairs: a share is paired where all prompts repeat as often"]
        return []

    def _claims_the_images(self, claim: Claim) -> bool:
        """Return whether a claim may be the score of the recorded images, for all that they say of it."""
        assert self.recorded is not None
        record = self.record(claim.metric)
        owner = record.checkpoint_fingerprint if record is not None else None
        if owner not in (None, self.recorded.checkpoint_fingerprint):
            return False
        whole = self.recorded.estimate(self.protocol.n, claim.metric)
        if whole is None or abs(whole.value - claim.value) <= 0.5000001 * 10.0 ** -decimals_of(claim.text):
            return True
        # The score of these very images may be of another batch size, which moves the last digits.
        if claim.record is None:
            return math.isclose(whole.value, claim.value, rel_tol=1e-5)
        return owner is not None and nearly(whole.value, claim.value)


def decimals_of(text: str) -> int:
    """Return the number of decimals that a figure is printed with."""
    try:
        exponent = Decimal(text.replace("_", "")).as_tuple().exponent
    except InvalidOperation:
        return 0
    return max(0, -exponent) if isinstance(exponent, int) else 0
