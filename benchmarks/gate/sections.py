"""Measure the gate section by section: each returns its rows as plain data."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from benchmarks.gate.pools import POOL, PROTOCOLS, QUICK, pool_protocol, seed_protocols
from benchmarks.gate.populations import METRICS, Population, load_population
from benchmarks.gate.runs import Match, Run, differences, tally
from pytest_sdbench.base.paths import reference
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.cards.claims import margin_of
from pytest_sdbench.metrics.registry import METRICS as KNOWN
from pytest_sdbench.protocols.load import load_protocol

Rows = list[dict[str, Any]]
LABELS = {name: KNOWN[name].label for name in METRICS}
SEEDED = ("scenes-sd", "scenes-small", "scenes-tiny-lcm")
WIDTH = 3.5
"""Margins of simulated cards, in standard errors of the difference of two independent runs: four scores of an
identical checkpoint then all pass in 88 % of runs."""

SHUFFLES = 4
DRAWS = 100
"""Random draws of each student that are judged under its teacher's card."""
BIG = 30_000
LONG = ("fid", "inception_score", "clip_score")
"""Of long sequences: a KID of 30,000 images is a kernel matrix of 900 million entries, once a look."""


@lru_cache(maxsize=4)
def population(member: str) -> Population:
    """Return a member's pool."""
    return load_population(member, pool_protocol(member))


def predictions(_runs: int) -> Rows:
    """Predict the FID of the whole pool from the first of its images."""
    rows = []
    for member in PROTOCOLS:
        pool = replace(population(member), metrics=LONG)
        whole = pool.estimates(np.arange(POOL))["fid"]
        for n in (512, 2000, 5000):
            part = pool.estimates(np.arange(n))["fid"]
            predicted, error = part.at(POOL), part.standard_error
            assert predicted is not None
            assert error is not None
            row = {"member": member, "n": n, "raw": part.value, "predicted": predicted}
            row |= {"standard_error": error, "measured": whole.value}
            rows.append({**row, "off": (predicted - whole.value) / error})
    return rows


def pairing(_runs: int) -> Rows:
    """Compare standard errors of differences on 5,000 images, paired and not."""
    first = np.arange(5000)
    teacher = population("scenes-sd").estimates(first)
    return [
        {"member": member, **asdict(found)}
        for member in ("scenes-base", "scenes-small", "scenes-small-2m", "scenes-tiny")
        for found in differences(population(member).estimates(first), teacher).values()
    ]


def _at_the_margin(margins: Mapping[str, float]) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Yield which scores are worse by their margins: none, each in turn, all."""
    yield "none", {}
    for metric, margin in margins.items():
        yield LABELS[metric], {metric: margin}
    yield "all", dict(margins)


def _margins(member: str, n: int) -> dict[str, float]:
    """Return margins for n images of a member, from what the first of its pool scatter by."""
    found = population(member).estimates(np.arange(n))
    errors = {metric: found[metric].standard_error for metric in METRICS}
    return {m: WIDTH * math.sqrt(2) * error for m, error in errors.items() if error is not None}


def seeds(_runs: int) -> Rows:
    """Judge 512 images of independent seeds by those of other seeds: whole cards."""
    rows: Rows = []
    everything = np.arange(QUICK)
    for member in SEEDED:
        sets = [load_population(member, protocol) for protocol in seed_protocols(member)]
        margins = _margins(member, QUICK)
        for paired in (True, False):
            for name, better in _at_the_margin(margins):
                # Each set is judged once, by the set before it.
                matches = [Match(sets[k - 1], each, QUICK, paired) for k, each in enumerate(sets)]
                runs = [match.run(everything, everything, margins, better) for match in matches]
                rows.append({"member": member, "paired": paired, "worse": name, **tally(runs)})
    return rows


def parts(_runs: int) -> Rows:
    """Judge parts of a pool by each other, and a student's by those of its teacher: whole cards."""
    rows: Rows = []
    for first, second in (*((member, member) for member in SEEDED), ("scenes-sd", "scenes-small")):
        match = Match(population(first), population(second), QUICK, paired=first != second)
        margins = _margins(first, QUICK)
        for name, worse in _at_the_margin(margins):
            runs = _part_runs(match, margins, match.better(worse, margins))
            row = {"claimed": first, "candidate": second, "paired": match.paired, "worse": name}
            rows.append({**row, **tally(runs)})
    return rows


def _part_runs(match: Match, margins: Mapping[str, float], better: Mapping[str, float]) -> Iterator[Run]:
    for seed in range(SHUFFLES):
        order = np.random.default_rng(seed).permutation(POOL)
        drawn = order[: POOL // QUICK * QUICK].reshape(-1, QUICK)
        for k, part in enumerate(drawn):
            yield match.run(part if match.paired else drawn[k - 1], part, margins, better)


def sequences(runs: int, *, paired: bool) -> Rows:
    """Simulate whole cards of 30,000 images in sequences: paired with recorded images, or by claims alone."""
    rows: Rows = []
    claimed, candidate = (replace(population(name), metrics=LONG) for name in ("scenes-sd", "scenes-small"))
    unpaired = Match(claimed, candidate, BIG, paired=False).errors()
    match = Match(claimed, candidate, BIG, paired)
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
            row = match.simulate(margins, wanted, sequential=True, runs=count, seed=100 + k)
            rows.append({"paired": paired, "margin": width, "worse": name, **row})
            print(f"  {rows[-1]}", file=sys.stderr, flush=True)
    return rows


def power(runs: int) -> Rows:
    """Simulate a candidate whose FID is beyond claim and margin by a tenth of the claim: 5,000 images."""
    rows: Rows = []
    n = 5000
    for first, second, paired in (
        ("scenes-sd", "scenes-sd", False),
        ("scenes-sd", "scenes-small", True),
        ("scenes-small", "scenes-tiny", True),
    ):
        match = Match(population(first), population(second), n, paired)
        card = read_card(reference() / "cards" / f"{first}.md")
        asked = {metric: margin_of(card.margins, "scenes-5k", metric) for metric in METRICS}
        margins = {metric: margin for metric, margin in asked.items() if margin is not None}
        claim = match.claimed.estimates(np.arange(n))["fid"].value
        wanted = {"fid": margins["fid"] + 0.1 * claim}
        row = {"claimed": first, "candidate": second, "paired": paired}
        row |= {"claim": claim, "beyond": 0.1 * claim, "error": match.errors()["fid"]}
        rows.append(row | match.simulate(margins, wanted, sequential=False, runs=runs, seed=7))
    return rows


def students(_runs: int) -> Rows:
    """Judge random draws of each student by what its teacher claims, with the margins of the protocol."""
    rows: Rows = []
    for member in ("scenes-base", "scenes-small", "scenes-tiny"):
        for protocol in ("scenes-quick", "scenes-5k"):
            asked = load_protocol(protocol)
            match = Match(population("scenes-sd"), population(member), asked.n, paired=True)
            margins = {metric: asked.margins[metric] for metric in METRICS if metric in asked.margins}
            # The claims are the teacher's as they are: a student is as much worse as it truly is.
            row = match.simulate(margins, match.differences, sequential=False, runs=DRAWS, seed=11)
            rows.append({"member": member, "protocol": protocol, "n": asked.n, **row})
    return rows


SECTIONS: dict[str, Callable[[int], Rows]] = {
    "predictions": predictions,
    "pairing": pairing,
    "seeds": seeds,
    "parts": parts,
    "power": power,
    "students": students,
    "paired-sequences": partial(sequences, paired=True),
    "unpaired-sequences": partial(sequences, paired=False),
}
"""By name: what measures a section; it takes the number of runs of a simulated case."""
