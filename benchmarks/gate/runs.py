"""Run a card on images of pools, whose true scores are known, and judge it as `pytest --sdbench` does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gate.pools import POOL, with_images
from benchmarks.gate.populations import Indices, Population
from pytest_sdbench.cards.card import Card
from pytest_sdbench.cards.claims import Claim
from pytest_sdbench.cards.records import Record
from pytest_sdbench.evaluation.evaluate import Evaluation
from pytest_sdbench.gate.quality import judge
from pytest_sdbench.gate.recorded import RecordedEvidence
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
    """What came of one run of a card: it passes if every score does, and fails if one fails."""

    passed: bool
    failed: bool
    images: int


def tally(runs: Iterable[Run]) -> dict[str, int]:
    """Count passes and fails, and take the mean of the images."""
    runs = list(runs)
    return {
        "runs": len(runs),
        "passed": sum(run.passed for run in runs),
        "failed": sum(run.failed for run in runs),
        "mean_images": round(sum(run.images for run in runs) / len(runs)),
    }


@dataclass(frozen=True, eq=False)
class Match:
    """A candidate's pool that is judged by claims of another, n images at a time.

    `paired`: the claimed images are recorded, by prompt.
    """

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

    def run(
        self,
        others: Indices,
        drawn: Indices,
        margins: Mapping[str, float],
        better: Mapping[str, float],
        *,
        sequential: bool = False,
    ) -> Run:
        """Judge the candidate's images `drawn` by the scores of `others`, which are `better` by so much.

        `sequential`: looks at growing numbers of images.
        """
        protocol = _protocol(self.candidate, self.n)
        claimed, candidate = Sample(self.claimed, others, better), Sample(self.candidate, drawn)
        claims = [_claim(claimed[self.n][metric], margin, protocol) for metric, margin in margins.items()]
        records = tuple(claim.record for claim in claims if claim.record is not None)
        card = Card(Path("simulated.md"), "simulated", "", claims=tuple(claims), records=records)
        used = 0

        def evaluate(samples: int | None) -> Evaluation:
            nonlocal used
            used = max(used, samples or self.n)
            # Nothing was drawn, so no more is known.
            return Evaluation(
                estimates=candidate[samples or self.n],
                lacking={},
                protocol=_protocol(self.candidate, samples or self.n),
                requested=self.n,
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

        pairing = RecordedEvidence("claimed", protocol.fingerprint, claimed) if self.paired else None
        verdicts = judge(card, protocol, evaluate, self.n if sequential else None, pairing)
        outcomes = {judgement.verdict.outcome for judgement in verdicts.values()}
        return Run(outcomes == {Outcome.PASS}, Outcome.FAIL in outcomes, used)

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
            return self.run(others, drawn, margins, better, sequential=sequential)

        return tally(run() for _ in range(runs))


def differences(first: Mapping[str, Estimate], second: Mapping[str, Estimate]) -> dict[str, Difference]:
    """Return first minus second in every score of the first."""
    found = {metric: difference(each, second[metric]) for metric, each in first.items()}
    return {metric: each for metric, each in found.items() if each is not None}


def _claim(found: Estimate, margin: float, protocol: Protocol) -> Claim:
    record = Record(
        protocol=protocol.name,
        metric=found.metric,
        value=found.value,
        standard_error=found.standard_error,
        n=protocol.n,
        protocol_fingerprint=protocol.fingerprint,
    )
    text = f"{found.value:.12f}"
    return Claim(
        found.metric, found.value, text, protocol.name, margin=margin, kind="recorded", record=record
    )


@lru_cache
def _protocol(population: Population, n: int) -> Protocol:
    return with_images(population.protocol, n)


def _improve(found: Estimate, amount: float) -> Estimate:
    """Return an estimate that is better by an amount."""
    step = amount if KNOWN[found.metric].higher_is_better else -amount
    corrected = None if found.corrected is None else found.corrected + step
    return replace(found, value=found.value + step, corrected=corrected)
