"""A store behind a URL is given as a folder is: by option, by ini file, and to the commands beside pytest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_sdbench.commands.main import main
from tests.project import PASSES, make_project
from tests.store.remote import s3_server


@pytest.fixture(autouse=True)
def project(pytester: pytest.Pytester, pristine_checkpoint: Path) -> None:
    make_project(pytester.path, pristine_checkpoint, claims=PASSES)


@pytest.mark.parametrize("how", ["option", "ini"])
def test_a_url_is_not_taken_for_a_path(how: str, pytester: pytest.Pytester) -> None:
    url = "s3://bucket/folder"
    pytester.makeini(f"[pytest]\nsdbench_store = {url if how == 'ini' else 'elsewhere'}")
    words = ("--sdbench-store", url) if how == "option" else ()
    result = pytester.runpytest("--sdbench", "--collect-only", "cards", *words)
    result.stdout.fnmatch_lines([f"sdbench: *, store {url}, *"])


def test_a_file_url_is_a_path(pytester: pytest.Pytester) -> None:
    words = ("--sdbench-store", f"file://{pytester.path}/folder")
    result = pytester.runpytest("--sdbench", "--collect-only", "cards", *words)
    result.stdout.fnmatch_lines(["sdbench: *, store folder, *"])


def test_secrets_of_a_url_are_not_shown(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest(
        "--sdbench", "--collect-only", "cards", "--sdbench-store", "sftp://me:hush@host/folder"
    )
    result.stdout.fnmatch_lines(["sdbench: *, store sftp://***@host/folder, *"])
    result.stdout.no_fnmatch_line("*hush*")


@pytest.mark.slow
def test_a_run_on_s3_makes_no_image_twice(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SDBENCH_CACHE", str(pytester.path / "cache"))
    with s3_server() as server:
        store = f"{server.url}/store"
        words = ("--sdbench", "cards", "-k", "clip_score", "--sdbench-store", store, "--sdbench-samples", "2")
        for made in (2, 0):
            pytester.runpytest(*words, "--sdbench-report=r.json").assert_outcomes(skipped=1)
            (row,) = json.loads((pytester.path / "r.json").read_text(encoding="utf-8"))["results"]
            assert (row["n"], row["extra"]["images_made"]) == (2, made)
        assert main(["store", "ls", "--store", store]) == 0
        assert " 2 " in capsys.readouterr().out
