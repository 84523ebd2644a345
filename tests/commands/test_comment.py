"""A comment says what a run found, or how it ended, and where to read more."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_sdbench.commands.main import main
from pytest_sdbench.report.html.run import Run
from pytest_sdbench.report.results import results_json
from pytest_sdbench.report.summary import COMMENT
from pytest_sdbench.report.write import write_reports
from tests.report.pages import score


def test_a_comment_has_the_verdict_and_the_links(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.json"
    results.write_text(results_json([score("ssim", 3.0)], {}), encoding="utf-8")
    links = ["Report=https://x.example/a?b=c", "Nothing=", "Script=javascript:alert(1)"]
    assert main(["comment", str(results), *(f"--link={link}" for link in links)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("### ❌ Do not release: 1 of 1 claim fell\n")
    assert said.endswith("[Report](https://x.example/a?b=c) · Script\n")


def test_a_comment_names_the_checkpoint_that_stood_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row, results = score("ssim", 3.0), tmp_path / "results.json"
    write_reports([results], [row], [], Run(weights={row.card: "release-candidate"}))
    assert main(["comment", str(results)]) == 0
    assert f"**{row.card}** on `release-candidate`" in capsys.readouterr().out


@pytest.mark.parametrize("link", ["https://ci.example/x?id=3", "report"])
def test_a_link_without_a_name_is_refused(
    link: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["comment", str(tmp_path / "results.json"), "--link", link])
    assert ended.value.code == 2
    assert "give NAME=URL" in capsys.readouterr().err


def test_a_comment_leaves_room_for_the_sign_by_which_it_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.json"
    worst = [{"index": 0, "prompt": "long " * 30_000, "value": 0.5, "reference": None}]
    results.write_text(results_json([score("ssim", 3.0, extra={"worst": worst})], {}), encoding="utf-8")
    assert main(["comment", str(results)]) == 0
    assert 60_000 < len(f"<!-- pytest-sdbench {'a' * 64} -->\n{capsys.readouterr().out}") < COMMENT


def test_a_run_without_results_is_told_by_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["comment", str(tmp_path / "none.json"), "--status", "5"]) == 0
    assert "Cannot tell: pytest ended with status 5 (no test was collected)" in capsys.readouterr().out
    assert main(["comment", str(tmp_path / "none.json")]) == 2
    assert "--sdbench-report results.json" in capsys.readouterr().err
