"""Recorded experiments are those of the recipes and checkpoints as they are; differences are paired."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from benchmarks.family.experiment_list import EXPERIMENTS, IMAGES, SEEDS, STUDENTS
from benchmarks.family.experiments import made_by
from benchmarks.family.members import FAMILY, METRICS, Quality, difference
from benchmarks.family.reading import told, with_readings
from benchmarks.report import RESULTS, load
from pytest_sdbench.base.paths import reference
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.protocols import scenes
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.prompts import load_prompts
from training.recipes.load import load_recipe


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
        for metric in ("fid", "kid", "inception_score", "clip_score"):
            value = recorded[metric]
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


def test_students_of_block_removal_are_trained_alike() -> None:
    recipes = [load_recipe(name) for name in (*STUDENTS, "scenes-small-2m")]
    for name in ("schedule", "optimizer", "ema", "objective", "teacher", "speed"):
        assert len({repr(getattr(recipe, name)) for recipe in recipes}) == 1, name
    assert {recipe.images for recipe in recipes} == {IMAGES}
    assert {recipe.schedule.seed for recipe in recipes} == {SEEDS[0]}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_runs_end_where_their_recipes_do_and_are_compared_with_one_of_them(name: str) -> None:
    experiment = EXPERIMENTS[name]
    assert experiment.against in {run.label for run in experiment.runs}
    for run in experiment.runs:
        if run.recipe is not None:
            assert load_recipe(run.recipe, run.overrides).images == run.stops[-1], run.label
    alone = [place for place in experiment.places() if experiment.counterpart(*place) is None]
    assert {run.label for run, _, _ in alone} == {experiment.against}


def test_all_other_scenes_show_no_face_and_are_compared_with_no_real_ones() -> None:
    _, things = EXPERIMENTS["finetuning"].runs[0].draws
    protocol = things.of(600)
    faces = set(scenes.names_of("faces"))
    named = [name for caption in load_prompts(protocol) for name, _ in told(caption)]
    assert len(named) > 600
    assert not faces.intersection(named)
    assert set(protocol.metrics) == {"inception_score", "clip_score"}


def test_readings_are_added_to_a_protocol_and_move_no_picture() -> None:
    protocol = load_protocol("scenes-5k")
    found = with_readings(protocol, METRICS)
    assert tuple(found.metrics) == METRICS
    assert found.draw_fingerprint == protocol.draw_fingerprint
