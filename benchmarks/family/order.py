"""Tell teacher, Base, Small and Tiny apart: by how many standard errors, and by more than two seeds differ?

Each student was trained twice. What is compared is the mean of both trainings, image by image: all draw the
same prompts from the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.family.experiment_list import SEEDS, STUDENTS, seeded
from benchmarks.family.members import COMPARED, Quality, difference
from benchmarks.report import paragraphs, table
from pytest_sdbench.metrics.estimates import Estimate

Row = dict[str, Any]
TEACHER = "scenes-sd"
_CHAIN = (TEACHER, *STUDENTS)
PAIRS = (*pairwise(_CHAIN), ("scenes-base", "scenes-tiny"))
"""Neighbours, the larger one first; and the outer students."""
APART, WRONG = 3.0, -2.0
"""Standard errors from which two are apart the right way; below which they are so the wrong way."""
LABELS = {"fid": "FID", "clip_score": "CLIP score", "names_right": "names right"}
_SIGNS = {"fid": -1, "clip_score": 1, "names_right": 1}
"""A first less a second that has this sign is better."""


def compare(scored: Mapping[str, Quality]) -> list[Row]:
    """Return a row for each pair and metric: by how much the first is better, of qualities by label."""
    return [_row(first, second, metric, scored) for first, second in PAIRS for metric in COMPARED]


def _row(first: str, second: str, metric: str, scored: Mapping[str, Quality]) -> Row:
    def better(one: Quality, other: Quality) -> tuple[float, float]:
        found = difference(one, other)
        return _SIGNS[metric] * found[metric], found[f"{metric}_se"]

    def trainings(member: str) -> list[Quality]:
        seeds = (0,) if member == TEACHER else SEEDS
        return [scored[seeded(member, seed)] for seed in seeds]

    mine, theirs = trainings(first), trainings(second)
    value, error = better(mean_of(mine), mean_of(theirs))
    between = [better(*each)[0] for each in (mine, theirs) if len(each) > 1]
    return {
        "first": first,
        "second": second,
        "metric": metric,
        "better": value,
        "standard_error": error,
        "by_seed": [better(mine[k % len(mine)], other)[0] for k, other in enumerate(theirs)],
        "seeds_differ": max(map(abs, between)),
    }


def mean_of(qualities: Sequence[Quality]) -> Quality:
    """Return the mean of several trainings as one quality: its part of an image is the mean of theirs."""
    if len(qualities) == 1:
        return qualities[0]
    means = {metric: _mean([each.estimates[metric] for each in qualities]) for metric in COMPARED}
    return Quality({}, means, qualities[0].groups)


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    first, count = estimates[0], len(estimates)
    parts = [each.influence for each in estimates if each.influence is not None]
    assert len(parts) == count
    value = sum(each.value for each in estimates) / count
    influence = np.mean(parts, axis=0)
    return replace(first, value=value, standard_error=None, corrected=None, influence=influence)


def errors(row: Row) -> float:
    """Return by how many standard errors the first of a pair is better; 0 where every image is the same."""
    if not row["standard_error"]:
        return math.copysign(math.inf, row["better"]) if row["better"] else 0.0
    return float(row["better"] / row["standard_error"])


def told_apart(row: Row) -> bool:
    """Return whether the first is better by three standard errors, and by more than two seeds differ."""
    return errors(row) >= APART and row["better"] > row["seeds_differ"]


def verdict(rows: Sequence[Row]) -> str:
    """Say of the rows of one pair whether it stands in order, and by what."""
    by = [f"{LABELS[row['metric']]} ({errors(row):.1f})" for row in rows if told_apart(row)]
    wrong = [f"{LABELS[row['metric']]} ({errors(row):.1f})" for row in rows if errors(row) < WRONG]
    said = f"told apart by {', '.join(by)}" if by else "not told apart"
    if wrong:
        said += f"; the wrong way round by {', '.join(wrong)}"
    return f"- `{rows[0]['first']}` above `{rows[0]['second']}`: {said}."


def report(rows: Sequence[Row]) -> str:
    """Return the table of pairs and what it says, as Markdown; empty where no pair was compared."""
    if not rows:
        return ""
    pairs = table(
        rows,
        [
            ("pair", "{first} above {second}"),
            ("", lambda row: LABELS[row["metric"]]),
            ("better by", "{better:+.4f} ± {standard_error:.4f}"),
            ("standard errors", lambda row: f"{errors(row):+.1f}"),
            ("each seed", lambda row: ", ".join(f"{each:+.4f}" for each in row["by_seed"])),
            ("two seeds differ by", "{seeds_differ:.4f}"),
            ("more than that", lambda row: "yes" if row["better"] > row["seeds_differ"] else "no"),
        ],
    )
    own = [[row for row in rows if (row["first"], row["second"]) == pair] for pair in PAIRS]
    return paragraphs(
        "## Pairs",
        pairs,
        "Better by: the mean of both trainings of the first less that of the second, image by image; of FID "
        "the other way round, so that above zero is the expected order. Two seeds differ by: the larger of "
        f"the students' differences between seed {SEEDS[0]} and seed {SEEDS[1]}. A pair is told apart where "
        f"one of the three is better by {APART:g} standard errors and by more than two seeds differ; it is "
        f"the wrong way round where one is worse by more than {-WRONG:g}. Standard errors are over images: "
        "they say nothing of how trainings differ. Two seeds say little: if two students were equally good, "
        "one metric would still be better by more than that in 11 % of cases.",
        "\n".join(verdict(each) for each in own),
    ).rstrip("\n")
