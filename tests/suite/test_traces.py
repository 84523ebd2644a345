"""What a run leaves behind tells no secrets and no paths of a user; what cannot be written is no success."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest

from pytest_sdbench.base import environment
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.job import Extras, open_evidence
from pytest_sdbench.models.checkpoint import Checkpoint
from pytest_sdbench.protocols.load import load_protocol
from tests.project import make_card, make_project, make_protocol

SECRETS = ("hush", "hu/sh", "alices-host")


def test_nothing_that_is_kept_tells_secrets_or_paths(pytester, pristine_checkpoint, monkeypatch):
    card = make_project(pytester.path, pristine_checkpoint, claims={"clip_score": 0.3})
    candidate = shutil.copytree(card.parent / "mini-sd", pytester.path / "elsewhere" / "candidate")
    monkeypatch.setattr(sys, "argv", ["pytest", "--token=hush", f"--cov={pytester.path}"])
    monkeypatch.setattr(environment.platform, "node", lambda: "alices-host")
    store = "memory://me:hu/sh@traces?token=hush"
    result = pytester.runpytest(
        *("--sdbench", "cards", "-k", "clip_score", "--sdbench-samples=2", f"--sdbench-store={store}"),
        *(f"--sdbench-weights=mini={candidate}", "--sdbench-report=r.json", "--sdbench-report=r.md"),
        "--junitxml=r.xml",
    )
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["sdbench: *store memory://***@traces, *mini = elsewhere/candidate*"])
    memory = fsspec.filesystem("memory")
    kept = {name: memory.cat(name).decode() for name in memory.find("/") if name.endswith(".json")}
    kept |= {name: (pytester.path / name).read_text(encoding="utf-8") for name in ("r.json", "r.md", "r.xml")}
    kept["r.xml"] = kept["r.xml"].replace('hostname="alices-host"', "")  # pytest's own
    words = [*SECRETS, str(pytester.path)]
    assert [(name, word) for name, text in kept.items() for word in words if word in text] == []
    (manifest,) = [json.loads(text) for name, text in kept.items() if "manifest" in name]
    assert manifest["checkpoint_spec"] == "elsewhere/candidate"
    assert manifest["options"] == {"data": None, "device": "cpu", "dtype": None}
    assert "command" not in manifest


def test_folders_elsewhere_are_kept_by_their_names_alone(pristine_checkpoint, tmp_path):
    spec = "base: base: /home/Jane Doe/sd, unet: ./near by/unet, lora: /data/Jane Doe/my lora"
    checkpoint, protocol = Checkpoint(spec, pristine_checkpoint), load_protocol("scenes-quick")
    evidence = open_evidence(Workspace(tmp_path), checkpoint, protocol, extras=Extras(columns={}))
    assert evidence.manifest["checkpoint_spec"] == "base: base: sd, unet: ./near by/unet, lora: my lora"


@pytest.fixture
def card(pytester: pytest.Pytester) -> Path:
    make_protocol(pytester.path / "cards" / "protocols" / "mini.yaml")
    about = {"claims": {}, "checkpoint": "nobody/nothing", "architecture": "bk-sdm-tiny"}
    return make_card(pytester.path / "cards" / "mini.md", **about)


@pytest.mark.parametrize("report", ["r.txt", "cards/mini.md/r.json", "cards.json", "cards.md/"])
def test_a_report_that_cannot_be_written_is_told_before_the_run(pytester, card, report):
    (pytester.path / "cards.json").mkdir()
    (pytester.path / "cards.md").mkdir()
    result = pytester.runpytest("--sdbench", "cards", "-m", "size", f"--sdbench-report={report}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--sdbench-report" in result.stderr.str()


def test_a_report_that_cannot_be_written_at_the_end_fails_the_run(pytester, card):
    """A folder that is made on the way; one for a report is made as well."""
    pytester.makeconftest(
        "import pathlib\ndef pytest_runtest_teardown():\n    pathlib.Path('r.json').mkdir(exist_ok=True)\n"
    )
    long = f"{'x' * 300}.json"
    reports = ("--sdbench-report=new/r.md", "--sdbench-report=r.json", f"--sdbench-report={long}")
    result = pytester.runpytest("--sdbench", "cards", "-m", "size", *reports)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["sdbench: * new/r.md", "sdbench: results NOT written to r.json: *"])
    result.stdout.fnmatch_lines(["sdbench: results NOT written to x*: *File name too long*"])


def test_an_update_that_finds_no_images_fails_the_run(pytester, pristine_checkpoint):
    """The store is emptied when all is judged."""
    make_project(pytester.path, pristine_checkpoint, claims={"clip_score": 0.3}, protocols=[])
    make_protocol(pytester.path / "cards" / "protocols" / "mini.yaml", n=2, margins={"clip_score": 0.9})
    pytester.makeconftest(
        "import shutil\ndef pytest_runtest_teardown():\n    shutil.rmtree('.sdbench', ignore_errors=True)\n"
    )
    result = pytester.runpytest("--sdbench", "cards", "-k", "clip_score", "--sdbench-update")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["sdbench: images of mini.md under mini not recorded: *not in the store*"])


@pytest.mark.slow
def test_a_record_that_cannot_be_written_fails_the_run(pytester, pristine_checkpoint, monkeypatch):
    card = make_project(pytester.path, pristine_checkpoint)
    text = card.read_text(encoding="utf-8").replace("records: []", "records: *none")
    card.write_text(text.replace("---\n", "---\ntags: &none []\n", 1), encoding="utf-8")
    # What each image adds is no news either.
    monkeypatch.setattr("pytest_sdbench.suite.recording.write_evidence_of", lambda *_, **__: [])
    result = pytester.runpytest("--sdbench", "cards", "-k", "inception_score", "--sdbench-update")
    assert result.parseoutcomes().get("failed") is None
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["sdbench: not recorded: *cannot be edited in place*"])


@pytest.mark.parametrize("about", [{"checkpoint": "nobody/nothing"}, {"checkpoint": "./nowhere"}])
def test_a_download_is_offered_where_the_hub_would_answer(pytester, card, about):
    make_card(card, claims={}, **about)
    result = pytester.runpytest("--sdbench", "cards", "-m", "size or quality", "-rs")
    assert ("--sdbench-download" in result.stdout.str()) is ("nobody" in about["checkpoint"])


SLOW = {"n": 4096, "metrics": {"clip_score": {"model": "local:scenes-clip"}}, "margins": {"clip_score": 0.2}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["-m", "pytest_sdbench", "sample", "cards/mini.md", "--store=store"], 130),
        (["-m", "pytest", "--sdbench", "cards", "-k", "clip_score", "--sdbench-store=store"], 2),
    ],
)
def test_an_interrupted_run_ends_in_a_line_and_with_the_usual_status(
    pytester, pristine_checkpoint, words, status
):
    card = make_project(pytester.path, pristine_checkpoint, claims={"clip_score": 0.3})
    make_protocol(card.parent / "protocols" / "mini.yaml", **SLOW)
    words = [*words, "--sdbench-max-images=all"] if "pytest" in words else words
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    # What a shell starts in the background ignores this signal, and so would all that it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command, pipe = [sys.executable, *words], subprocess.PIPE
        run = subprocess.Popen(command, text=True, stdout=pipe, stderr=subprocess.STDOUT, env=variables)
    finally:
        signal.signal(signal.SIGINT, before)
    while not list(pytester.path.glob("store/*/shard-*")) and run.poll() is None:
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    told, _ = run.communicate(timeout=600)
    assert run.returncode == status, told
    assert "Traceback" not in told
    assert "interrupted" in told.lower() or "KeyboardInterrupt" in told
