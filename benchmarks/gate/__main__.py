"""Measure the gate itself: `python -m benchmarks.gate [SECTION]...`.

How often does it fail what is as good as claimed, and pass what is worse by its margin; how surely does it
fail what is worse than that; how many images does it need? Measured on pools of images of the embedded
family (`python -m benchmarks.gate.pools` draws them), on independent seeds, and by simulation: draws with
replacement from a pool, whose true scores are known. Writes ``results/gate.json`` and ``results/gate.md``;
a section that is not asked for stays as it was found last.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from benchmarks.gate.intervals import clopper_pearson
from benchmarks.gate.pools import POOL, PROTOCOLS, QUICK, SEED_SETS, seed_protocols, with_images
from benchmarks.gate.populations import METRICS, Indices, Population, load_population, load_seed_sets
from benchmarks.machine import describe
from benchmarks.report import RESULTS
from pytest_sdbench.base.files import write_atomically
from pytest_sdbench.base.paths import reference
from pytest_sdbench.cards.card import Card, read_card
from pytest_sdbench.cards.claims import Claim, margin_of
from pytest_sdbench.cards.records import Record
from pytest_sdbench.evaluation.evaluate import Evaluation
from pytest_sdbench.gate.calibration import read_calibration
from pytest_sdbench.gate.judge import claim_errors, judge
from pytest_sdbench.gate.pairing import Recorded, evidence_path, read_recorded
from pytest_sdbench.gate.verdict import Outcome, chance_of_pass
from pytest_sdbench.metrics.difference import difference
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.metrics.names import METRICS as KNOWN
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.protocol import Protocol

LABELS = {name: KNOWN[name].label for name in METRICS}


# --- one run of the gate --------------------------------------------------------------------------------


class Looks(Mapping[int, Mapping[str, Estimate]]):
    """The recorded estimates of a draw at any number of its images, computed when they are asked for."""

    def __init__(self, population: Population, indices: Indices, better: Mapping[str, float]) -> None:
        self.population, self.indices, self.better = population, indices, better
        self._known: dict[int, Mapping[str, Estimate]] = {}

    def __getitem__(self, n: int) -> Mapping[str, Estimate]:
        if n not in self._known:
            found = self.population.estimates(self.indices[:n])
            self._known[n] = {m: _improved(each, self.better.get(m, 0.0)) for m, each in found.items()}
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


def run_card(
    claimed: tuple[Population, Indices],
    candidate: tuple[Population, Indices],
    margins: Mapping[str, float],
    *,
    better: Mapping[str, float] | None = None,
    paired: bool,
    sequential: bool = False,
) -> Run:
    """Judge a candidate's images by the scores of others, as `pytest --sdbench` does.

    `better` is added to the claims: claims that are better than the claimed images' own scores stand for a
    claimed checkpoint that is better by so much. `paired`: the claimed images are recorded, by prompt.
    """
    better = better or {}
    population, indices = candidate
    protocol = _protocol(population.protocol, len(indices))
    recorded = Looks(*claimed, better)
    whole = recorded[len(claimed[1])]
    records = tuple(
        Record(
            metric,
            whole[metric].value,
            protocol.n,
            protocol.name,
            whole[metric].standard_error,
            protocol.fingerprint,
        )
        for metric in margins
    )
    claims = tuple(
        Claim(
            record.metric,
            record.value,
            f"{record.value:.12f}",
            protocol.name,
            margin=margins[record.metric],
            kind="recorded",
            record=record,
        )
        for record in records
    )
    card = Card(Path("simulated.md"), "simulated", "", claims=claims, records=records)
    used = 0

    def evaluate(samples: int | None) -> Evaluation:
        nonlocal used
        used = max(used, samples or protocol.n)
        return _evaluation(protocol, population.estimates(indices[:samples]), samples)

    pairing = Recorded("claimed", protocol.fingerprint, recorded) if paired else None
    judged = judge(card, protocol, evaluate, len(indices) if sequential else None, pairing)
    return Run({claim.metric: judged[claim.id].verdict.outcome for claim in claims}, used)


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


def _improved(found: Estimate, amount: float) -> Estimate:
    """Return an estimate that is better by an amount."""
    step = amount if KNOWN[found.metric].higher_is_better else -amount
    corrected = None if found.corrected is None else found.corrected + step
    return replace(found, value=found.value + step, corrected=corrected)


def _worse(metric: str, first: float, second: float) -> float:
    """Return how much worse the first score is than the second."""
    return second - first if KNOWN[metric].higher_is_better else first - second


# --- rates ----------------------------------------------------------------------------------------------


@dataclass
class Rate:
    """How often something happened, and what that says of its chance."""

    count: int = 0
    runs: int = 0

    def add(self, happened: bool) -> None:
        """Count one run."""
        self.count += happened
        self.runs += 1

    def __str__(self) -> str:
        low, high = clopper_pearson(self.count, self.runs)
        return f"{self.count / self.runs:.1%} ({low:.1%} to {high:.1%})"


@dataclass
class Tally:
    """Passes, fails and images of many runs."""

    passed: Rate = field(default_factory=Rate)
    failed: Rate = field(default_factory=Rate)
    images: float = 0.0

    def add(self, run: Run) -> None:
        """Count one run of a card."""
        self.passed.add(run.passed)
        self.failed.add(run.failed)
        self.images += run.images

    def row(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "runs": self.passed.runs,
            "passed": self.passed.count,
            "failed": self.failed.count,
            "mean_images": round(self.images / self.passed.runs),
        }


def _rates(row: Mapping[str, Any]) -> tuple[str, str]:
    return str(Rate(row["passed"], row["runs"])), str(Rate(row["failed"], row["runs"]))


# --- sections -------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def population(member: str) -> Population:
    """Return a member's pool."""
    return load_population(member)


def predictions(_runs: int) -> list[dict[str, Any]]:
    """Predict the FID of the whole pool from the first of its images."""
    found = []
    for member in PROTOCOLS:
        pool = replace(population(member), metrics=("fid", "inception_score", "clip_score"))
        whole = pool.estimates(np.arange(POOL))["fid"]
        for n in (512, 2000, 5000, 10_000):
            part = pool.estimates(np.arange(n))["fid"]
            predicted = part.at(POOL)
            assert predicted is not None
            assert part.standard_error is not None
            found.append(
                {
                    "member": member,
                    "n": n,
                    "raw": part.value,
                    "predicted": predicted,
                    "standard_error": part.standard_error,
                    "measured": whole.value,
                    "off": (predicted - whole.value) / part.standard_error,
                }
            )
    return found


def pairing(_runs: int) -> list[dict[str, Any]]:
    """Compare standard errors of differences on 5,000 images, paired and not."""
    found = []
    first = np.arange(5000)
    teacher = population("scenes-sd").estimates(first)
    for member in ("scenes-base", "scenes-small", "scenes-small-2m", "scenes-tiny"):
        student = population(member).estimates(first)
        for metric in METRICS:
            both = difference(student[metric], teacher[metric])
            assert both is not None
            found.append({"member": member, "metric": metric, **dataclasses.asdict(both)})
    return found


def shipped(_runs: int) -> list[dict[str, Any]]:
    """Compute how likely an identical checkpoint passes each shipped card under its margins."""
    found = []
    for path in sorted((reference() / "cards").glob("*.md")):
        card = read_card(path)
        joint, paired, errors = 1.0, 1.0, dict[str, Mapping[str, float]]()
        claims = [claim for claim in card.claims if claim.kind == "published" and claim.gate_protocol]
        for claim in claims:
            protocol = load_protocol(str(claim.gate_protocol), search=(path.parent,))
            known = errors.setdefault(protocol.name, claim_errors(card, protocol))
            margin = claim.margin if claim.margin is not None else protocol.margins[claim.metric]
            chance = chance_of_pass(margin, known[claim.metric])
            joint *= chance
            row: dict[str, Any] = {
                "card": card.name,
                "claim": claim.id,
                "margin": margin,
                "error": known[claim.metric],
            }
            row |= {"chance": chance}
            spread = _recorded_spread(card, protocol, claim.metric)
            if spread is not None:
                row |= {"paired_error": math.sqrt(2) * spread}
                row |= {"paired_chance": chance_of_pass(margin, math.sqrt(2) * spread)}
            # A card that is judged paired is so for every claim.
            paired *= row.get("paired_chance", chance)
            found.append(row)
        if claims:
            found.append({"card": card.name, "claim": "all", "chance": joint, "paired_chance": paired})
    return found


def _recorded_spread(card: Card, protocol: Protocol, metric: str) -> float | None:
    """Return what a score scatters by over seeds, for a card whose images are recorded under a protocol."""
    if read_recorded(evidence_path(card.path, card.name, protocol.name)) is None:
        return None
    known = read_calibration(protocol)
    if known is not None:
        return known.spread(metric)
    # Seeds were varied on the first images of this protocol: more images scatter less by the root.
    quick = load_protocol(card.protocols[0])
    known = read_calibration(quick)
    spread = known.spread(metric) if known else None
    return None if spread is None else spread * math.sqrt(quick.n / protocol.n)


def _card_margins(member: str, protocol: str) -> dict[str, float]:
    card = read_card(reference() / "cards" / f"{member}.md")
    found = {metric: margin_of(card.margins, protocol, metric) for metric in METRICS}
    return {metric: margin for metric, margin in found.items() if margin is not None}


def _at_the_margin(margins: Mapping[str, float]) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Yield which scores are worse by their margins: none, each in turn, all."""
    yield "none", {}
    for metric, margin in margins.items():
        yield LABELS[metric], {metric: margin}
    yield "all", dict(margins)


SEEDED = ("scenes-sd", "scenes-small", "scenes-tiny-lcm")
WIDTH = 3.5
"""Margins of simulated cards, in standard errors of the difference of two independent runs: four scores of an
identical checkpoint then all pass in 88 % of runs."""


def _margins(member: str, n: int) -> dict[str, float]:
    """Return margins for n images of a member, from what the first of its pool scatter by."""
    margins = {}
    for metric, each in population(member).estimates(np.arange(n)).items():
        assert each.standard_error is not None
        margins[metric] = WIDTH * math.sqrt(2) * each.standard_error
    return {metric: margins[metric] for metric in METRICS}


def seeds(_runs: int) -> list[dict[str, Any]]:
    """Judge 512 images of independent seeds by those of other seeds: whole cards."""
    found = []
    for member in SEEDED:
        sets = load_seed_sets(member, seed_protocols(member))
        margins = _margins(member, QUICK)
        everything = np.arange(QUICK)
        for paired in (True, False):
            for name, better in _at_the_margin(margins):
                tally = Tally()
                # Each set is judged once, by the set before it.
                for k, each in enumerate(sets):
                    before = sets[k - 1], everything
                    run = run_card(before, (each, everything), margins, better=better, paired=paired)
                    tally.add(run)
                found.append({"member": member, "paired": paired, "worse": name, **tally.row()})
    return found


SHUFFLES = 4


def parts(_runs: int) -> list[dict[str, Any]]:
    """Judge parts of a pool by each other, and a student's by those of its teacher: whole cards."""
    found = []
    for first, second in (*((member, member) for member in SEEDED), ("scenes-sd", "scenes-small")):
        claimed, candidate = population(first), population(second)
        paired, margins, true = first != second, _margins(first, QUICK), _true_differences(claimed, candidate)
        for name, worse in _at_the_margin(margins):
            better, tally = {m: worse.get(m, 0.0) - true[m] for m in margins}, Tally()
            for seed in range(SHUFFLES):
                order = np.random.default_rng(seed).permutation(POOL)
                drawn = order[: POOL // QUICK * QUICK].reshape(-1, QUICK)
                for k, part in enumerate(drawn):
                    others = part if paired else drawn[k - 1]
                    tally.add(
                        run_card((claimed, others), (candidate, part), margins, better=better, paired=paired)
                    )
            row = {"claimed": first, "candidate": second, "paired": paired, "worse": name}
            found.append({**row, **tally.row()})
    return found


BIG = 30_000


def _true_differences(claimed: Population, candidate: Population) -> dict[str, float]:
    return {m: _worse(m, candidate.truth[m], claimed.truth[m]) for m in candidate.metrics}


def _errors(claimed: Population, candidate: Population, n: int, paired: bool) -> dict[str, float]:
    """Return the standard errors of the differences of n images each."""
    indices = np.random.default_rng(1).integers(0, POOL, n)
    a, b = candidate.estimates(indices), claimed.estimates(indices)
    found = {}
    for metric in candidate.metrics:
        both = difference(a[metric], b[metric])
        assert both is not None
        error = both.standard_error if paired else both.unpaired_error
        assert error is not None
        found[metric] = error
    return found


def _simulate(
    claimed: Population,
    candidate: Population,
    n: int,
    margins: Mapping[str, float],
    wanted: Mapping[str, float],
    *,
    paired: bool,
    sequential: bool,
    runs: int,
    seed: int,
) -> dict[str, Any]:
    """Run a card on draws with replacement; `wanted` are the true differences, in how much worse."""
    true = _true_differences(claimed, candidate)
    better = {metric: wanted.get(metric, 0.0) - true[metric] for metric in margins}
    rng, tally = np.random.default_rng(seed), Tally()
    for _ in range(runs):
        drawn = rng.integers(0, POOL, n)
        others = drawn if paired else rng.integers(0, POOL, n)
        tally.add(
            run_card(
                (claimed, others),
                (candidate, drawn),
                margins,
                better=better,
                paired=paired,
                sequential=sequential,
            )
        )
    return tally.row()


LONG = ("fid", "inception_score", "clip_score")
"""Of long sequences: a KID of 30,000 images is a kernel matrix of 900 million entries, once a look."""


def paired_sequences(runs: int) -> list[dict[str, Any]]:
    """Simulate whole cards of 30,000 images in sequences, paired with recorded images."""
    return _sequences(runs, paired=True)


def unpaired_sequences(runs: int) -> list[dict[str, Any]]:
    """Simulate whole cards of 30,000 images in sequences, judged by claims alone."""
    return _sequences(runs, paired=False)


def _sequences(runs: int, *, paired: bool) -> list[dict[str, Any]]:
    found = []
    claimed, candidate = (replace(population(name), metrics=LONG) for name in ("scenes-sd", "scenes-small"))
    unpaired = _errors(claimed, candidate, BIG, False)
    for width in (5, 10):
        margins = {metric: width * error for metric, error in unpaired.items()}
        # A rate of 5 % takes many runs to tell, a clear case few.
        cases: list[tuple[str, dict[str, float], int]] = [("none", {}, runs if width == 5 else runs // 4)]
        if width == 5:
            cases += [(LABELS[metric], {metric: margins[metric]}, runs) for metric in LONG]
        # Margin and 5 SE more are more than the whole FID of these checkpoints where the margin is 10 SE.
        for metric in ("fid", "clip_score") if width == 5 else ("clip_score",):
            far = margins[metric] + 5 * unpaired[metric]
            cases.append((f"{LABELS[metric]}, and 5 SE more", {metric: far}, runs // 4))
        for k, (name, wanted, count) in enumerate(cases):
            started = time.monotonic()
            row = _simulate(
                claimed,
                candidate,
                BIG,
                margins,
                wanted,
                paired=paired,
                sequential=True,
                runs=count,
                seed=100 + k,
            )
            found.append({"paired": paired, "margin": width, "worse": name, **row})
            print(f"  {found[-1]} {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return found


def power(runs: int) -> list[dict[str, Any]]:
    """Simulate a candidate whose FID is beyond claim and margin by a tenth of the claim: 5,000 images."""
    found = []
    n = 5000
    for first, second, paired in (
        ("scenes-sd", "scenes-sd", False),
        ("scenes-sd", "scenes-small", True),
        ("scenes-small", "scenes-tiny", True),
    ):
        claimed, candidate = population(first), population(second)
        margins = _card_margins(first, "scenes-5k")
        claim = claimed.estimates(np.arange(n))["fid"].value
        error = _errors(claimed, candidate, n, paired)["fid"]
        wanted = {"fid": margins["fid"] + 0.1 * claim}
        row = _simulate(
            claimed, candidate, n, margins, wanted, paired=paired, sequential=False, runs=runs, seed=7
        )
        found.append(
            {
                "claimed": first,
                "candidate": second,
                "paired": paired,
                "claim": claim,
                "beyond": 0.1 * claim,
                "error": error,
                **row,
            }
        )
    return found


SECTIONS: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "predictions": predictions,
    "pairing": pairing,
    "shipped": shipped,
    "seeds": seeds,
    "parts": parts,
    "power": power,
    "paired-sequences": paired_sequences,
    "unpaired-sequences": unpaired_sequences,
}


# --- the report -----------------------------------------------------------------------------------------


def report(found: Mapping[str, Any]) -> str:
    """Return the tables as Markdown."""
    parts = ["# The gate, measured"]
    tables = {
        "predictions": _predictions_table,
        "pairing": _pairing_table,
        "shipped": _shipped_table,
        "seeds": _seeds_table,
        "parts": _parts_table,
        "power": _power_table,
        "paired-sequences": _sequences_table,
        "unpaired-sequences": _sequences_table,
    }
    for name, table in tables.items():
        if name in found:
            rows = found[name]["rows"]
            parts.append(table(rows))
            about = found[name]
            parts.append(f"{about['date']}, {about['machine']}, {about['seconds']:.0f} s.")
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Sequence[Any]], heading: Sequence[str]) -> str:
    return tabulate(rows, heading, tablefmt="github", disable_numparse=True)


def _predictions_table(rows: Sequence[Mapping[str, Any]]) -> str:
    table = [
        [
            row["member"],
            f"{row['n']:,}",
            f"{row['raw']:.4f}",
            f"{row['predicted']:.4f} ± {row['standard_error']:.4f}",
            f"{row['measured']:.4f}",
            f"{row['off']:+.2f}",
        ]
        for row in rows
    ]
    return (
        f"## FID of {POOL:,} images, predicted from fewer\n\n"
        f"The bias-corrected FID with the bias of {POOL:,} images put back. The images are the first of the "
        "pool; off: how far the prediction lies from what the pool came to, in its standard errors.\n\n"
        + _table(table, ["", "images", "their FID", "predicted", "measured", "off"])
    )


def _pairing_table(rows: Sequence[Mapping[str, Any]]) -> str:
    table = [
        [
            f"{row['member']} - scenes-sd",
            LABELS[row["metric"]],
            f"{row['value']:+.5f}",
            f"{row['unpaired_error']:.5f}",
            f"{row['standard_error']:.5f}",
            f"{row['unpaired_error'] / row['standard_error']:.1f}x",
        ]
        for row in rows
    ]
    return "## Pairing on prompts and seeds, 5,000 images\n\n" + _table(
        table, ["", "", "difference", "SE unpaired", "SE paired", "gain"]
    )


def _shipped_table(rows: Sequence[Mapping[str, Any]]) -> str:
    table = [
        [
            row["card"],
            row["claim"],
            f"{row['margin']:g}" if "margin" in row else "",
            f"{row['error']:.2g}" if "error" in row else "",
            f"{row['chance']:.1%}",
            f"{row['paired_error']:.2g}" if "paired_error" in row else "",
            f"{row['paired_chance']:.1%}" if "paired_chance" in row else "",
        ]
        for row in rows
    ]
    return (
        "## Shipped cards: how likely an identical checkpoint passes\n\n"
        "From the standard errors of claim and measurement; SE is that of their difference. Unpaired: two "
        "runs with other prompts and seeds. As judged: with other seeds, paired by prompt with the images "
        "that are recorded of the card (with the same seeds an identical checkpoint has no difference at "
        "all); from the calibration of the quick protocol, over the root of how many times longer the other "
        "one is. All: every claim of the card, as if they were independent.\n\n"
        + _table(table, ["card", "claim", "margin", "SE, unpaired", "passes", "SE, as judged", "passes"])
    )


def _seeds_table(rows: Sequence[Mapping[str, Any]]) -> str:
    table = [
        [row["member"], "by prompt" if row["paired"] else "no", row["worse"], str(row["runs"]), *_rates(row)]
        for row in rows
    ]
    return (
        f"## Independent seeds: {SEED_SETS} sets of 512 images\n\n"
        f"Whole cards of four scores; a margin is {WIDTH} standard errors of the difference of two "
        "independent runs. Each set is judged by another one of the same checkpoint. Worse: which scores are "
        "worse than the claim by just the margin, by claims that are better by so much. A pass there is a "
        "wrong one; so is a fail where none is worse. In brackets the 95 % interval of the chance.\n\n"
        + _table(table, ["", "paired", "worse by the margin", "runs", "passed", "failed"])
    )


def _parts_table(rows: Sequence[Mapping[str, Any]]) -> str:
    table = [
        [
            f"{row['candidate']} by {row['claimed']}",
            "by prompt and seed" if row["paired"] else "no",
            row["worse"],
            str(row["runs"]),
            *_rates(row),
        ]
        for row in rows
    ]
    return (
        f"## Parts of one pool: {SHUFFLES} times {POOL // QUICK} disjoint parts of {QUICK} images\n\n"
        f"Drawn without replacement from {POOL:,} images, which lessens the variance of a part by "
        f"{QUICK / POOL:.1%} and makes two parts differ by as much more; the parts of one shuffle are "
        "disjoint, those of two are not, so the intervals are a little too narrow. Where a student is judged "
        "by its teacher, claims are moved so that the differences of the whole pools are those of the "
        "table.\n\n" + _table(table, ["", "paired", "worse by the margin", "runs", "passed", "failed"])
    )


def _power_table(rows: Sequence[Mapping[str, Any]]) -> str:
    table = [
        [
            f"{row['candidate']} by {row['claimed']}",
            "yes" if row["paired"] else "no",
            f"{row['claim']:.4f}",
            f"{row['beyond']:.4f}",
            f"{row['error']:.4f}",
            str(row["runs"]),
            *_rates(row),
        ]
        for row in rows
    ]
    return (
        "## Power: FID beyond claim and margin by a tenth of the claim, 5,000 images\n\n"
        "Draws with replacement from the pools. The card has four scores; beyond: by how much the true FID "
        "lies beyond the margin, which is to be seen against the standard error of the difference.\n\n"
        + _table(table, ["", "paired", "claim", "beyond", "SE", "runs", "passed", "failed"])
    )


def _sequences_table(rows: Sequence[Mapping[str, Any]]) -> str:
    table = [
        [
            "yes" if row["paired"] else "no",
            f"{row['margin']} SE",
            row["worse"],
            str(row["runs"]),
            *_rates(row),
            f"{row['mean_images']:,}",
            f"{BIG / row['mean_images']:.1f}x",
        ]
        for row in rows
    ]
    return (
        f"## Sequences, {'paired' if rows[0]['paired'] else 'unpaired'}: cards of 30,000 images\n\n"
        "scenes-small is judged by claims of scenes-sd that are moved so that the true differences are those "
        "of the table: draws with replacement from the pools, whose true scores are known. FID, IS and CLIP "
        "score. Paired: same prompts and seeds. Margin: in standard errors of an unpaired difference of "
        "30,000 images each. Fewer: against a fixed run of 30,000.\n\n"
        + _table(
            table,
            ["paired", "margin", "worse by the margin", "runs", "passed", "failed", "images", "fewer"],
        )
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure sections and write them beside those that were measured before."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)} [all]")
    parser.add_argument("--runs", type=int, default=1000, help="of each simulated case [%(default)s]")
    parser.add_argument("--results", type=Path, default=RESULTS / "gate.json")
    options = parser.parse_args(arguments)
    import torch

    for name in options.sections or SECTIONS:
        started = time.monotonic()
        rows = SECTIONS[name](options.runs)
        known = json.loads(options.results.read_text()) if options.results.is_file() else {}
        known[name] = {
            "date": datetime.date.today().isoformat(),
            "machine": describe(torch.device("cpu")),
            "seconds": round(time.monotonic() - started, 1),
            "rows": rows,
        }
        known = {key: known[key] for key in SECTIONS if key in known}
        write_atomically(options.results, (json.dumps(known, indent=1) + "\n").encode())
        write_atomically(options.results.with_suffix(".md"), report(known).encode())
        print(f"{name}: {len(rows)} rows in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
