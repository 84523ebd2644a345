"""Recorded experiments are those of the recipes and checkpoints as they are; differences are paired."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from benchmarks.family.experiment_list import EXPERIMENTS
from benchmarks.family.experiments import made_by
from benchmarks.family.members import FAMILY, Quality, difference
from benchmarks.report import RESULTS, load
from pytest_sdbench.base.paths import reference
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.metrics.estimates import Estimate


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_recorded_results_are_complete_and_of_what_is_there(name: str) -> None:
    rows = load(RESULTS / name)["rows"]
    found = {(row["run"], row["made_by"], row["images_seen"], row["draw"]) for row in rows}
    assert found == {
        (run.label, made_by(run), stop, draw.label) for run, stop, draw in EXPERIMENTS[name].places()
    }


def test_the_table_of_the_family_is_that_of_its_cards() -> None:
    found = load(RESULTS / "family")
    assert [row["name"] for row in found["members"]] == list(FAMILY)
    for row in found["members"]:
        card = read_card(reference() / "cards" / f"{row['name']}.md")
        assert card.size["unet"].exact == row["unet"]
        recorded = {r.metric: r.value for r in card.records if r.protocol == found["protocol"]}
        for metric, value in recorded.items():
            assert value == pytest.approx(row[metric], rel=1e-3), (row["name"], metric)


def test_a_difference_is_taken_image_by_image() -> None:
    random = np.random.default_rng(0)
    shared = random.normal(0.9, 0.1, 400)
    first, second = (shared + random.normal(shift, 0.01, 400) for shift in (0.0, 0.002))
    psi = random.normal(0, 3, 400)

    def scored(fid: float, moved: npt.NDArray[np.float64], cosines: npt.NDArray[np.float64]) -> Quality:
        mean = float(cosines.mean())
        estimates = {
            "fid": Estimate("fid", fid, 0.15, 400, fid, influence=moved),
            "clip_score": Estimate("clip_score", mean, 0.005, 400, mean, influence=cosines - mean),
        }
        return Quality({}, estimates)

    found = difference(scored(1.5, psi + random.normal(0, 0.1, 400), first), scored(1.2, psi, second))
    test = stats.ttest_rel(first, second)
    assert found["clip_score"] / found["clip_score_se"] == pytest.approx(test.statistic)
    assert found["fid"] == pytest.approx(0.3)
    assert found["fid_se"] == pytest.approx(0.1 / 20, rel=0.15)
