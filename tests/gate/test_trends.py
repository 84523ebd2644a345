"""Runs are compared image by image where their evidence is at hand, and by their errors where it is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pytest_sdbench.gate.trends import trends
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.metrics.standard_error import Groups, standard_error
from pytest_sdbench.report.history import Measurement, Series, series_of
from tests.report.test_history import SCORE, run_at

N = 400


def estimates(levels: list[float], own: float = 0.2) -> list[Estimate]:
    """Return scores of checkpoints on the same images, which share most of their noise."""
    random = np.random.default_rng(7)
    shared, found = random.normal(size=N), []
    for level in levels:
        rows = level + shared + own * random.normal(size=N)
        moves = rows - rows.mean()
        found.append(Estimate("clip_score", float(rows.mean()), standard_error(moves), N, influence=moves))
    return found


def measured(known: list[Estimate]) -> list[Measurement]:
    clip = replace(SCORE, metric="clip_score", n=N)
    return [
        replace(clip, value=each.value, standard_error=each.standard_error, checkpoint=str(i))
        for i, each in enumerate(known)
    ]


@pytest.mark.parametrize("kept", ["all", "none", "some", "others"])
def test_a_drop_that_only_pairing_shows_is_called_where_the_evidence_is(kept: str) -> None:
    known = estimates([0.0] * 6 + [-0.05] * 6)
    measurements = measured(known)

    def find(said: Measurement) -> tuple[Estimate, Groups | None] | None:
        i = int(said.checkpoint)
        if kept == "none" or (kept == "some" and i < 3):
            return None
        # Images that say another figure are not those of the run.
        return (replace(known[i], value=known[i].value + 1), None) if kept == "others" else (known[i], None)

    (trend,) = trends(series_of([run_at(day, each) for day, each in enumerate(measurements, 1)]), find)
    assert len(trend.changes) == (kept in ("all", "some"))
    assert all(change.first < 6 <= change.last for change in trend.changes)
    paired = {"all": 11, "some": 8}.get(kept, 0)
    assert sum(step.paired for step in trend.steps) == paired
    if trend.changes:
        assert trend.worse(trend.changes[0]) is True
        assert trend.changes[0].value == pytest.approx(-0.05, abs=0.02)


def test_without_evidence_the_error_of_a_step_is_that_of_two_runs() -> None:
    (trend,) = trends(series_of([run_at(1, SCORE), run_at(2, replace(SCORE, checkpoint="b", value=17.5))]))
    assert trend.steps[0].standard_error == pytest.approx(0.1 * 2**0.5)
    assert trend.worse(trend.changes[0]) is True


def test_the_same_checkpoint_again_is_no_second_draw() -> None:
    other = replace(SCORE, checkpoint="b", value=17.3)
    runs = [run_at(day, SCORE if day % 2 else other) for day in range(1, 25)]
    (trend,) = trends(series_of(runs))
    assert len(trend.series.points) == 24
    assert trend.changes == ()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"test": "speed", "metric": "", "standard_error": None}, "no error is known"),
        ({"standard_error": None}, "a standard error is not known"),
        ({"n": 12}, "fewer than 20 images"),
        ({"n": 100, "prompts": 19}, "fewer than 20 prompts"),
    ],
    ids=["speed", "no error", "few", "few prompts"],
)
def test_what_has_no_known_error_is_never_called_and_says_why(change: dict[str, object], why: str) -> None:
    first = replace(SCORE, **change)
    (trend,) = trends(series_of([run_at(1, first), run_at(2, replace(first, checkpoint="b", value=99.0))]))
    assert trend.changes == ()
    assert why in trend.silent


def test_all_series_share_the_error_and_a_count_changes_wherever_it_differs() -> None:
    def history(others: int) -> list[bool]:
        values = [17.0, 17.0, 17.0, 17.5]
        runs = [
            run_at(
                day,
                replace(SCORE, checkpoint=str(day), value=value),
                Measurement("mini", "size", value, name="unet"),
                *(replace(SCORE, card=f"c{i}", checkpoint=str(day)) for i in range(others)),
            )
            for day, value in enumerate(values, 1)
        ]
        found = trends(series_of(runs))
        return [bool(each.changes) for each in found]

    assert history(0) == [True, True]
    assert history(3000)[:2] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize(("draws", "most"), [(1, 0), (2, 5), (30, 5)])
def test_another_draw_is_no_change_though_its_points_share_their_noise(draws: int, most: int) -> None:
    """Of 100 histories without evidence, of as many prompts and seeds one after the other."""

    def called(seed: int) -> bool:
        random = np.random.default_rng(seed)
        shared, found = random.normal(size=draws) * 0.09, []
        for day in range(30):
            at = day * draws // 30
            value = 17 + shared[at] + 0.0436 * random.normal()
            one = replace(SCORE, checkpoint=str(day), draw=f"{at}", value=value)
            found.append(run_at(day + 1, one))
        (trend,) = trends(series_of(found))
        return bool(trend.changes)

    assert sum(map(called, range(100))) <= most


def test_what_one_draw_shares_does_not_hide_a_drop() -> None:
    values = [17.0] * 15 + [17.3] * 15
    runs = [run_at(day, replace(SCORE, checkpoint=str(day), value=x)) for day, x in enumerate(values, 1)]
    assert [change.at for change in trends(series_of(runs))[0].changes] == [15]


def shares(seed: int, *lost: float, repeats: int = 1) -> list[Series]:
    """Return a history of shares of 512 pairs, of which so many are lost on average; prompts may repeat."""
    random, prompts, found = np.random.default_rng(seed), 512 // repeats, []
    for day, mean in enumerate(lost, 1):
        share = random.binomial(prompts, mean / 512) / prompts
        error = (share * (1 - share) / prompts) ** 0.5
        one = {"metric": "lost", "value": share, "standard_error": error, "n": 512, "checkpoint": str(day)}
        found.append(run_at(day, replace(SCORE, **one)))
    return series_of(found)


@pytest.mark.slow
@pytest.mark.parametrize(("mean", "repeats"), [(0.1, 1), (1.0, 1), (8.0, 4), (100.0, 1)])
def test_of_200_histories_of_rare_losses_at_most_5_percent_are_called(mean: float, repeats: int) -> None:
    histories = [shares(seed, *[mean] * 30, repeats=repeats) for seed in range(200)]
    assert sum(bool(trends(each)[0].changes) for each in histories) <= 10


def test_losses_that_become_many_are_called() -> None:
    histories = [shares(seed, *[1.0] * 15, *[15.0] * 15) for seed in range(20)]
    for (trend,) in map(trends, histories):
        (change,) = trend.changes
        assert change.first < 15 <= change.last
        assert trend.worse(change) is True
