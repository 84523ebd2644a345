"""Run a card on images of pools, whose true scores are known, and judge it as `pytest --sdbench` does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gate.pools import POOL, with_images
from benchmarks.gate.populations import Indices, Population
from pytest_sdbench.cards.card import Card
from pytest_sdbench.cards.claims import Claim
from pytest_sdbench.cards.records import Record
from pytest_sdbench.evaluation.evaluate import Evaluation
from pytest_sdbench.gate.judge import judge
from pytest_sdbench.gate.pairing import RecordedEvidence
from pytest_sdbench.gate.verdict import Outcome
from pytest_sdbench.metrics.difference import Difference, difference
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.metrics.registry import METRICS as KNOWN
from pytest_sdbench.protocols.protocol import Protocol


@dataclass(frozen=True, eq=False)
class Sample(Mapping[int, Mapping[str, Estimate]]):
    """Images of a pool: their estimates at any number of them, computed when they are asked for."""

    population: Population
    indices: Indices
    better: Mapping[str, float] = field(default_factory=dict)
    """Added to the estimates: a sample that is better by so much stands for a better checkpoint."""
    _known: dict[int, Mapping[str, Estimate]] = field(default_factory=dict)

    def __getitem__(self, n: int) -> Mapping[str, Estimate]:
        if n not in self._known:
            found = self.population.estimates(self.indices[:n])
            self._known[n] = {m: _improve(each, self.better.get(m, 0.0)) for m, each in found.items()}
        return self._known[n]

    def __iter__(self) -> Iterator[int]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


@dataclass(frozen=True)
class Run:
    """What came of one run of a card."""

    outcomes: Mapping[str, Outcome]
    images: int

    @property
    def passed(self) -> bool:
        """Whether the card passed: every score did."""
        return all(outcome is Outcome.PASS for outcome in self.outcomes.values())

    @property
    def failed(self) -> bool:
        """Whether the card failed: one score did."""
        return Outcome.FAIL in self.outcomes.values()


def tally(runs: Iterable[Run]) -> dict[str, int]:
    """Count passes and fails, and take the mean of the images."""
    runs = list(runs)
    return {
        "runs": len(runs),
        "passed": sum(run.passed for run in runs),
        "failed": sum(run.failed for run in runs),
        "mean_images": round(sum(run.images for run in runs) / len(runs)),
    }


def run_card(
    claimed: Sample,
    candidate: Sample,
    margins: Mapping[str, float],
    *,
    paired: bool,
    sequential: bool = False,
) -> Run:
    """Judge a candidate's images by the scores of others.

    `paired`: the claimed images are recorded, by prompt. `sequential`: looks at growing numbers of images.
    """
    n = len(candidate.indices)
    protocol = _protocol(candidate.population.protocol, n)
    whole = claimed[len(claimed.indices)]
    claims = tuple(_claim(whole[metric], margin, protocol) for metric, margin in margins.items())
    records = tuple(claim.record for claim in claims if claim.record is not None)
    card = Card(Path("simulated.md"), "simulated", "", claims=claims, records=records)
    used = 0

    def evaluate(samples: int | None) -> Evaluation:
        nonlocal used
        used = max(used, samples or n)
        return _evaluation(protocol, candidate[samples or n], samples)

    pairing = RecordedEvidence("claimed", protocol.fingerprint, claimed) if paired else None
    verdicts = judge(card, protocol, evaluate, n if sequential else None, pairing)
    return Run({claim.metric: verdicts[claim.id].verdict.outcome for claim in claims}, used)


def _claim(found: Estimate, margin: float, protocol: Protocol) -> Claim:
    record = Record(
        protocol=protocol.name,
        metric=found.metric,
        value=found.value,
        standard_error=found.standard_error,
        n=protocol.n,
        protocol_fingerprint=protocol.fingerprint,
    )
    return Claim(
        found.metric,
        found.value,
        f"{found.value:.12f}",
        protocol.name,
        margin=margin,
        kind="recorded",
        record=record,
    )


def _evaluation(protocol: Protocol, estimates: Mapping[str, Estimate], samples: int | None) -> Evaluation:
    """Return simulated estimates in the form of an evaluation; nothing was drawn, so no more is known."""
    return Evaluation(
        estimates=estimates,
        lacking={},
        protocol=protocol if samples is None else _protocol(protocol, samples),
        requested=protocol.n,
        complete=samples is None,
        checkpoint_fingerprint="candidate",
        device="",
        versions={},
        seconds=0.0,
        images_made=0,
        blacked_out=0,
        truncated=0,
        notes=(),
    )


_known_protocols: dict[tuple[str, int], Protocol] = {}


def _protocol(protocol: Protocol, n: int) -> Protocol:
    key = protocol.draw_fingerprint, n
    if key not in _known_protocols:
        _known_protocols[key] = with_images(protocol, n)
    return _known_protocols[key]


def _improve(found: Estimate, amount: float) -> Estimate:
    """Return an estimate that is better by an amount."""
    step = amount if KNOWN[found.metric].higher_is_better else -amount
    corrected = None if found.corrected is None else found.corrected + step
    return replace(found, value=found.value + step, corrected=corrected)


@dataclass(frozen=True, eq=False)
class Match:
    """A candidate's pool that is judged by claims of another, n images at a time."""

    claimed: Population
    candidate: Population
    n: int
    paired: bool

    @cached_property
    def differences(self) -> dict[str, float]:
        """By how much the candidate is truly worse in each score."""
        signs = {m: -1 if KNOWN[m].higher_is_better else 1 for m in self.candidate.metrics}
        return {m: sign * (self.candidate.truth[m] - self.claimed.truth[m]) for m, sign in signs.items()}

    def better(self, wanted: Mapping[str, float], margins: Mapping[str, float]) -> dict[str, float]:
        """Return what to add to the claims for the true differences to be the wanted ones, 0 by default."""
        return {metric: wanted.get(metric, 0.0) - self.differences[metric] for metric in margins}

    def errors(self) -> dict[str, float]:
        """Return the standard errors of the differences, of one draw."""
        indices = np.random.default_rng(1).integers(0, POOL, self.n)
        found = differences(self.candidate.estimates(indices), self.claimed.estimates(indices))
        errors = {m: each.standard_error if self.paired else each.unpaired_error for m, each in found.items()}
        return {metric: error for metric, error in errors.items() if error is not None}

    def simulate(
        self,
        margins: Mapping[str, float],
        wanted: Mapping[str, float],
        *,
        sequential: bool,
        runs: int,
        seed: int,
    ) -> dict[str, Any]:
        """Run a card on draws with replacement; `wanted` are the true differences, in how much worse."""
        better, rng = self.better(wanted, margins), np.random.default_rng(seed)

        def run() -> Run:
            drawn = rng.integers(0, POOL, self.n)
            others = drawn if self.paired else rng.integers(0, POOL, self.n)
            claimed, candidate = Sample(self.claimed, others, better), Sample(self.candidate, drawn)
            return run_card(claimed, candidate, margins, paired=self.paired, sequential=sequential)

        return tally(run() for _ in range(runs))


def differences(first: Mapping[str, Estimate], second: Mapping[str, Estimate]) -> dict[str, Difference]:
    """Return first minus second in every score of the first."""
    found = {metric: difference(each, second[metric]) for metric, each in first.items()}
    return {metric: each for metric, each in found.items() if each is not None}
