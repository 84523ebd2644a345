"""The training benchmark: both sides take the same step, and a run writes what it says."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
import torch

from benchmarks.training import flops, ways
from benchmarks.training.__main__ import main
from benchmarks.training.breakdown import classify
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


def test_cached_and_uncached_steps_have_the_published_losses(scenario):
    published = losses(None, scenario, 3)
    assert losses(PLAIN, scenario, 3) == pytest.approx(published, rel=1e-5)
    assert losses(Way(), scenario, 3) == pytest.approx(published, rel=1e-4)


@pytest.mark.parametrize("name", [field.name for field in fields(Way) if field.name != "compiled"])
def test_no_speed_up_changes_the_losses(name, scenario):
    published = losses(None, scenario, 2)
    assert losses(replace(Way(), **{name: False}), scenario, 2) == pytest.approx(published, rel=1e-4)


def test_a_run_that_was_moved_away_and_back_goes_on(scenario):
    for way in (None, PLAIN, Way()):
        run = ways.start(way, scenario)
        run.step()
        ways.move(run, "cpu")
        run.step()
        assert run.losses["loss"] > 0


def test_operations_are_those_of_the_published_networks():
    # 242.8 G multiply-adds of one call, attention included, counted layer by layer elsewhere.
    from pytest_sdbench.models.skeleton import unet_inputs, unet_skeleton

    unet = unet_skeleton("bk-sdm-tiny")
    assert flops.counted(lambda: unet(**unet_inputs("bk-sdm-tiny"))) / 2e9 == pytest.approx(242.8, abs=0.1)


def test_the_published_way_computes_more(scenario):
    counted = flops.count(scenario)
    assert counted.done(Way()) == counted.needed
    extra = counted.encode + counted.text + counted.forward
    assert counted.done(None) == counted.done(PLAIN) == counted.needed + extra
    assert 1.5 * counted.forward < counted.backward < 2.1 * counted.forward


@pytest.mark.slow
def test_a_smoke_run_writes_table_and_figures(tmp_path, capsys):
    main(["--smoke", "--recipe", "bk-sdm-base", "--device", "cpu", "--rounds", "1", "--steps", "1",
          "--speed-ups", "channels_last", "--out", str(tmp_path / "speed")])  # fmt: skip
    [result] = json.loads((tmp_path / "speed.json").read_text())["results"]
    names = [figure["name"] for figure in result["figures"]]
    alone = ["without channels_last", "only channels_last"]
    assert names == ["published script", "ours", "ours, all off", *alone]
    assert all(figure["images_per_second"] > 0 and figure["peak_share"] > 0 for figure in result["figures"])
    assert result["versions"]["torch"] == torch.__version__.split("+")[0] or result["versions"]["torch"]
    assert set(result["breakdowns"]) == {"ours", "ours, all off"}
    table = (tmp_path / "speed.md").read_text()
    assert "| without channels_last" in table
    assert "wrote" in capsys.readouterr().out


def test_a_recipe_that_distils_nothing_is_refused():
    with pytest.raises(TrainingError, match=r"objective\.kind"):
        open_scenario("portrait-finetuned", size="smoke", device=CPU)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("void multi_tensor_apply_kernel<FusedAdam>", "optimiser"),
        ("sm90_xmma_fprop_implicit_gemm_f16", "matmul and conv"),
        ("nvjet_hsh_256x128", "matmul and conv"),
        ("aten::addmm", "matmul and conv"),
        ("flash_fwd_kernel", "attention"),
        ("aten::native_group_norm", "norms and elementwise"),
        ("Memcpy HtoD (Pinned -> Device)", "data"),
    ],
)
def test_kernels_are_told_apart(name, kind):
    assert classify(name) == kind
