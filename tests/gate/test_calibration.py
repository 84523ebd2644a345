"""``--sdbench-calibrate``: what scores scatter by when only the seeds change."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pytest_sdbench.base.errors import DataError
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.evaluate import Evaluation, evaluate
from pytest_sdbench.gate.calibration import (
    Calibration,
    calibration_path,
    read_calibration,
    record_calibration,
    write_calibration,
)
from pytest_sdbench.gate.verdict import Outcome
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.protocols.load import load_protocol
from tests.gate.helpers import Run, report
from tests.project import IMAGES, PASSES, make_card, make_project, make_protocol


@pytest.fixture
def project(pytester: pytest.Pytester, pristine_checkpoint: Path) -> Path:
    return make_project(pytester.path, pristine_checkpoint, claims=PASSES)


def row(pytester: pytest.Pytester, test: str) -> dict[str, Any]:
    (found,) = [row for row in report(pytester)["results"] if row["node_id"].endswith(f"::{test}")]
    return dict(found)


@pytest.mark.slow
def test_two_runs_with_other_seeds_are_recorded_beside_the_protocols_and_reported(
    run: Run, project: Path, pytester: pytest.Pytester, store: Path, pristine_checkpoint: Path
) -> None:
    result = run("--sdbench-calibrate=2")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=2, skipped=3)
    result.stdout.fnmatch_lines(["*2 runs: *FID * scatters by *0 of * false alarms*"])

    protocol = load_protocol(project.parent / "protocols" / "mini.yaml")
    place = calibration_path(protocol)
    assert place == project.parent / "calibration" / "mini.json"
    reported = row(pytester, "test_calibration[mini]")
    assert (reported["verdict"], reported["n"]) == ("pass", IMAGES)
    assert pytester.path / reported["extra"]["recorded_in"] == place

    found = read_calibration(protocol)
    assert found is not None
    own = protocol.seeds.seed
    assert len(found.seeds) == len(set(found.seeds)) == 2
    assert own not in found.seeds
    assert set(found.values) == set(protocol.metrics)
    # Each figure is that of the checkpoint under the protocol with that seed, and all are in the store.
    checkpoint = resolve(str(pristine_checkpoint))
    for at, seed in enumerate(found.seeds):
        again: Evaluation = evaluate(
            checkpoint, protocol.with_seed(seed), Workspace(store, progress=False), max_images=0
        )
        for metric, values in found.values.items():
            scored = again.estimates[metric]
            assert isinstance(scored, Estimate)
            assert values[at] == pytest.approx(scored.value, rel=1e-5)
            assert found.standard_errors[metric][at] == pytest.approx(scored.standard_error, rel=1e-5)
    assert len(set(found.values["clip_score"])) == 2
    # Two runs are judged by each other: two verdicts a score.
    assert {metric: sum(counts.values()) for metric, counts in found.false_alarms.items()} == dict.fromkeys(
        protocol.metrics, 2
    )

    # Two runs do not say how uncertain a claim is: it stays as uncertain as the measurement.
    run("-k", "inception_score")
    figures = row(pytester, "test_quality[mini-inception_score]")
    assert figures["extra"]["error"] == pytest.approx(2**0.5 * figures["standard_error"], rel=1e-4)


def test_a_run_that_was_not_asked_to_calibrates_nothing(run: Run, project: Path) -> None:
    listed = run("--collect-only", "-q")
    assert "test_calibration" not in listed.stdout.str()
    assert "test_calibration[mini]" in run("--collect-only", "-q", "--sdbench-calibrate=2").stdout.str()
    assert not (project.parent / "calibration").exists()


@pytest.mark.parametrize(
    "content",
    [
        "mended",
        *(pytest.param(text, marks=pytest.mark.slow) for text in ("", "{", "[]", '{"protocol": "mini"}')),
    ],
)
def test_a_broken_file_is_named(run: Run, project: Path, pytester: pytest.Pytester, content: str) -> None:
    protocol = load_protocol(project.parent / "protocols" / "mini.yaml")
    place = calibration_path(protocol)
    place.parent.mkdir()
    if content == "mended":
        mended = {"protocol": "mini", "protocol_fingerprint": protocol.fingerprint, "checkpoint": "some"}
        content = json.dumps(mended | {"values": {"inception_score": ["many", "few"]}})
    place.write_text(content, encoding="utf-8")
    result = run("-k", "inception_score")
    result.assert_outcomes(failed=1, deselected=10)
    assert f"{place.relative_to(pytester.path)}: not a calibration" in result.stdout.str()
    assert "--sdbench-calibrate" in result.stdout.str()
    assert "Traceback" not in result.stdout.str()
    assert row(pytester, "test_quality[mini-inception_score]")["verdict"] == "error"


@pytest.mark.parametrize("runs", ["1", "0", "few"])
def test_fewer_than_two_runs_scatter_by_nothing(run: Run, runs: str) -> None:
    result = run(f"--sdbench-calibrate={runs}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--sdbench-calibrate" in result.stderr.str()
    assert "at least 2" in result.stderr.str()


@pytest.mark.slow
def test_a_calibration_file_is_plain_json_even_where_a_run_knows_no_error(
    run: Run, project: Path, pytester: pytest.Pytester
) -> None:
    # FID of fewer images than twice its features has no standard error.
    protocol = load_protocol(make_protocol(project.parent / "protocols" / "few.yaml", n=130))
    make_card(project, claims={}, protocol="few")
    run("--sdbench-calibrate=2", "-k", "calibration")
    text = calibration_path(protocol).read_text(encoding="utf-8")
    content = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert len(content["values"]["fid"]) == 2


@pytest.mark.parametrize("words", [["--sdbench-samples=66"], ["--sdbench-dtype=bfloat16"]])
def test_runs_of_another_protocol_do_not_calibrate_it(run: Run, project: Path, words: list[str]) -> None:
    """What 66 images scatter by is more than what 194 do, and would be taken for the error of claims."""
    run("--sdbench-calibrate=2", *words)
    assert not (project.parent / "calibration").exists()


@pytest.mark.parametrize(("failed", "outcome"), [(0, Outcome.PASS), (1, Outcome.PASS), (4, Outcome.FAIL)])
def test_runs_that_fail_each_other_too_often_fail_the_calibration(failed: int, outcome: Outcome) -> None:
    counts = {"fid": {"fail": failed, "pass": 20 - failed}}
    found = Calibration("p", "f", "c", {"fid": [1.0, 1.1]}, [1, 2, 3, 4, 5], false_alarms=counts)
    assert found.verdict().outcome is outcome
    assert f"{failed} of 20 false alarms" in found.verdict().reason


@pytest.mark.parametrize("figure", [math.nan, math.inf])
def test_a_figure_that_is_not_finite_calibrates_nothing(tmp_path: Path, figure: float) -> None:
    protocol = load_protocol(make_protocol(tmp_path / "protocols" / "mini.yaml"))
    scores = {"fid": [1.0, 2.0, 3.0, figure]}
    write_calibration(protocol, Calibration("mini", protocol.fingerprint, "mini", scores))
    with pytest.raises(DataError, match=r"mini\.json.*fid holds a figure that is not finite"):
        read_calibration(protocol)


def test_what_could_not_be_recorded_is_refused_before_an_image_is_made(
    run: Run, project: Path, tmp_path: Path
) -> None:
    protocol = load_protocol(project.parent / "protocols" / "mini.yaml")
    write_calibration(
        protocol, Calibration("mini", protocol.fingerprint, "other (f00d)", {"fid": [1.0, 2.0]})
    )
    result = run("--sdbench-calibrate=2", "-k", "calibration", "--sdbench-store", str(tmp_path / "own"))
    result.assert_outcomes(failed=1, deselected=11)
    assert "calibrated by another checkpoint (found 'other (f00d)')" in result.stdout.str()
    assert not list(tmp_path.glob("own/*/*"))


def test_what_runs_found_is_told_where_it_cannot_be_recorded(tmp_path: Path) -> None:
    protocol = load_protocol(make_protocol(tmp_path / "protocols" / "mini.yaml"))
    calibration_path(protocol).parent.write_text("a file in the place of the folder")
    found = Calibration("mini", protocol.fingerprint, "mini", {"fid": [1.0, 2.0]}, [1, 2])
    with pytest.raises(DataError, match=r"cannot be written.*measured: 2 runs: FID 1\.5"):
        record_calibration(protocol, found)


def test_fewer_runs_do_not_replace_more(tmp_path: Path) -> None:
    protocol = load_protocol(make_protocol(tmp_path / "protocols" / "mini.yaml"))
    many = Calibration("mini", protocol.fingerprint, "mini", {"fid": [1.0, 2.0, 3.0, 4.0]})
    few = Calibration("mini", protocol.fingerprint, "mini", {"fid": [5.0, 6.0]})
    for found in (few, many, many):
        write_calibration(protocol, found)
    with pytest.raises(DataError, match="more runs than these 2"):
        write_calibration(protocol, few)
    # As on a machine that lacks the references of one metric.
    part = Calibration("mini", protocol.fingerprint, "mini", {"clip_score": [0.3] * 4})
    with pytest.raises(DataError, match="FID is calibrated by more runs than these 0"):
        write_calibration(protocol, part)
    found = read_calibration(protocol)
    assert found is not None
    assert found.values == many.values
