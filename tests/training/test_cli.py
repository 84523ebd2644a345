"""The command `python -m training`, from listing and dry runs to a run that is stopped and goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from ruamel.yaml import YAML

from tests.training.data.samples import picture, write_folder
from tests.training.helpers import recipe_of
from training.cli import STOPPED, main, run_folder
from training.recipes.load import recipe_names

pytestmark = pytest.mark.usefixtures("cache")
UNETS = {
    "bk-sdm-base": "579,384,964",
    "bk-sdm-small": "482,346,884",
    "bk-sdm-tiny": "323,384,964",
    "tiny-sd-lcm-6400": "323,466,884",
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_MAX_RESTARTS", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def recipe(pristine_checkpoint: Path, tmp_path: Path) -> str:
    """The file of a recipe of four steps of two."""
    mini = recipe_of(
        pristine_checkpoint,
        name="mini",
        data={"kind": "scenes", "pairs": 8, "resolution": 64, "cache": True, "cache_text": True},
        schedule={"steps": 4, "batch": 2, "micro_batch": 2},
    )
    YAML().dump(mini.model_dump(mode="json", by_alias=True), tmp_path / "mini.yaml")
    return str(tmp_path / "mini.yaml")


def test_every_recipe_is_listed_with_its_title(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert not any("cannot be read" in line for line in lines)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("bk-sdm-small", "scenes-sd") else pytest.mark.slow)
        for name in recipe_names()
    ],
)
def test_a_dry_run_describes_every_recipe_and_leaves_nothing_behind(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([name, "--dry-run"]) == 0
    text = capsys.readouterr().out
    for heading in ("Networks", "Run", "Memory of each GPU", "Disk", "steps", "epochs"):
        assert f"\n{heading}" in text or f"\n  {heading}" in text
    assert UNETS.get(name, "") in text
    assert max(map(len, text.splitlines())) <= 120
    assert list(tmp_path.rglob("*")) == []


def test_a_dry_run_reads_no_weights(
    tiny_checkpoint: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = list(tiny_checkpoint.rglob("*.safetensors"))
    assert len(weights) == 3
    for path in weights:
        path.unlink()
    assert main([recipe, "--dry-run", f"teacher={tiny_checkpoint}"]) == 0
    text = capsys.readouterr().out
    assert "mid_block" in text
    assert str(tiny_checkpoint) in text


@pytest.mark.parametrize(
    ("processes", "overrides", "status", "words"),
    [
        (1, ["schedule.steps=10", "schedule.batch=12"], 0, ["12 images = 1 process x 6", "15.0 of 8 pairs"]),
        (2, ["schedule.batch=8"], 0, ["8 images = 2 processes x 2 in turn x 2 at once"]),
        (3, ["schedule.batch=8"], 2, ["3 processes"]),
    ],
)
def test_a_dry_run_shows_the_overridden_figures_for_the_processes_of_a_launch(
    processes: int,
    overrides: list[str],
    status: int,
    words: list[str],
    recipe: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert main([recipe, overrides[0], "--dry-run", *overrides[1:]]) == status
    said = capsys.readouterr()
    for each in words:
        assert each in (said.err if status else said.out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no recipe is named"),
        (["bk-sdm-smal"], "Did you mean 'bk-sdm-small'?"),
        (["bk-sdm-small"], "data.path"),
        (["bk-sdm-small", "schedule.stepps=3"], "Did you mean 'steps'?"),
        (["scenes-small", "--resume", "--device", "cpu"], "no run to resume"),
        (["scenes-small", "teacher=nobody/has-this", "--device", "cpu"], "not in the hub cache"),
        (["scenes-small", "precision=fp16", "--device", "cpu"], "needs a GPU"),
        (["scenes-small", "teacher=./nowhere", "--dry-run"], "no such folder"),
        (["scenes-small", "--restart", "--export-only"], "Leave one out"),
        (["scenes-small", "--device", "cpu", "--folder", __file__], "a file, and not the folder of a run"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error


def test_the_module_runs_and_shows_no_traceback() -> None:
    command = [sys.executable, "-m", "training", "bk-sdm-smal"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch("error: .*\n", done.stderr)


def run(recipe: str, *arguments: str) -> int:
    return main([recipe, "--device", "cpu", *arguments])


def seen(folder: Path) -> list[int]:
    return [json.loads(line)["seen"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_stops_goes_on_is_exported_and_put_aside(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mini"
    assert run(recipe, "--stop-at", "4") == 0
    assert not out.exists()
    assert seen(run_folder("mini")) == [4]
    assert run(recipe, "--resume", "--out", str(out)) == 0
    assert seen(run_folder("mini"))[-1] == 8
    assert json.loads((out / "unet" / "config.json").read_text())["mid_block_type"] is None
    card = out / "README.md"
    card.write_text(card.read_text() + "\nWhat we saw of it.\n")
    assert run(recipe, "--out", str(out)) == 0
    assert "is there already: --export-only" in capsys.readouterr().out
    assert card.read_text().endswith("What we saw of it.\n")

    again, cache = tmp_path / "again", run_folder("mini").parent / "cache"
    shutil.rmtree(cache)
    assert run(recipe, "--export-only", "--out", str(again)) == 0
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (again / weights).read_bytes() == (out / weights).read_bytes()
    assert f"exported to {again}" in capsys.readouterr().out
    assert not cache.exists(), "what is exported alone needs no data"
    assert run(recipe, "--export-only", "--out", str(out)) == 0
    cards = [(folder / "README.md").read_text() for folder in (out, again)]
    shown = ("- Training data", "- Images", "- Hardware", "- Libraries")
    told = [[line for line in card.splitlines() if line.startswith(shown)] for card in cards]
    assert told[0] == told[1]
    assert "8 pairs" in told[1][0]
    assert "processes: 1, " in told[1][2]
    assert f"torch {torch.__version__.partition('+')[0]}" in told[1][3]
    assert run(recipe, "--export-only", "--out", str(again), "optimizer.learning_rate=0.5") == 2
    assert "the state of another recipe" in capsys.readouterr().err

    assert run(recipe, "--restart", "--stop-at", "2") == 0
    assert seen(run_folder("mini")) == [2]
    assert seen(run_folder("mini.1"))[-1] == 8


@pytest.mark.slow
def test_what_an_export_would_replace_is_told_before_anything_is_learned(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(recipe, "--out", recipe) == 2
    assert "holds something that is no checkpoint" in capsys.readouterr().err
    assert not (run_folder("mini") / "log.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "amended", ["data.upscale=true", "data.empty_captions=keep", "data.empty_captions=skip"]
)
def test_a_run_that_ended_at_a_picture_goes_on_when_it_is_said_what_to_do_with_it(
    pristine_checkpoint: Path, tmp_path: Path, amended: str, capsys: pytest.CaptureFixture[str]
) -> None:
    small = "upscale" in amended
    pictures = {f"{n}.png": (picture(n), f"red {n}") for n in range(8)}
    pictures["7.png"] = (picture(7, 40, 40), "red 7") if small else (picture(7), "")
    data = {"kind": "folder", "path": str(write_folder(tmp_path / "data", pictures)), "resolution": 64}
    schedule = {"steps": 8, "batch": 1, "micro_batch": 1}
    mini = recipe_of(pristine_checkpoint, name="mini", data=data, schedule=schedule)
    YAML().dump(mini.model_dump(mode="json", by_alias=True), tmp_path / "mini.yaml")
    file = str(tmp_path / "mini.yaml")
    assert run(file, "--stop-at", "1") in (0, 2)
    run(file)
    assert amended.partition("=")[0] in capsys.readouterr().err
    assert run(file, amended) == 0
    assert seen(run_folder("mini"))[-1] == 8


def test_two_runs_do_not_share_a_folder(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder("mini")
    folder.parent.mkdir(parents=True)
    with FileLock(folder.parent / ".mini.lock"):
        assert run(recipe) == 2
    assert "another process is training in this folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_that_is_started_again_puts_its_own_run_not_aside(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(recipe, "--stop-at", "2") == 0
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert run(recipe, "--restart") == 2
    assert "--restart: each restart of torchrun would put aside" in capsys.readouterr().err
    monkeypatch.delenv("TORCHELASTIC_MAX_RESTARTS")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert run(recipe, "--restart", "--stop-at", "4") == 0
    assert "--restart has been done" in capsys.readouterr().out
    assert seen(run_folder("mini")) == [2, 4]


@pytest.mark.slow
def test_a_run_asked_to_stop_saves_and_says_so(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder("mini")

    def ask() -> None:
        end = time.monotonic() + 120
        while not (folder / "log.jsonl").is_file() and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    status = run(recipe, "schedule.steps=1000000", "watch.report_seconds=0.01")
    asking.join()
    assert status == STOPPED
    assert (folder / "state.pt").is_file()
    assert "the same command goes on" in capsys.readouterr().out
