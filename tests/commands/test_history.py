"""A history is shown, paired with the store, and given on to others; no word in it moves a terminal."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.numpy import load_file, save_file

from pytest_sdbench.commands.history import difference_text
from pytest_sdbench.commands.main import main
from pytest_sdbench.report.history import Measurement, read_runs, write_run
from tests.project import make_project
from tests.report.test_history import SCORE, run_at
from tests.report.test_report import FORGED, HIDDEN

SIZE = Measurement("mini", "size", 5e6, name="unet", unit="parameters")
CLIP = replace(SCORE, metric="clip_score", value=0.3, standard_error=0.001, verdict="pass")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Thirty runs of as many checkpoints, with one drop."""
    for day in range(1, 31):
        fid = replace(SCORE, checkpoint=f"{day:016x}", value=17.0 + (day % 5) / 100 + (day >= 20))
        write_run(tmp_path / "history", run_at(day, fid, replace(CLIP, checkpoint=f"{day:016x}"), SIZE))
    return tmp_path / "history"


def test_a_drop_is_shown_with_its_commit(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = place.parent / "figures.json"
    assert main(["history", str(place), "--json", str(figures)]) == 0
    text = capsys.readouterr().out
    (overview,) = [line for line in text.splitlines() if "worse +" in line]
    assert overview.split()[:3] == ["mini", "FID", "↓,"]
    assert "at 2026-10-20 0000000000" in overview
    (called,) = [line for line in text.splitlines() if line.endswith(" worse")]
    assert called.startswith("2026-10-20")
    assert "30 runs: 1 change called in 3 series; the chance of any wrong call in all of them is 5 %" in text
    assert "not paired: coco5k: the protocol of the run is another one, or not here" in text
    fid, clip, size = json.loads(figures.read_text(encoding="utf-8"))["series"]
    (change,) = fid["changes"]
    assert (change["at"], change["worse"]) == (19, True)
    assert fid["points"][19]["commit"] == f"{20:040x}"
    assert (len(clip["points"]), clip["changes"], len(size["points"])) == (30, [], 1)


@pytest.mark.parametrize(
    ("words", "series"),
    [
        (["--metric", "fid"], 1),
        (["--metric", "FID"], 1),
        (["--metric", "fid", "--metric", "size"], 2),
        (["--protocol", "coco5k"], 2),
        (["--card", "mini"], 3),
    ],
    ids=str,
)
def test_what_is_named_is_shown_with_every_point(
    words: list[str], series: int, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["history", str(place), *words]) == 0
    text = capsys.readouterr().out
    assert f" in {series} series" in text
    if "fid" in words:
        assert sum(line.startswith("2026-10-") for line in text.splitlines()) == 30


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("customSmallerIsBetter", ["mini: FID, coco5k", "mini: size unet"]),
        ("customBiggerIsBetter", ["mini: CLIP score, coco5k"]),
    ],
)
def test_the_latest_run_is_exported(
    form: str, names: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["history", str(place), "--format", form]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in entries] == names
    for each in entries:
        assert {"name", "unit", "value"} <= set(each) <= {"name", "unit", "value", "range", "extra"}
        assert isinstance(each["value"], float | int)
        assert each["unit"]
    if form == "customSmallerIsBetter":
        assert entries[0]["range"] == "± 0.1"
        assert entries[0]["extra"].startswith("5,000 images\ncheckpoint 000000000000001e")


def test_a_metric_that_this_installation_lacks_is_exported_the_way_its_run_had_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    up = replace(SCORE, metric="their_reward", higher_is_better=True)
    unknown = replace(SCORE, metric="their_other", higher_is_better=None)
    write_run(tmp_path, run_at(1, up, unknown, SIZE))
    found = {}
    for form in ("customBiggerIsBetter", "customSmallerIsBetter"):
        figures = tmp_path / f"{form}.json"
        assert main(["history", str(tmp_path), "--format", form, "--json", str(figures)]) == 0
        printed = capsys.readouterr()
        found[form] = [each["unit"] for each in json.loads(printed.out)]
        assert "left out: their_other: nothing here says whether higher is better" in printed.err
        assert len(json.loads(figures.read_text(encoding="utf-8"))["series"]) == 3
    assert found == {"customBiggerIsBetter": ["their_reward"], "customSmallerIsBetter": ["parameters"]}


def test_a_history_that_cannot_be_read_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run-1.json").write_text('{"schema_version": 2}')
    assert main(["history", str(tmp_path)]) == 2
    assert "schema version 2, and this version reads 1" in capsys.readouterr().err


def test_what_is_not_there_is_an_error_that_says_what_is(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["history", str(place), "--card", "maxi"]) == 2
    assert "the cards are mini" in capsys.readouterr().err
    assert main(["history", str(place.parent / "nothing")]) == 2
    assert "there are no runs here" in capsys.readouterr().err
    (place / "run-x.json").write_text("{}", encoding="utf-8")
    assert main(["history", str(place)]) == 1
    assert "not read: " in capsys.readouterr().err
    assert main(["history", str(place), "--format", "customSmallerIsBetter"]) == 1
    assert isinstance(json.loads(capsys.readouterr().out), list), "what was not read is no part of the JSON"


def test_no_word_of_a_history_moves_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("card", "metric", "protocol", "checkpoint", "draw", "name", "unit")
    words = dict.fromkeys(names, FORGED + HIDDEN)
    for day in (1, 2):
        run = run_at(day, replace(SCORE, **words, value=float(day)), replace(SCORE, **words, test=HIDDEN))
        write_run(tmp_path, replace(run, source={"commit": HIDDEN, "branch": FORGED}))
    assert main(["history", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert all(char.isprintable() or char == "\n" for char in told.out + told.err)
    assert not [line for line in told.out.splitlines() if line.startswith("# Passed")]


@pytest.mark.slow
def test_runs_of_two_checkpoints_are_compared_image_by_image(
    pytester: pytest.Pytester, pristine_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_project(pytester.path, pristine_checkpoint)
    candidate = pytester.path / "candidate"
    shutil.copytree(pristine_checkpoint, candidate)
    (weights,) = (candidate / "unet").glob("*.safetensors")
    save_file({name: 1.01 * value for name, value in load_file(weights).items()}, weights)
    words = ("--sdbench", "cards", "-m", "quality", "--sdbench-history=runs", "--sdbench-report=r.html")
    for more in ((), (), ("--sdbench-weights=mini=candidate",)):
        result = pytester.runpytest(*words, *more)
        result.stdout.fnmatch_lines(["sdbench: history: added runs/run-*.json"])
    runs, problems = read_runs(pytester.path / "runs")
    assert (len(runs), problems) == (3, [])
    page = (pytester.path / "r.html").read_text(encoding="utf-8")
    assert "3 runs, this one included" in page
    assert page.count('class="dot') == 2 * page.count('class="panel multiple"') > 2
    for each in runs[0].measurements:
        assert (pytester.path / ".sdbench" / f"{each.checkpoint}-{each.draw}").is_dir()
    capsys.readouterr()
    assert main(["history", "runs", "--metric", "clip_score"]) == 0
    text = capsys.readouterr().out
    assert "not paired" not in text
    assert sum(line.endswith(" paired") or " paired " in line for line in text.splitlines()) == 1


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (0.33, 0.019, "+0.330 ± 0.019"),
        (-3.1e-6, 4.2e-7, "-0.00000310 ± 0.00000042"),
        (-3.1e-6, None, "-0.0000031"),
        (0.0, None, "+0.000"),
        (0.0, 0.0, "+0.000"),
    ],
)
def test_a_small_change_is_not_printed_as_none(value: float, error: float | None, said: str) -> None:
    series = SimpleNamespace(exact=False, about=SimpleNamespace(metric="fid"))
    assert difference_text(series, value, error) == said
