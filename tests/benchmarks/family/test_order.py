"""Pairs of the family are told apart by standard errors, and by more than two trainings differ."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.family import order
from benchmarks.family.experiment_list import SEEDS, STUDENTS, seeded
from benchmarks.family.members import COMPARED, Quality
from pytest_sdbench.metrics.estimates import Estimate

N = 400


def qualities(scores: dict[str, float], noise: float) -> dict[str, Quality]:
    """Return qualities of labels whose scores are these in every metric, of FID with the other sign."""
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 1, N)
    found = {}
    for label, score in scores.items():
        estimates = {}
        for metric in COMPARED:
            own = shared + rng.normal(0, noise, N)
            value = -score if metric == "fid" else score
            estimates[metric] = Estimate(metric, value, 0.05, N, value, influence=own - own.mean())
        found[label] = Quality({}, estimates)
    return found


def family(base: float, small: float, tiny: float, seeds: float = 0.0) -> dict[str, float]:
    """Return a score for every label: the two trainings of a student lie so far to both sides."""
    of = dict(zip(STUDENTS, (base, small, tiny), strict=True))
    moved = {SEEDS[0]: seeds / 2, SEEDS[1]: -seeds / 2}
    students = {seeded(name, seed): score + moved[seed] for name, score in of.items() for seed in SEEDS}
    return {"scenes-sd": 0.9, **students}


def test_a_row_is_the_mean_of_both_trainings_image_by_image() -> None:
    scored = qualities(family(0.8, 0.7, 0.6, seeds=0.02), noise=0.1)
    rows = order.compare(scored)
    assert [(row["first"], row["second"]) for row in rows[:: len(COMPARED)]] == list(order.PAIRS)
    found = next(row for row in rows if row["second"] == "scenes-tiny" and row["metric"] == "fid")
    assert found["better"] == pytest.approx(0.1)
    assert found["by_seed"] == pytest.approx([0.1, 0.1])
    assert found["seeds_differ"] == pytest.approx(0.02)
    parts = [scored[seeded(name, seed)].estimates["fid"].influence for name in STUDENTS[1:] for seed in SEEDS]
    assert all(part is not None for part in parts)
    first, again, second, other = np.array(parts)
    moved = (first + again) / 2 - (second + other) / 2
    assert found["standard_error"] == pytest.approx(moved.std(ddof=1) / np.sqrt(N))
    teacher = next(row for row in rows if row["first"] == "scenes-sd" and row["metric"] == "clip_score")
    assert teacher["by_seed"] == pytest.approx([0.09, 0.11])


@pytest.mark.parametrize(
    ("small", "seeds", "said"),
    [
        (0.70, 0.02, "told apart by FID"),
        # Ten standard errors, and still less than two trainings of one student differ.
        (0.70, 0.15, "not told apart"),
        (0.80, 0.02, "not told apart"),
        (0.90, 0.02, "not told apart; the wrong way round by FID"),
    ],
)
def test_apart_is_three_errors_and_more_than_seeds_differ(small: float, seeds: float, said: str) -> None:
    rows = order.compare(qualities(family(0.8, small, 0.5, seeds), noise=0.1))
    pair = [row for row in rows if (row["first"], row["second"]) == STUDENTS[:2]]
    assert said in order.verdict(pair)


def test_the_report_says_of_every_pair_what_it_is() -> None:
    text = order.report(order.compare(qualities(family(0.8, 0.7, 0.6, 0.02), noise=0.1)))
    for first, second in order.PAIRS:
        assert f"`{first}` above `{second}`: told apart by FID (" in text
    assert order.report([]) == ""
