"""The command `python -m training`, from listing and dry runs to a run that is stopped and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from ruamel.yaml import YAML

from tests.tiny_checkpoint import make_checkpoint
from training.cli import STOPPED, main, run_folder
from training.recipes.load import recipe_names

UNETS = {
    "bk-sdm-base": "579,384,964",
    "bk-sdm-small": "482,346,884",
    "bk-sdm-tiny": "323,384,964",
    "tiny-sd-lcm-6400": "323,466,884",
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SDBENCH_CACHE", str(tmp_path / "cache"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def recipe(teacher: Path, tmp_path: Path) -> str:
    values = {
        "name": "mini",
        "title": "Mini",
        "teacher": str(teacher),
        "student": {"remove": "small"},
        "objective": {
            "kind": "distillation",
            "pairing": "bk-sdm",
            "weights": {"task": 1.0, "output": 1.0, "feature": 1.0},
        },
        "data": {"kind": "scenes", "pairs": 8, "resolution": 64, "cache": True, "cache_text": True},
        "schedule": {"steps": 4, "batch": 2, "micro_batch": 2},
        "optimizer": {"learning_rate": 1e-4},
        "export": {"license": "apache-2.0"},
    }
    path = tmp_path / "mini.yaml"
    YAML().dump(values, path)
    return str(path)


def test_every_recipe_is_listed_with_its_title(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert not any("cannot be read" in line for line in lines)


@pytest.mark.parametrize("name", recipe_names())
def test_a_dry_run_describes_every_recipe_and_leaves_nothing_behind(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([name, "--dry-run"]) == 0
    text = capsys.readouterr().out
    for heading in ("Networks", "Run", "Memory of each GPU", "Disk", "steps", "epochs"):
        assert f"\n{heading}" in text or f"\n  {heading}" in text
    assert UNETS.get(name, "") in text
    assert max(map(len, text.splitlines())) <= 120
    assert list(tmp_path.rglob("*")) == []


def test_a_dry_run_reads_no_weights(teacher: Path, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    hidden = [(path, path.with_suffix(".hidden")) for path in teacher.rglob("*.safetensors")]
    assert len(hidden) == 3
    for path, other in hidden:
        path.rename(other)
    try:
        assert main([recipe, "--dry-run"]) == 0
    finally:
        for path, other in hidden:
            other.rename(path)
    text = capsys.readouterr().out
    assert "mid_block" in text
    assert str(teacher) in text


def test_a_dry_run_shows_the_overridden_figures(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([recipe, "schedule.steps=10", "--dry-run", "schedule.batch=12"]) == 0
    text = capsys.readouterr().out
    assert "12 images = 1 process x 6 in turn x 2 at once" in text
    assert "15.0 of 8 pairs" in text


def test_a_dry_run_cuts_the_batch_for_the_processes_of_a_launch(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([recipe, "schedule.batch=8", "--dry-run"]) == 0
    assert "8 images = 2 processes x 2 in turn x 2 at once" in capsys.readouterr().out
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert main([recipe, "schedule.batch=8", "--dry-run"]) == 2
    assert "3 processes" in capsys.readouterr().err


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
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error


def test_the_module_runs_and_shows_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "training", "bk-sdm-smal"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def run(recipe: str, *arguments: str) -> int:
    return main([recipe, "--device", "cpu", *arguments])


def seen(folder: Path) -> list[int]:
    return [json.loads(line)["seen"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_run_stops_goes_on_and_is_exported(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mini"
    assert run(recipe, "--stop-at", "4") == 0
    assert not out.exists()
    assert seen(run_folder("mini")) == [4]
    assert run(recipe, "--resume", "--out", str(out)) == 0
    assert seen(run_folder("mini"))[-1] == 8
    assert json.loads((out / "unet" / "config.json").read_text())["mid_block_type"] is None
    assert (out / "README.md").is_file()

    again = tmp_path / "again"
    assert run(recipe, "--export-only", "--out", str(again)) == 0
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (again / weights).read_bytes() == (out / weights).read_bytes()
    assert f"exported to {again}" in capsys.readouterr().out


def test_a_restart_puts_the_old_run_aside(recipe: str) -> None:
    assert run(recipe, "--stop-at", "4") == 0
    assert run(recipe, "--restart", "--stop-at", "2") == 0
    assert seen(run_folder("mini")) == [2]
    assert seen(run_folder("mini.1")) == [4]


def test_two_runs_do_not_share_a_folder(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder("mini")
    folder.parent.mkdir(parents=True)
    with FileLock(folder.parent / ".mini.lock"):
        assert run(recipe) == 2
    assert "another process is training in this folder" in capsys.readouterr().err


def test_a_run_that_is_asked_to_stop_saves_and_says_so(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_folder("mini")

    def ask() -> None:
        await_file(folder / "log.jsonl")
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    status = run(recipe, "schedule.steps=1000000", "watch.report_seconds=0.01")
    asking.join()
    assert status == STOPPED
    assert (folder / "state.pt").is_file()
    assert "the same command goes on" in capsys.readouterr().out


def await_file(path: Path, seconds: float = 120.0, sleep: Callable[[float], None] = time.sleep) -> None:
    end = time.monotonic() + seconds
    while not path.is_file() and time.monotonic() < end:
        sleep(0.02)
