"""The action judges a checkpoint as its file says, and GitHub shows what came of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_sdbench.base.paths import reference
from pytest_sdbench.report.results import results_json
from tests.ci.runner import PULL_REQUEST, ROOT, Runner, filled, load
from tests.project import FAILS, make_project
from tests.report.pages import images_of, row, score

ACTION = load(ROOT / "action.yml")
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}
WORKFLOWS = sorted((ROOT / "docs" / "ci").glob("*.yml"))
COMMENT = "Comment on the pull request"
EMBEDDED = '-m "size or compute" -p no:cacheprovider'
"""What of an embedded card takes a few seconds."""

needs_jq = pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq: apt-get install jq")


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    """A machine of GitHub on which this package is installed."""
    return Runner(tmp_path, {"PYTHONPATH": str(ROOT)})


@pytest.fixture
def embedded(runner: Runner) -> Runner:
    """One with an embedded card and its checkpoint, under the names that the documentation has."""
    (runner.workspace / "cards").mkdir()
    shutil.copy(reference() / "cards" / "scenes-tiny.md", runner.workspace / "cards" / "my-model.md")
    shutil.copytree(reference() / "checkpoints" / "scenes-tiny", runner.workspace / "release-candidate")
    runner.environment["PYTEST_ADDOPTS"] = EMBEDDED
    return runner


@pytest.fixture(scope="session")
def offline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What makes pip install this package from here into a folder, on which Python then runs."""
    pytest.importorskip("hatchling", reason="needs hatchling: pip install hatchling")
    target = tmp_path_factory.mktemp("installed")
    return {
        # A switch that pip negates when it reads it from a variable: 0 is without isolation.
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(target / "dist"),
        "PIP_TARGET": str(target / "site"),
        "PIP_UPGRADE": "1",
        "PYTHONPATH": os.pathsep.join([str(target / "site"), os.environ.get("PYTHONPATH", "")]),
    }


@pytest.mark.parametrize("path", [ROOT / "action.yml", *WORKFLOWS], ids=lambda path: path.name)
def test_files_of_ci_are_valid_by_their_schemas(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checker = pytest.importorskip("check_jsonschema", reason="pip install check-jsonschema")
    kind = "gitlab-ci" if "gitlab" in path.name else "github-workflows"
    words = ["--builtin-schema", f"vendor.{'github-actions' if path.parent == ROOT else kind}", str(path)]
    with pytest.raises(SystemExit) as ended:
        checker.main([*words, *(["--data-transform", "gitlab-ci"] if kind == "gitlab-ci" else [])])
    assert ended.value.code == 0, capsys.readouterr().out


def test_no_value_becomes_a_part_of_a_script_and_every_action_is_pinned() -> None:
    for step in STEPS.values():
        assert "${{" not in step.get("run", "")
        # The bash of macOS is 3.2.
        assert not re.search(r"mapfile|readarray|declare -[An]|\$\{\w+[,^@]", step.get("run", ""))
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step.get("uses", f"x@{'0' * 40}"))
        # An output is read line by line: what is given by others is no part of a line of its own making.
        assert "run" not in step or step["shell"] == "bash"
    assert {"card", "weights", "store", "budget", "options", "name", "comment"} == ACTION["inputs"].keys()


@needs_jq
@pytest.mark.slow
def test_a_fallen_claim_is_the_status_of_the_job_and_shown_where_people_look(
    runner: Runner, pristine_checkpoint: Path
) -> None:
    make_project(runner.workspace, pristine_checkpoint, claims=FAILS)
    shutil.copytree(pristine_checkpoint, runner.workspace / "release-candidate")
    inputs = {"card": "cards/mini.md", "weights": "./release-candidate", "options": "-k 'clip_score'"}
    inputs |= {"budget": "500", "name": "mini-gate"}
    assert runner.action(**inputs) == 1
    log = runner.step("Run the claims of the card").log
    lines = (runner.workspace / "cards" / "mini.md").read_text(encoding="utf-8").splitlines()
    line = next(at for at, text in enumerate(lines, 1) if re.search(r"value: 0\.99", text))
    assert f"::error file=cards/mini.md,line={line},title=mini%3A CLIP score" in log
    assert sorted(file.name for file in (runner.artifacts / "mini-gate").iterdir()) == [
        *("junit.xml", "mini-gate.html", "results.json", "results.md"),
    ]
    assert (runner.artifacts / "mini-gate.html").stat().st_size > 20_000
    (comment,) = runner.comments
    for said in (runner.summary, comment["body"]):
        assert "### ❌ Do not release: 1 of " in said
        assert re.search(r"\| ✕ +\| \*\*CLIP score", said)
        assert re.search(r"\*\*Worst picture:\*\* image \d+, “.+”: CLIP score", said)
        assert "/artifacts/mini-gate.html)" in said
    assert comment["body"].startswith("<!-- pytest-sdbench mini-gate -->\n")
    assert "[Log of 0123456](https://github.com/owner/models/actions/runs/42)" in comment["body"]
    (key,) = runner.caches
    assert key.startswith("sdbench-store/mini-gate/")

    # A later run on another machine draws nothing again, keeps nothing twice, and has no second comment.
    shutil.rmtree(runner.workspace / ".sdbench")
    assert runner.action(**inputs) == 1
    results = json.loads((runner.artifacts / "mini-gate" / "results.json").read_text(encoding="utf-8"))
    assert {row["extra"]["images_made"] for row in results["results"] if row["test"] == "quality"} == {0}
    assert len(runner.caches) == len(runner.comments) == 1


@pytest.fixture
def judged(runner: Runner) -> dict:
    """What the step of the comment knows after a run in which a claim fell."""
    folder = runner.temporary / "sdbench.1"
    folder.mkdir()
    rows = [score("ssim", 3.0, extra={"worst": images_of([17])}), row("size", name="unet", measured=1.0)]
    (folder / "results.json").write_text(results_json(rows, {}), encoding="utf-8")
    outputs = {
        "python": "python",
        "folder": str(folder),
        "status": "1",
        "artifact-url": "https://x.example/1",
    }
    return {key: {"outputs": dict(outputs)} for key in ("install", "gate", "page", "results")}


def comment(runner: Runner, steps: dict, name: str = "pytest-sdbench") -> None:
    """Run the step of the comment alone."""
    event = {"pull_request": runner.pull_request}
    github = {"token": "a-token", "repository": "owner/models", "event": event}
    context = {"inputs": {"name": name}, "steps": steps, "github": github}
    runner.steps.append(runner._step(STEPS[COMMENT], context, {}))
    assert runner.steps[-1].status == 0, runner.steps[-1].log


@needs_jq
def test_one_comment_is_kept_up_to_date_and_no_other_one_is_touched(runner: Runner, judged: dict) -> None:
    forged = {
        "id": 5,
        "user": {"login": "somebody"},
        "body": "<!-- pytest-sdbench pytest-sdbench --> Release",
    }
    (runner.home / "comments.json").write_text(json.dumps([forged]), encoding="utf-8")
    comment(runner, judged)
    comment(runner, judged, "another")
    first = [each["body"] for each in runner.comments]
    judged["gate"]["outputs"]["status"] = "4"
    (runner.temporary / "sdbench.1" / "results.json").unlink()
    comment(runner, judged)
    now = [each["body"] for each in runner.comments]
    assert len(first) == len(now) == 3
    assert now[0] == forged["body"]
    assert now[2] == first[2]
    assert "Do not release: 1 of 2 claims fell" in first[1]
    assert "image 17, “prompt 17”" in first[1]
    assert "Cannot tell: pytest ended with status 4" in now[1]
    assert "fell" not in now[1]


@needs_jq
@pytest.mark.parametrize(
    ("changes", "fork", "why"),
    [
        (
            {"GH_REFUSES": "all"},
            False,
            "did not list its comments. Give the job 'permissions: pull-requests: write'",
        ),
        ({"GH_REFUSES": "POST"}, False, "GitHub refused it. Give the job"),
        ({}, True, "it comes from a fork"),
    ],
)
def test_where_no_comment_can_be_written_the_summary_says_why(
    runner: Runner, judged: dict, changes: dict, fork: bool, why: str
) -> None:
    runner.environment |= changes
    if fork:
        head = PULL_REQUEST["head"] | {"repo": {"full_name": "somebody/models"}}
        runner.pull_request = PULL_REQUEST | {"head": head}
    comment(runner, judged)
    assert runner.comments == []
    assert runner.summary.startswith("\nNo comment was written on the pull request: ")
    assert why in runner.summary


@pytest.mark.parametrize("name", ["", "a b", "../up", "a\nkey=value", "-->", "a" * 65])
def test_a_name_that_could_be_more_than_a_name_is_refused(runner: Runner, name: str) -> None:
    assert runner.action(name=name, card="x.md", comment="false") == 4
    assert "::error title=pytest-sdbench::the input name" in runner.steps[0].log


WORDS = "$(touch pwned) `touch pwned`; touch pwned #\"'*"


def recorder(runner: Runner) -> Path:
    """Return a Python that writes down what pytest is called with, a word a line."""
    record = '[[ $1 == - ]] && exec python "$@"\nprintf "%s\\n" "$@" > said\n'
    return runner.program("recorder", f"#!/bin/bash\n{record}")


def called(runner: Runner, inputs: dict[str, str], **environment: str) -> list[str]:
    """Return what the action calls pytest with."""
    known = {name: each.get("default", "") for name, each in ACTION["inputs"].items()}
    steps = {"install": {"outputs": {"python": str(recorder(runner)), "store": ".sdbench"}}}
    context = {"inputs": known | {"card": "a.md"} | inputs, "steps": steps, "github": {}}
    ran = runner._step(STEPS["Run the claims of the card"], context, environment)
    assert ran.status == 0, ran.log
    return (runner.workspace / "said").read_text(encoding="utf-8").splitlines()[3:]


def test_options_are_split_as_a_shell_does_and_paths_of_windows_stay_whole(runner: Runner) -> None:
    head = ["a.md", "--sdbench-store=.sdbench"]
    assert called(runner, {"options": '-m "" -q #1'})[: len(head) + 4] == [*head, "-m", "", "-q", "#1"]
    windows = called(runner, {"options": r'--sdbench-data "D:\my data"'}, RUNNER_OS="Windows")
    assert windows[: len(head) + 2] == [*head, "--sdbench-data", r"D:\my data"]


def test_a_candidate_that_is_not_there_is_no_card_for_an_equals_sign_in_its_path(runner: Runner) -> None:
    assert "--sdbench-weights=a.md=./runs/lr=1e-4/x" in called(runner, {"weights": "./runs/lr=1e-4/x"})
    assert "--sdbench-weights=b.md=./runs/x" in called(runner, {"weights": "b.md=./runs/x"})


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"card": "\n"}, "the input card is empty"),
        ({"card": "a.md", "options": "-k \"don't"}, "the input options: No closing quotation"),
    ],
)
def test_an_input_that_means_nothing_is_told_and_judges_nothing(
    runner: Runner, inputs: dict[str, str], says: str
) -> None:
    assert runner.action(**inputs) == 4
    assert any(says in step.log for step in runner.steps)


@pytest.mark.parametrize(("store", "found"), [("", "workspace/evidence"), ("~/kept", "kept")])
def test_the_store_is_that_of_the_project_or_of_the_input(runner: Runner, store: str, found: str) -> None:
    (runner.workspace / "pytest.ini").write_text("[pytest]\nsdbench_store = evidence\n")
    context = {"inputs": {"name": "gate", "card": "a.md", "store": store}, "steps": {}, "github": {}}
    ran = runner._step(STEPS["Install pytest-sdbench"], context, {})
    assert Path(ran.outputs["store"]) == runner.home / found


def test_what_is_given_is_words_of_a_command_and_nothing_more(runner: Runner) -> None:
    python = recorder(runner)
    options = "-m 'size or compute' --maxfail=1"
    inputs = {name: each.get("default", "") for name, each in ACTION["inputs"].items()}
    inputs |= {"card": f"{WORDS}\nsecond.md\n", "budget": WORDS, "options": options}
    for weights, words in ((f"{WORDS}", [f"{WORDS}={WORDS}"]), ("a=b\nc=d\n", ["a=b", "c=d"]), ("", [])):
        steps = {"install": {"outputs": {"python": str(python), "store": WORDS}}}
        context = {"inputs": inputs | {"weights": weights}, "steps": steps, "github": {}}
        ran = runner._step(STEPS["Run the claims of the card"], context, {})
        assert ran.status == 0, ran.log
        said = (runner.workspace / "said").read_text(encoding="utf-8").splitlines()
        given = [f"--sdbench-weights={each}" for each in words]
        head = ["-m", "pytest", "--sdbench", WORDS, "second.md", *given]
        head += [
            f"--sdbench-store={WORDS}",
            "--sdbench-budget",
            WORDS,
            "-m",
            "size or compute",
            "--maxfail=1",
        ]
        assert said[: len(head)] == head
    assert not list(runner.home.rglob("pwned"))


def test_a_bucket_is_not_cached() -> None:
    for store, cached in ((".sdbench", True), ("s3://bucket/store", False)):
        steps = {"install": {"outputs": {"store": store}}, "gate": {"outputs": {"folder": "x"}}}
        context = {"inputs": {}, "steps": steps, "github": {}}
        for name in ("Fetch what earlier runs drew", "Name what was drawn"):
            condition = STEPS[name]["if"].removeprefix("${{").removesuffix("}}")
            assert filled(f"${{{{{condition}}}}}", context) == str(cached).lower()


@needs_jq
@pytest.mark.slow
def test_the_workflow_of_the_documentation_installs_and_judges(
    embedded: Runner, offline: dict[str, str]
) -> None:
    embedded.environment |= offline
    (embedded.programs / "python").unlink()
    assert embedded.workflow(ROOT / "docs" / "ci" / "github.yml") == 0, embedded.steps[-1].log
    log = embedded.step("Run the claims of the card").log
    assert "5 passed" in log
    (said,) = embedded.comments
    assert "Cannot tell: no score was measured" in said["body"] or "no score was compared" in said["body"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["github-by-hand.yml", "gitlab.yml"])
def test_the_other_examples_run_as_they_are(embedded: Runner, offline: dict[str, str], name: str) -> None:
    dist = Path(offline["PIP_FIND_LINKS"])
    if not dist.is_dir():
        words = ["wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", str(dist), str(ROOT)]
        subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    embedded.environment |= offline
    (embedded.programs / "python").unlink()
    path = ROOT / "docs" / "ci" / name
    status = embedded.gitlab(path, "gate") if name == "gitlab.yml" else embedded.workflow(path)
    assert status == 0
    for written in ("report.html", "results.json", "junit.xml"):
        assert (embedded.workspace / written).stat().st_size > 0
