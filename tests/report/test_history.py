"""A history loses nothing of any run, says what its evidence is, and is read however it was written."""

from __future__ import annotations

import json
import subprocess
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.base.source import source
from pytest_sdbench.commands.history import read_chosen
from pytest_sdbench.report.history import (
    SCHEMA_VERSION,
    Measurement,
    Run,
    read_runs,
    run_of,
    series_of,
    write_run,
)
from pytest_sdbench.report.results import Row
from tests.store.remote import S3, s3_server

SCORE = Measurement(
    "mini",
    "quality",
    17.0,
    metric="fid",
    protocol="coco5k",
    standard_error=0.1,
    n=5000,
    verdict="pass",
    checkpoint="a" * 16,
    draw="d" * 16,
    score_fingerprint="f" * 16,
    versions={"torch": "2.15.0"},
)


def run_at(day: int, *measurements: Measurement) -> Run:
    return Run(f"x{day:02}", f"2026-10-{day:02}T10:00:00Z", measurements, {"commit": f"{day:040x}"})


def test_an_object_gives_its_run_back_and_leaves_out_what_is_empty() -> None:
    run = run_at(1, SCORE)
    text = run.to_json()
    assert Run.from_json(text.encode()) == run
    content = json.loads(text)
    assert content["schema_version"] == SCHEMA_VERSION == 1
    assert not {"name", "claimed", "device"} & set(content["measurements"][0])
    content["of a later version"] = content["measurements"][0]["of a later version"] = {"x": 1}
    assert Run.from_json(json.dumps(content).encode()) == run


@pytest.fixture
def s3() -> Iterator[S3]:
    with s3_server() as running:
        yield running


@pytest.mark.parametrize(
    "place", ["folder", "memory://history/of/runs", pytest.param("s3", marks=pytest.mark.slow)]
)
def test_writers_at_once_lose_nothing(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    where: Path | str = place if "://" in place else tmp_path / place
    if place == "s3":
        where = f"{request.getfixturevalue('s3').url}/runs"
    row = Row("x", "mini", "size", name="unet", measured=5.0, verdict="pass")
    runs = [run_of([row], {}) for _ in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda run: write_run(where, run), runs))
    found, problems = read_runs(where)
    assert {run.id for run in found} == {run.id for run in runs if run is not None}
    assert (len(found), problems) == (40, [])
    assert [run.date for run in found] == sorted(run.date for run in found)


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"date": "yesterday"},
        {"date": 5},
        {"source": {"commit": 5}},
        {"measurements": 7},
        {"measurements": [7]},
        {"measurements": [{"card": "x", "test": "size"}]},
        {"measurements": [{"card": "x", "test": "size", "value": "much"}]},
        {"measurements": [{"card": "x", "test": "size", "value": True}]},
        {"measurements": [{"card": "x", "test": "size", "value": 1, "standard_error": -1}]},
        {"measurements": [{"card": ["x"], "test": "size", "value": 1}]},
        {"measurements": [{"card": "x", "test": "size", "value": 1, "versions": [1]}]},
        {"measurements": [{"card": "x", "test": "size", "value": 1, "n": 2.5}]},
        {"measurements": [{"card": "x", "test": "size", "value": 1, "n": 0}]},
    ],
    ids=str,
)
def test_what_is_no_run_is_told_and_hides_no_other(change: dict[str, Any], tmp_path: Path) -> None:
    write_run(tmp_path, run_at(1, SCORE))
    bad = json.loads(run_at(2, SCORE).to_json()) | change
    (tmp_path / "run-bad.json").write_text(json.dumps(bad), encoding="utf-8")
    (tmp_path / "run-worse.json").write_bytes(b"\xff{")
    (tmp_path / "notes.txt").write_text("of somebody", encoding="utf-8")
    found, problems = read_runs(tmp_path)
    assert [run.id for run in found] == ["x01"]
    assert [problem.split(": ")[0].rpartition("/")[2] for problem in problems] == [
        "run-bad.json",
        "run-worse.json",
    ]


def test_runs_stand_in_the_order_of_their_ends_whatever_the_zone(tmp_path: Path) -> None:
    dates = {
        "b": "2026-10-01T23:30:00-05:00",
        "a": "2026-10-02T01:00:00Z",
        "d": "2026-10-02",
        "c": "2026-10-02T10:00:00+09:00",
    }
    for name, date in dates.items():
        write_run(tmp_path, replace(run_at(1, SCORE), id=name, date=date))
    found, problems = read_runs(tmp_path)
    assert ([run.id for run in found], problems) == (["d", "a", "c", "b"], [])


def test_a_place_without_runs_or_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    assert read_runs(tmp_path / "nothing") == ([], [])
    with pytest.raises(SdbenchError, match=r"no runs here.*--sdbench-history"):
        read_chosen(Namespace(place=str(tmp_path / "nothing"), card=[], metric=[], protocol=[]))
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(SdbenchError, match="the history cannot be written") as error:
        write_run(tmp_path / "file", run_at(1, SCORE))
    assert "--sdbench-store" not in str(error.value)


def row(**values: Any) -> Row:
    about = {"card": "mini", "test": "quality", "metric": "fid", "protocol": "coco5k", "verdict": "pass"}
    return Row.from_dict({"node_id": "x", "measured": 17.0, **about, **values})


def test_a_figure_of_several_claims_is_one_measurement_with_the_verdict_that_is_no_pass() -> None:
    extra = {"checkpoint_fingerprint": "a", "draw_fingerprint": "d", "versions": {"torch": "2"}, "device": 7}
    rows = [
        row(name="coco5k-fid", extra=extra),
        row(name="coco5k-fid-recorded", verdict="fail", extra=extra),
        row(metric="kid", measured=None, verdict="unavailable"),
        row(test="size", name="unet", metric="", protocol="", measured=5.0),
        row(test="size", name="whole", metric="", protocol="", measured=9.0),
    ]
    run = run_of(rows, {"commit": "c"})
    assert run is not None
    assert [(each.test, each.name, each.value, each.verdict) for each in run.measurements] == [
        ("quality", "", 17.0, "fail"),
        ("size", "unet", 5.0, "pass"),
        ("size", "whole", 9.0, "pass"),
    ]
    assert run.measurements[0].evidence == ("a", "d")
    assert run.measurements[0].versions == {"torch": "2"}
    assert run_of([row(measured=None), row(measured=float("nan"))], {}) is None


def test_a_checkpoint_measured_again_on_the_same_images_is_no_further_point() -> None:
    other = replace(SCORE, checkpoint="b" * 16, value=17.2)
    again, moved = replace(SCORE, value=17.0001), replace(SCORE, value=17.4)
    nameless = replace(SCORE, checkpoint="")
    days = [SCORE, again, other, SCORE, moved, nameless, nameless]
    (series,) = series_of([run_at(day, each) for day, each in enumerate(days, 1)])
    assert [len(point.runs) for point in series.points] == [2, 1, 1, 1, 2]
    assert series.points[0].runs[0].id == "x01"


def test_series_are_of_one_score_each() -> None:
    others = [
        replace(SCORE, **change)
        for change in ({"metric": "kid"}, {"n": 4999}, {"score_fingerprint": "0"}, {"card": "y"})
    ]
    speed = Measurement("mini", "speed", 0.6, device="cpu")
    everywhere = [SCORE, *others, speed, replace(speed, device="gpu"), replace(SCORE, device="gpu")]
    assert len(series_of([run_at(1, *everywhere)])) == 7
    assert len(series_of([run_at(1, speed, replace(speed, dtype="float16"))])) == 2
    ahead = replace(SCORE, n=1000, predicted_for=5000)
    few = [replace(SCORE, n=1000), ahead, replace(ahead, n=2000)]
    assert len(series_of([run_at(day, each) for day, each in enumerate(few, 1)])) == 2


def test_a_prediction_is_kept_as_one() -> None:
    run = run_of([row(n=1000, extra={"predicted_for": 5000})], {})
    assert run is not None
    assert Run.from_json(run.to_json().encode()) == run
    assert (run.measurements[0].n, run.measurements[0].predicted_for) == (1000, 5000)


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        (
            {
                "GITHUB_SHA": "c1",
                "GITHUB_REF_NAME": "7/merge",
                "GITHUB_HEAD_REF": "topic",
                "GITHUB_RUN_ID": "5",
            }
            | {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "o/r"},
            {"commit": "c1", "branch": "topic", "url": "https://github.com/o/r/actions/runs/5"},
        ),
        (
            {
                "CI_COMMIT_SHA": "c2",
                "CI_COMMIT_REF_NAME": "main",
                "CI_JOB_URL": "https://me:pw@gitlab.com/j/1",
            },
            {"commit": "c2", "branch": "main", "url": "https://***@gitlab.com/j/1"},
        ),
        ({}, {}),
    ],
    ids=["github", "gitlab", "nowhere"],
)
def test_the_commit_is_that_of_the_service(
    environment: dict[str, str], found: dict[str, str], tmp_path: Path
) -> None:
    assert source(tmp_path, environment) == found


def test_the_commit_is_that_of_the_folder(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q", "-b", "topic")
    (tmp_path / "a").write_text("1", encoding="utf-8")
    git("add", "a")
    git("commit", "-q", "-m", "one")
    found = {"commit": git("rev-parse", "HEAD"), "branch": "topic"}
    assert source(tmp_path, {}) == found
    (tmp_path / "a").write_text("2", encoding="utf-8")
    assert source(tmp_path, {}) == found | {"changed": "yes"}


def test_series_of_one_name_say_in_what_they_differ() -> None:
    """Of other numbers of images, other devices and other references: no two look alike."""
    call = Measurement("mini", "speed", 1.0, device="NVIDIA H100", dtype="float16")
    pairs = replace(SCORE, metric="psnr", reference="1" * 16)
    lone = replace(SCORE, metric="kid")
    found = [SCORE, replace(SCORE, n=1000), call, replace(call, dtype="float32"), lone]
    found += [pairs, replace(pairs, reference="2" * 16)]
    assert [series.apart for series in series_of([run_at(1, *found)])] == [
        *("5,000 images", "1,000 images", "NVIDIA H100 float16", "NVIDIA H100 float32", ""),
        *("beside 11111111", "beside 22222222"),
    ]


def scored(file: str, card: str) -> Row:
    return Row(f"{file}::test_quality[x]", card, "quality", metric="fid", measured=17.0, verdict="pass")


def test_a_series_is_that_of_a_file_whatever_else_a_run_has() -> None:
    """A card is called by its folders where a namesake runs beside it, and by its name alone elsewhere."""
    beside = [scored("a/card.md", "a/card"), scored("b/card.md", "b/card")]
    alone = [scored("a/card.md", "card")], [scored("b/card.md", "card")]
    runs = [run for rows in (beside, *alone) if (run := run_of(rows, {})) is not None]
    found = series_of(runs)
    assert [(series.about.file, len(series.points[0].runs)) for series in found] == [
        ("a/card.md", 2),
        ("b/card.md", 2),
    ]
    assert [series.apart for series in found] == ["a/card.md", "b/card.md"]


@pytest.mark.parametrize("folder", ["../other", "/somewhere", ".venv/lib/python3.12/site-packages/x"])
def test_a_card_outside_the_project_goes_by_its_name(folder: str) -> None:
    run = run_of([scored(f"{folder}/card.md", "card")], {})
    assert run is not None
    assert [(each.file, each.series[0]) for each in run.measurements] == [("", "card")]


def test_a_figure_without_a_file_is_that_of_the_only_card_of_its_name() -> None:
    """As of runs before files were told, and of those outside the project."""
    told = replace(SCORE, file="cards/mini.md", checkpoint="b" * 16)
    (series,) = series_of([run_at(1, SCORE), run_at(2, told)])
    assert len(series.points) == 2
    assert len(series_of([run_at(1, SCORE), run_at(2, told, replace(told, file="other/mini.md"))])) == 3
