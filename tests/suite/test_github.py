"""A run on GitHub says what came of it once, and none does elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_sdbench.base.paths import reference
from pytest_sdbench.report.annotations import annotations_of
from pytest_sdbench.report.results import Row
from pytest_sdbench.suite.github import GithubReport
from tests.report.test_github import commands


def run_of(how: str = "auto", **config: Any) -> Any:
    """Return what the plugin asks a run for."""
    known = SimpleNamespace(**{"option": SimpleNamespace(collectonly=False)} | config)
    settings = SimpleNamespace(github=how, report=(), inconclusive="fail")
    return SimpleNamespace(
        config=known, settings=settings, rows=[], cards=(), files={}, written=[], replaced=dict
    )


@pytest.mark.parametrize(
    ("run", "environment", "shown"),
    [
        (run_of(), {"GITHUB_ACTIONS": "true"}, True),
        (run_of(), {}, False),
        (run_of(), {"GITHUB_ACTIONS": "false"}, False),
        (run_of("off"), {"GITHUB_ACTIONS": "true"}, False),
        (run_of(workerinput={}), {"GITHUB_ACTIONS": "true"}, False),
        (run_of(option=SimpleNamespace(collectonly=True)), {"GITHUB_ACTIONS": "true"}, False),
    ],
)
def test_only_the_controller_of_a_run_on_github_says_something(
    run: Any, environment: dict[str, str], shown: bool
) -> None:
    assert (GithubReport.of_run(run, environment) is not None) == shown


@pytest.mark.parametrize("fault", ["a folder", "full"])
def test_a_summary_that_cannot_be_written_is_told(tmp_path: Path, fault: str) -> None:
    place, run = tmp_path / "summary", run_of()
    if fault == "full":
        place.write_bytes(b"x" * (1 << 20))
    else:
        place.mkdir()
    GithubReport(run, place, None).pytest_sessionfinish(SimpleNamespace(exitstatus=0))
    assert "summary was NOT written" in run.written[0]
    assert fault == "a folder" or place.stat().st_size == 1 << 20


def test_a_summary_is_apart_from_what_is_before_it(tmp_path: Path) -> None:
    place = tmp_path / "summary"
    for _ in range(2):
        GithubReport(run_of(), place, None).pytest_sessionfinish(SimpleNamespace(exitstatus=5))
    first, second = re.split(r"^### ", place.read_text("utf-8"), flags=re.MULTILINE)[1:]
    assert first == second + "\n"


def test_a_place_begins_at_the_checkout_that_lies_in_the_workspace(tmp_path: Path) -> None:
    card = tmp_path / "models" / "cards" / "mine.md"
    (tmp_path / "models" / ".git").mkdir(parents=True)
    card.parent.mkdir()
    card.write_text("---\nsdbench: {checkpoint: ./}\n---\n")
    row = Row("id", "mine", "size", "unet", verdict="fail", reason="fell")
    (said,) = annotations_of([row], [], {"id": card}, tmp_path)
    assert "file=cards/mine.md," in said.command


@pytest.mark.slow
def test_what_fell_is_on_the_line_of_the_card_and_in_the_summary(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (reference() / "cards" / "scenes-tiny.md").read_text(encoding="utf-8")
    card = pytester.mkdir("cards") / "mine.md"
    card.write_bytes(
        text.replace("1875512", "1875513").replace("2722203", "2722204").replace("\n", "\r\n").encode()
    )
    line = next(at for at, each in enumerate(card.read_text("utf-8").split("\n"), 1) if "1875513" in each)
    summary = pytester.path / "summary.md"
    summary.write_text("Of another one.\n", encoding="utf-8")
    # A run inside a worker of this run is none itself.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    for name, value in (("ACTIONS", "true"), ("STEP_SUMMARY", summary), ("WORKSPACE", pytester.path)):
        monkeypatch.setenv(f"GITHUB_{name}", str(value))
    result = pytester.runpytest("--sdbench", "cards/mine.md", "-m", "size", "-n", "1")
    assert result.ret == 1
    (level, properties, data), (_, other, _) = commands(result.stdout.str())
    assert level == "error"
    title = "mine: Parameters: U-Net fell"
    assert properties == {"file": "cards/mine.md", "line": str(line), "title": title}
    assert "1,875,512" in data
    assert int(other["line"]) == line + 3
    said = summary.read_text(encoding="utf-8")
    assert said.startswith("Of another one.\n")
    assert said.count("### ❌ Do not release: 2 of 4 claims fell") == 1
