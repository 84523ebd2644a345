"""Every claim of a run has a row, whoever ended its test; no run releases what it did not look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.project import MARGINS, PASSES, make_card, make_project


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def project(pytester: pytest.Pytester, pristine_checkpoint: Path) -> Path:
    return make_project(pytester.path, pristine_checkpoint, claims=PASSES | {"kid": 0.3})


def run(pytester: pytest.Pytester, store: Path, *words: str) -> tuple[pytest.RunResult, dict[str, Any]]:
    begin = pytester.runpytest_subprocess if "-n" in words else pytester.runpytest
    place = (f"--sdbench-store={store}", "--sdbench-report=r.json")
    result = begin("--sdbench", *place, *words)
    rows = json.loads((pytester.path / "r.json").read_text(encoding="utf-8"))["results"]
    return result, {row["node_id"]: row for row in rows}


SKIPS = """
import pytest

def pytest_collection_modifyitems(items):
    for item in items:
        if "kid" in item.name:
            item.add_marker(pytest.mark.skip(reason="too slow for us"))
"""
FAILS = """
import pytest

@pytest.fixture
def sdbench_judge():
    pytest.fail("no licence for this network")
"""
DIES = """
import os, pytest

def pytest_runtest_call(item):
    if "kid" in item.name:
        os._exit(9)
"""


def test_a_claim_that_pytest_skips_is_not_measured(
    pytester: pytest.Pytester, project: Path, store: Path
) -> None:
    pytester.makeconftest(SKIPS)
    result, rows = run(pytester, store, "cards", "-m", "quality")
    skipped = rows["cards/mini.md::test_quality[mini-kid]"]
    assert (skipped["verdict"], skipped["reason"]) == ("unavailable", "too slow for us")
    result.stdout.fnmatch_lines(["Cannot tell: 1 claim holds, and * not measured"])


def test_a_claim_that_pytest_fails_is_an_error(pytester: pytest.Pytester, project: Path, store: Path) -> None:
    pytester.makeconftest(FAILS)
    _, rows = run(pytester, store, "cards", "-m", "quality")
    failed = rows["cards/mini.md::test_quality[mini-kid]"]
    assert (failed["verdict"], failed["reason"]) == ("error", "no licence for this network")


@pytest.mark.slow
def test_a_claim_over_which_a_worker_dies_is_an_error(
    pytester: pytest.Pytester, project: Path, store: Path
) -> None:
    pytester.makeconftest(DIES)
    result, rows = run(pytester, store, "cards", "-m", "quality", "-n", "1")
    died = rows["cards/mini.md::test_quality[mini-kid]"]
    assert died["verdict"] == "error"
    assert "crashed" in died["reason"]
    result.stdout.fnmatch_lines(["Do not release: *cannot be judged*"])


def test_cards_outside_the_rootdir_have_rows_of_their_own(pytester: pytest.Pytester) -> None:
    files = [make_card(pytester.path / "models" / name / "README.md", claims={}) for name in ("a", "b")]
    root = pytester.mkdir("project")
    (root / "pytest.ini").write_text("[pytest]\n")
    _, rows = run(pytester, root / "store", "-c", str(root / "pytest.ini"), "-m", "size", *map(str, files))
    assert {name.partition("::")[0] for name in rows} == {
        "../models/a/README.md",
        "../models/b/README.md",
    }


def test_the_terminal_and_the_report_tell_the_status_that_a_run_ends_with(
    pytester: pytest.Pytester, project: Path, store: Path
) -> None:
    # A report that cannot be written, and records that changed, are known when all claims have passed.
    make_card(project, claims=PASSES, margins={"mini": MARGINS})
    result, _ = run(pytester, store, "cards", "-m", "quality", "-k", "inception", "--sdbench-update")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["Cannot tell: the claims hold, but pytest ended with status 1 (*"])
