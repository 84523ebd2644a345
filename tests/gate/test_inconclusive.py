"""What cannot be told: it never passes, and every report tells it from a regression."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path

import pytest

from pytest_sdbench.suite.finish import UNTOLD
from tests.gate.helpers import Run, report
from tests.project import FAILS, PASSES, make_card, make_project

CLOSE = {"inception_score": 24.0}
"""Random weights score about 17.6 with a standard error of 1.0: a margin of 7 is met or not, and 194 images
cannot say which."""
NEVER = {"inception_score": 60.0}
ITEM = "test_quality[mini-inception_score]"


@pytest.fixture
def project(pytester: pytest.Pytester, pristine_checkpoint: Path) -> Path:
    return make_project(pytester.path, pristine_checkpoint, claims=CLOSE)


@pytest.fixture
def run(run: Run) -> Run:
    """Run the card's scores, with every report."""
    return partial(run, "--sdbench-report=r.md", "--junitxml=junit.xml")


def case(pytester: pytest.Pytester) -> ET.Element:
    (found,) = [
        each
        for each in ET.parse(pytester.path / "junit.xml").iter("testcase")
        if each.get("name", "").endswith(ITEM)
    ]
    return found


ALONE_OR_WORKERS = pytest.mark.parametrize(
    "workers", [pytest.param((), id="alone"), pytest.param(("-n", "2"), id="workers", marks=pytest.mark.slow)]
)


@ALONE_OR_WORKERS
def test_it_fails_and_reports_say_why(
    run: Run, pytester: pytest.Pytester, workers: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    result = run("-rf", *workers)
    result.assert_outcomes(failed=1, skipped=3)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["inconclusive: IS: claimed 24.00, measured *cannot tell*"])
    result.stdout.fnmatch_lines([f"FAILED cards/mini.md::{ITEM.replace('[', '[[]')}*inconclusive: *"])
    assert "Traceback" not in result.stdout.str()

    content = report(pytester)
    assert content["summary"] == {"inconclusive": 1, "uncalibrated": 3}
    (row,) = [row for row in content["results"] if row["verdict"] == "inconclusive"]
    assert row["name"] == "mini-inception_score"
    assert row["extra"]["at_least"] < row["margin"] < row["extra"]["at_most"]
    table = (pytester.path / "r.md").read_text(encoding="utf-8")
    assert "1 inconclusive, 3 uncalibrated" in table
    assert any("24.0 |" in line and "inconclusive" in line for line in table.splitlines() if "|" in line)

    failure = case(pytester).find("failure")
    assert failure is not None
    assert failure.get("type") == "inconclusive"
    assert "cannot tell" in str(failure.get("message")) + str(failure.text)


def test_a_regression_has_another_type_in_junit(run: Run, project: Path, pytester: pytest.Pytester) -> None:
    make_card(project, claims=NEVER)
    run().assert_outcomes(failed=1, skipped=3)
    failure = case(pytester).find("failure")
    assert failure is not None
    assert failure.get("type") != "inconclusive"
    # A failure beside it is the one that counts.
    make_card(project, claims=CLOSE | FAILS)
    result = run("--sdbench-inconclusive=xfail")
    result.assert_outcomes(failed=1, xfailed=1, skipped=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    # And a run in which all can be told succeeds.
    make_card(project, claims=PASSES)
    result = run("--sdbench-inconclusive=xfail")
    result.assert_outcomes(passed=1, skipped=3)
    assert result.ret == pytest.ExitCode.OK


@ALONE_OR_WORKERS
def test_it_may_be_expected_and_the_run_still_does_not_succeed(
    run: Run, pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    result = run("--sdbench-inconclusive=xfail", "-rx", *workers)
    result.assert_outcomes(xfailed=1, skipped=3)
    assert result.ret == UNTOLD == 6
    result.stdout.fnmatch_lines(["XFAIL *inconclusive: IS*"])
    skipped = case(pytester).find("skipped")
    assert skipped is not None  # a case without a child is one that passed
    assert "cannot tell" in str(skipped.get("message"))
    assert report(pytester)["summary"]["inconclusive"] == 1


def test_without_expected_failures_it_fails_again(run: Run) -> None:
    result = run("--sdbench-inconclusive=xfail", "--runxfail")
    result.assert_outcomes(failed=1, skipped=3)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["inconclusive: IS*cannot tell*"])


def test_the_ini_file_decides_for_a_project(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nsdbench_inconclusive = xfail\n")
    assert run().ret == UNTOLD
    assert run("--sdbench-inconclusive=fail").ret == pytest.ExitCode.TESTS_FAILED
    asked = run("--sdbench-inconclusive=pass")
    pytester.makeini("[pytest]\nsdbench_inconclusive = pass\n")
    for result, name in ((asked, "argument --sdbench-inconclusive"), (run(), "sdbench_inconclusive")):
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert f"{name}: found 'pass'; give one of fail, xfail" in result.stderr.str()


@pytest.mark.slow
@ALONE_OR_WORKERS
def test_a_candidate_that_is_compared_with_nothing_is_no_success(
    run: Run, pytester: pytest.Pytester, pristine_checkpoint: Path, workers: tuple[str, ...]
) -> None:
    words = ("--sdbench-store=none", "--sdbench-max-images=1", *workers)
    result = run(*words)
    result.assert_outcomes(skipped=4)
    assert result.ret == pytest.ExitCode.OK
    result = run(*words, f"--sdbench-weights=mini={pristine_checkpoint}")
    result.assert_outcomes(skipped=4)
    assert result.ret == UNTOLD
    result.stdout.fnmatch_lines(["*no claim of mini was compared with the checkpoint that replaces its own*"])
    # Asked for so few images, it compares with nothing and says so beforehand.
    few = run(*words, f"--sdbench-weights=mini={pristine_checkpoint}", "--sdbench-samples=66")
    assert few.ret == pytest.ExitCode.OK
