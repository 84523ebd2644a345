"""The training benchmark: both sides take the same step, and a run writes what it says."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
import torch

from benchmarks.training import ways
from benchmarks.training.__main__ import main
from benchmarks.training.scenario import open_scenario
from benchmarks.training.ways import PLAIN, Way
from training.errors import TrainingError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scenario():
    return open_scenario("bk-sdm-tiny", size="smoke", device=CPU)


def losses(way: Way | None, scenario, steps: int) -> list[float]:
    run, found = ways.start(way, scenario), []
    for _ in range(steps):
        run.step()
        found.append(run.losses["loss"])
    return found


@pytest.mark.slow
def test_cached_and_uncached_steps_have_the_published_losses(scenario):
    published = losses(None, scenario, 3)
    assert losses(PLAIN, scenario, 3) == pytest.approx(published, rel=1e-5)
    assert losses(Way(), scenario, 3) == pytest.approx(published, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [field.name for field in fields(Way) if field.name != "compiled"])
def test_no_speed_up_changes_the_losses(name, scenario):
    published = losses(None, scenario, 2)
    assert losses(replace(Way(), **{name: False}), scenario, 2) == pytest.approx(published, rel=1e-4)


@pytest.mark.slow
def test_a_run_that_was_moved_away_and_back_goes_on(scenario):
    for way in (None, PLAIN, Way()):
        run = ways.start(way, scenario)
        run.step()
        ways.move(run, "cpu")
        run.step()
        assert run.losses["loss"] > 0


@pytest.mark.slow
def test_a_smoke_run_writes_table_and_figures(tmp_path, capsys):
    main(["--smoke", "--recipe", "bk-sdm-base", "--device", "cpu", "--rounds", "1", "--steps", "1",
          "--speed-ups", "channels_last", "--out", str(tmp_path / "speed")])  # fmt: skip
    [result] = json.loads((tmp_path / "speed.json").read_text())["results"]
    names = [figure["name"] for figure in result["figures"]]
    alone = ["without channels_last", "only channels_last"]
    assert names == ["published script", "ours", "ours, all off", *alone]
    assert all(figure["images_per_second"] > 0 for figure in result["figures"])
    assert result["versions"]["torch"] == torch.__version__.split("+")[0]
    table = (tmp_path / "speed.md").read_text()
    assert "| without channels_last" in table
    assert "wrote" in capsys.readouterr().out


def test_a_recipe_that_distils_nothing_is_refused():
    with pytest.raises(TrainingError, match=r"objective\.kind"):
        open_scenario("portrait-finetuned", size="smoke", device=CPU)
