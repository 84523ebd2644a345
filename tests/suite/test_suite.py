"""Whole runs of ``pytest --sdbench`` on a small project: every option, and what a reader finds afterwards."""

from __future__ import annotations

import io
import json
import shutil
import xml.etree.ElementTree as ET
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from pytest_sdbench.cards.card import read_card
from pytest_sdbench.models.counts import unet_macs
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.suite import settings
from tests.project import FAILS, IMAGES, MARGINS, PASSES, make_card, make_project, make_protocol
from tests.tiny_checkpoint import UNET

QUALITY = ("-m", "quality", "--sdbench")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all runs of this module: the same checkpoint's images are made once."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def project(pytester: pytest.Pytester, pristine_checkpoint: Path) -> Path:
    return make_project(pytester.path, pristine_checkpoint, claims=PASSES | FAILS)


@pytest.fixture
def run(pytester: pytest.Pytester, store: Path):
    return lambda *words: pytester.runpytest("--sdbench-store", store, *QUALITY, *words)


@pytest.fixture(scope="module")
def damaged(pristine_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint with noise on every weight of its U-Net."""
    folder = Path(shutil.copytree(pristine_checkpoint, tmp_path_factory.mktemp("damaged") / "tiny-sd"))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    generator = torch.Generator().manual_seed(0)
    weights = load_file(file)
    noisy = {key: value + torch.randn(value.shape, generator=generator) for key, value in weights.items()}
    save_file(noisy, file, metadata={"format": "pt"})
    return folder


def of_5000_images(card: Path) -> None:
    """Let the claims of a card be of another number of images than its protocol's."""
    text = card.read_text(encoding="utf-8")
    assert "type: scenes}" in text
    card.write_text(text.replace("type: scenes}", "type: scenes, args: {num_samples: 5000}}"), "utf-8")


def ratio(largest: float) -> dict[str, dict[str, Any]]:
    """Claim that a call takes at most this share of the baseline's."""
    return {"unet_ratio": {"max": largest, "source": "own record"}}


def rows(path: Path, card: str | None = None) -> dict[str, dict]:
    """Return the rows of a results.json by the test's name, of one card where there are several."""
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["schema_version"] == 1
    wanted = [row for row in content["results"] if card in (None, row["card"])]
    return {row["node_id"].partition("::")[2]: row for row in wanted}


def test_claims_pass_fail_or_have_nothing_to_compare(run, project, pytester):
    result = run("cards", "--junitxml=junit.xml", "--sdbench-report=out/r.md", "--sdbench-report=r.json")
    result.assert_outcomes(passed=1, failed=1, skipped=2)
    text = result.stdout.str()
    assert "CLIP score: claimed 0.9900, measured" in text
    assert "Traceback" not in text
    assert "suite.py" not in text

    found = rows(pytester.path / "r.json")
    passed = found["test_quality[mini-inception_score]"]
    assert (passed["verdict"], passed["n"]) == ("pass", IMAGES)
    assert passed["claimed"] == PASSES["inception_score"]
    assert passed["margin"] == MARGINS["inception_score"]
    assert passed["measured"] >= 1.0
    assert passed["extra"]["wrong_call"] < 0.05
    assert found["test_quality[mini-clip_score]"]["verdict"] == "fail"
    assert found["test_quality[mini-fid]"]["verdict"] == "uncalibrated"
    assert "--sdbench-update" in found["test_quality[mini-fid]"]["reason"]
    table = (pytester.path / "out" / "r.md").read_text(encoding="utf-8")
    assert "0.9900" in table
    assert "fail" in table

    cases = ET.parse(pytester.path / "junit.xml").iter("testcase")
    (case,) = [case for case in cases if case.get("name") == "test_quality[mini-inception_score]"]
    properties = {item.get("name"): item.get("value") for item in case.iter("property")}
    assert properties["sdbench_verdict"] == "pass"
    assert float(properties["sdbench_measured"]) == pytest.approx(passed["measured"])
    # The fallen claim runs alone again.
    run("cards", "--lf").assert_outcomes(failed=1)


def test_protocols_that_differ_in_margins_alone_are_judged_each_by_its_own(run, project, pytester):
    make_protocol(project.parent / "protocols" / "strict.yaml", margins=MARGINS | {"inception_score": 1e-9})
    _, front, body = project.read_text().split("---\n")
    yaml = YAML(typ="safe", pure=True)
    content, text = yaml.load(front), io.StringIO()
    results = content["model-index"][0]["results"]
    results += [deepcopy(results[0]) | {"dataset": results[0]["dataset"] | {"config": "strict"}}]
    yaml.dump(content, text)
    project.write_text(f"---\n{text.getvalue()}---\n{body}")
    run("cards", "-k", "inception_score", "--sdbench-report=r.json")
    found = rows(pytester.path / "r.json")
    assert found["test_quality[mini-inception_score]"]["margin"] == MARGINS["inception_score"]
    assert found["test_quality[strict-inception_score]"]["margin"] == 1e-9


def test_a_test_that_is_run_again_begins_without_the_row_of_the_first_time(run, project, pytester):
    pytester.makeconftest("""
        import pytest
        from _pytest.runner import runtestprotocol

        times = 0

        def pytest_runtest_protocol(item, nextitem):  # as plugins that run failures again do it
            for _ in range(2):
                reports = runtestprotocol(item, nextitem=nextitem, log=False)
            for report in reports:
                item.ihook.pytest_runtest_logreport(report=report)
            return True

        @pytest.fixture(autouse=True)
        def once():
            global times
            times += 1
            if times == 2:
                raise RuntimeError("the second time")
    """)
    run("cards", "-k", "clip_score and mini", "--sdbench-report=r.json")
    (row,) = rows(pytester.path / "r.json").values()
    assert (row["verdict"], row.get("measured")) == ("error", None)
    assert "the second time" in row["reason"]


def test_an_ini_file_that_a_path_after_a_space_hides_is_told(pytester, tmp_path):
    pytester.makepyprojecttoml("[tool.pytest.ini_options]\nsdbench_cards = ['nowhere.md']\n")
    words = ("--sdbench", "--collect-only", "--sdbench-store")
    hidden = pytester.runpytest_subprocess(*words, tmp_path)
    assert hidden.ret == pytest.ExitCode.USAGE_ERROR
    hidden.stderr.re_match_lines([rf".*pyproject.toml is not read: .*Write --sdbench-store={tmp_path}"])
    seen = pytester.runpytest_subprocess(*words[:-1], f"--sdbench-store={tmp_path}")
    assert "nowhere.md" in seen.stderr.str() + seen.stdout.str()
    pytester.path.joinpath("pyproject.toml").unlink()
    assert pytester.runpytest_subprocess(*words, tmp_path).ret == 0


def test_an_ini_file_is_told_that_a_path_in_the_environment_or_beside_a_card_hides(
    pytester, project, monkeypatch
):
    pytester.makeini("[pytest]\n")  # that of the whole repository
    inner = project.parent / "pytest.ini"
    inner.write_text("[pytest]\nsdbench_inconclusive = xfail\n", encoding="utf-8")
    monkeypatch.chdir(project.parent)
    words = ("--sdbench", "--collect-only", "-q")
    (pytester.path / "data").mkdir()
    monkeypatch.setenv("PYTEST_ADDOPTS", "--sdbench-data ../data")
    for more in ((), ("mini.md",)):
        hidden = pytester.runpytest_subprocess(*words, *more)
        assert hidden.ret == pytest.ExitCode.USAGE_ERROR
        hidden.stderr.re_match_lines([r".*cards/pytest.ini is not read: .*Write --sdbench-data=../data"])
    monkeypatch.setenv("PYTEST_ADDOPTS", "--sdbench-data=../data")
    assert pytester.runpytest_subprocess(*words, "mini.md").ret == 0


@pytest.mark.parametrize(("option", "value"), [("device", "cuda0"), ("device", ""), ("data", "")])
def test_a_device_that_there_is_nowhere_is_a_wrong_option(pytester, project, option, value):
    result = pytester.runpytest("--sdbench", "cards", f"--sdbench-{option}={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"--sdbench-{option}" in result.stderr.str()


def test_fewer_samples_and_another_precision_are_shown_and_never_compared(run, project, pytester):
    for words, n, told in (
        (["--sdbench-samples=66"], 66, ("66", str(IMAGES))),
        (["--sdbench-dtype=bfloat16", "--sdbench-samples=2"], 2, ("bfloat16",)),
    ):
        run("cards", *words, "--sdbench-report=r.json").assert_outcomes(skipped=4)
        row = rows(pytester.path / "r.json")["test_quality[mini-clip_score]"]
        assert (row["verdict"], row["n"]) == ("mismatch", n)
        assert row["measured"] is not None
        assert all(word in row["reason"] for word in told)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [pytest.param([], id="alone"), pytest.param(["-n", "2"], id="workers", marks=pytest.mark.slow)]
)
def test_a_score_that_costs_too_many_images_is_skipped_and_says_what_it_would_take(
    pytester, project, tmp_path, words
):
    make_protocol(project.parent / "protocols" / "long.yaml", n=400)
    make_card(project, claims=PASSES, protocols=["mini", "long"])

    def verdicts(*more: str) -> dict[str, tuple[str, str]]:
        report = "--sdbench-report=r.json"
        # Under workers the other threads of this process must not be those of the test's own.
        start = pytester.runpytest_subprocess if words else pytester.runpytest
        start("cards", *QUALITY, "--sdbench-store", tmp_path, report, *words, *more)
        found = rows(pytester.path / "r.json")
        return {name: (row["verdict"], row["reason"]) for name, row in found.items()}

    few = verdicts(f"--sdbench-max-images={IMAGES}")
    assert few["test_quality[mini-inception_score]"][0] == "pass"
    verdict, reason = few["test_quality[long-clip_score]"]
    assert verdict == "unavailable"
    # What the shorter protocol made counts, but for its last, unfinished shard.
    assert reason.startswith("long: 208 of 400 images are not in the store (2 steps each, about ")
    assert f"at most {IMAGES}" in reason
    assert reason.endswith("--sdbench-max-images all")

    every = verdicts("--sdbench-max-images=all")
    assert every["test_quality[long-clip_score]"][0] == "uncalibrated"
    # What is in the store is scored without asking.
    assert verdicts("--sdbench-max-images=0") == every


@pytest.mark.slow
def test_a_cpu_makes_a_thousand_images_unasked(pytester, project, tmp_path, monkeypatch):
    assert settings.UNASKED == 1000
    monkeypatch.setattr(settings, "UNASKED", IMAGES - 1)
    words = ("cards", *QUALITY, "-k", "inception_score", "--sdbench-store", tmp_path)
    pytester.runpytest_inprocess(*words, "--sdbench-device=cpu").assert_outcomes(skipped=1, deselected=10)
    assert not list(tmp_path.iterdir())
    # Who names a number has asked for it.
    result = pytester.runpytest(*words, "--sdbench-samples", str(IMAGES), "--sdbench-device=cpu")
    result.assert_outcomes(passed=1, deselected=10)


def test_weights_put_a_candidate_in_the_place_of_the_checkpoint(run, project, pytester, damaged):
    report = "--sdbench-report=r.json"
    words = ("cards", report, "-k", "clip_score")
    run(*words)
    own = rows(pytester.path / "r.json")["test_quality[mini-clip_score]"]
    for name in ("mini", "cards/mini.md"):
        run(*words, f"--sdbench-weights={name}={damaged}")
        whole = rows(pytester.path / "r.json")["test_quality[mini-clip_score]"]
        assert whole["extra"]["checkpoint_fingerprint"] != own["extra"]["checkpoint_fingerprint"]
        assert whole["measured"] != own["measured"]
    run(*words, f"--sdbench-weights=mini={damaged / 'unet'}")
    unet = rows(pytester.path / "r.json")["test_quality[mini-clip_score]"]
    assert unet["measured"] == whole["measured"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sdbench-weights=nobody=cards"], "'nobody' is none of the cards of this run (mini)"),
        (["--sdbench-weights=mini"], "give CARD=PATH, such as"),
        (["--sdbench-weights=mini=nowhere"], "no such folder"),
        (["--sdbench-weights=mini=cards", "--sdbench-weights=mini=cards"], "mini is given twice"),
        (["--sdbench-samples=0"], "give a whole number of at least 1"),
        (["--sdbench-samples=many"], "give a whole number of at least 1"),
        (["--sdbench-max-images=few"], "give a whole number, all or auto"),
        (["--sdbench-data=nowhere"], "nowhere is not a folder"),
        (["--sdbench-report=results.txt"], "a name that ends in .html"),
        (["--sdbench-dtype=float8"], "found 'float8'; give one of auto, float32"),
        ("sdbench_samples = few", "sdbench_samples: found 'few'"),
        ("sdbench_max_images = few", "sdbench_max_images: found 'few'"),
        ("sdbench_dtype = float8", "sdbench_dtype: found 'float8'"),
    ],
)
def test_an_option_or_ini_line_that_makes_no_sense_ends_the_run_with_a_reason(
    run, project, pytester, words, message
):
    if isinstance(words, str):
        pytester.makeini(f"[pytest]\n{words}\n")
        words = []
    result = run("cards", *words)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in result.stdout.str() + result.stderr.str()


def test_a_mistyped_card_is_told_where_workers_run(pytester, project, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    words = ("--sdbench", "cards", "-m", "size", "-n", "1", "--sdbench-weights=nobody=cards")
    told = pytester.runpytest_subprocess(*words)
    assert told.ret == pytest.ExitCode.USAGE_ERROR
    assert "passed" not in told.stdout.str()
    assert "'nobody' is none of the cards of this run (mini)" in told.stdout.str()
    assert "INTERNALERROR" not in told.stdout.str()


def test_ini_twins_stand_for_the_options(pytester, project, tmp_path):
    pytester.makeini(
        f"""
        [pytest]
        sdbench = true
        sdbench_cards = cards
        sdbench_samples = 2
        sdbench_store = {tmp_path}
        sdbench_report = from-ini.json
        sdbench_device = cpu
        """
    )
    pytester.runpytest("-m", "quality").assert_outcomes(skipped=4)
    assert rows(pytester.path / "from-ini.json")["test_quality[mini-clip_score]"]["n"] == 2
    assert list(tmp_path.iterdir())


def test_a_device_that_is_not_there_skips_with_the_remedy(run, project):
    result = run("cards", "--sdbench-device=cuda:99", "-v")
    result.assert_outcomes(skipped=4)
    result.stdout.fnmatch_lines(["*--sdbench-device cuda:99: *Leave the option out*"])


def test_update_records_what_was_measured_and_fails_that_run_alone(run, project, pytester):
    # The CLIP score of random weights is below zero, which is no reference.
    recorded = set(MARGINS) - {"clip_score"}
    make_card(project, claims=PASSES)
    before = project.read_text(encoding="utf-8").splitlines()
    result = run("cards", "--sdbench-update")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, skipped=3)
    after = project.read_text(encoding="utf-8").splitlines()
    kept = [line for line in before if "records: []" not in line]
    assert [line for line in after if line in before] == kept
    result.stdout.fnmatch_lines(["*+  - protocol: mini*", "*review the diff*"])
    result.stdout.fnmatch_lines(["sdbench: not recorded: *mini: the CLIP score is negative*"])

    card = read_card(project)
    assert {claim.metric for claim in card.claims if claim.kind == "recorded"} == recorded
    record = card.records[0]
    assert record.n == IMAGES
    assert record.date
    assert record.versions["torch"]
    assert ModelCard.load(project).data.eval_results[0].metric_value == PASSES["inception_score"]

    again = run("cards")
    assert again.ret == 0
    again.assert_outcomes(passed=4, skipped=1)
    unchanged = run("cards", "--sdbench-update")
    assert unchanged.ret == 0
    assert project.read_text(encoding="utf-8").splitlines() == after


@pytest.mark.parametrize("reason", ["samples", "weights"])
def test_update_refuses_figures_that_are_not_the_cards_own(run, project, reason, pristine_checkpoint):
    words = {"samples": "--sdbench-samples=66", "weights": f"--sdbench-weights=mini={pristine_checkpoint}"}
    before = project.read_bytes()
    result = run("cards", "--sdbench-update", words[reason])
    assert project.read_bytes() == before
    result.stdout.fnmatch_lines([f"sdbench: not recorded: *inception_score*--sdbench-{reason}*"])


@pytest.mark.slow
def test_update_refuses_figures_of_a_run_that_stopped_early(run, project, pytester, store):
    before = project.read_bytes()
    stopped = run("cards", "-x", "--sdbench-update")
    pytester.makeconftest(
        """
        def pytest_runtest_teardown(item):
            if "clip_score" in item.name:
                raise KeyboardInterrupt
        """
    )
    words = ("--sdbench-store", store, *QUALITY, "cards", "--sdbench-update")
    interrupted = pytester.runpytest_inprocess(*words, no_reraise_ctrlc=True)
    for result, status in (
        (stopped, pytest.ExitCode.TESTS_FAILED),
        (interrupted, pytest.ExitCode.INTERRUPTED),
    ):
        assert result.ret == status
        assert "the run was interrupted" in result.stdout.str()
    assert project.read_bytes() == before


def test_a_recorded_figure_finds_a_regression(run, project, pytester, damaged):
    make_card(project, claims={}, margins={"fid": 0.5})
    run("cards", "--sdbench-update")
    # The CLIP score of random weights is below zero, which is no reference.
    run("cards").assert_outcomes(passed=3, skipped=1)
    words = (f"--sdbench-weights=mini={damaged}", "--sdbench-report=r.json")
    worse = run("cards", *words)
    assert worse.parseoutcomes().get("failed", 0) >= 1
    assert "fail" in {row["verdict"] for row in rows(pytester.path / "r.json").values()}


@pytest.mark.slow
def test_workers_agree_with_a_single_process_and_the_controller_writes(pytester, project, store):
    make_card(project.with_name("second.md"), claims=PASSES)
    words = ("--sdbench", "cards", "--sdbench-store", store, "-m", "quality or speed")
    pytester.runpytest_subprocess(*words, "--sdbench-report=one.json", "-m", "quality")
    result = pytester.runpytest_subprocess(*words, "-n", "2", "--sdbench-report=two.json", "--sdbench-update")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    for card in ("mini", "second"):
        one, two = rows(pytester.path / "one.json", card), rows(pytester.path / "two.json", card)
        assert len(one) == 4
        for name in one:
            for figure in ("measured", "verdict"):
                assert one[name][figure] == two[name][figure]
    assert two["test_speed"]["verdict"] == "unavailable"
    assert "-n" in two["test_speed"]["reason"]
    for card in (project, project.with_name("second.md")):
        assert read_card(card).records
        assert (pytester.path / "evidence" / card.stem / "mini.safetensors").is_file()


@pytest.mark.slow
def test_workers_that_need_the_same_images_share_them(pytester, project, tmp_path):
    make_protocol(project.parent / "protocols" / "long.yaml", n=5 * 64)
    for name in ("one", "two"):
        make_card(project.with_name(f"{name}.md"), claims={}, protocols=["long"])
    words = (
        "--sdbench",
        "cards/one.md",
        "cards/two.md",
        "-m",
        "quality",
        "-n",
        "2",
        f"--sdbench-store={tmp_path}",
    )
    pytester.runpytest_subprocess(*words, "--sdbench-report=r.json")
    found = [rows(pytester.path / "r.json", card) for card in ("one", "two")]
    assert all(row["measured"] is not None for each in found for row in each.values())
    made = sum(max(row["extra"]["images_made"] for row in each.values()) for each in found)
    assert 5 * 64 <= made <= 5 * 64 + 3 * 64, "they meet at the end at most"


def test_a_fixture_of_the_suite_can_be_overridden(run, project, pytester, tmp_path):
    pytester.makeconftest(
        f"""
        import pathlib, pytest

        @pytest.fixture(scope="session")
        def sdbench_store():
            return pathlib.Path({str(tmp_path)!r})
        """
    )
    run("cards", "--sdbench-samples=2").assert_outcomes(skipped=4)
    assert list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "baseline", "must_be", "kept"),
    [
        ("-k psnr", "other", "PNDMScheduler", [40]),
        ("-k psnr", "other", "LCMScheduler", []),
        ("-k psnr", None, "PNDMScheduler", []),
        ("-k size", "other", "PNDMScheduler", []),
        ("-k clip_score", "other", "PNDMScheduler", []),
    ],
)
def test_pictures_are_kept_for_what_the_run_compares(pytester, project, words, baseline, must_be, kept):
    sampling = {"steps": 2, "guidance": 1.0, "resolution": 64, "dtype": "float32"}
    sampling["scheduler"] = {"name": "checkpoint", "must_be": must_be}
    metrics = {"psnr": {"extractor": "psnr"}, "clip_score": {"model": "local:scenes-clip"}}
    make_protocol(
        project.parent / "protocols/mini.yaml", n=40, sampling=sampling, metrics=metrics, margins={}
    )
    make_card(project.with_name("other.md"), claims={}, protocols=[])
    make_card(project, claims={}, **({"baseline": baseline} if baseline else {}))
    pytester.makeconftest(
        "import json, pathlib, pytest\n"
        "@pytest.fixture(scope='session', autouse=True)\n"
        "def told(sdbench_pictures):\n"
        "    pathlib.Path('told.json').write_text(json.dumps(sdbench_pictures))\n"
    )
    result = pytester.runpytest("cards/mini.md", "--sdbench", "--setup-only", *words.split())
    assert result.ret == 0
    assert [*json.loads(Path("told.json").read_text(encoding="utf-8")).values()] == kept


def test_claims_of_an_unstated_protocol_are_shown_and_never_gated(run, project, pytester):
    text = project.read_text(encoding="utf-8").replace("config: mini", "config: unstated")
    project.write_text(text, encoding="utf-8")
    of_5000_images(project)
    run("cards", "-k", "unstated-5k", "--sdbench-report=r.json").assert_outcomes(skipped=2)
    assert {row["verdict"] for row in rows(pytester.path / "r.json").values()} == {"mismatch"}


def test_without_prompts_the_claim_is_skipped_with_the_remedy(run, project):
    make_card(project, claims={"fid": 17.0}, protocol="coco30k-bksdm")
    result = run("cards")
    assert result.parseoutcomes().get("passed") is None
    result.stdout.fnmatch_lines(["*--sdbench-data*"])


@pytest.mark.slow
def test_without_reference_statistics_only_the_distances_are_skipped(pytester, project, tmp_path):
    path = project.parent / "protocols" / "bare.yaml"
    metrics = load_protocol("scenes-quick").model_dump()["metrics"]
    for name in ("fid", "kid"):
        metrics[name]["statistics"] = {"file": "real.npz", "images": 9}
    for spec in metrics.values():
        del spec["metric"]
    make_protocol(path, n=2, metrics=metrics, margins={})
    make_card(project, claims={}, protocol="bare")
    words = ("cards", *QUALITY, "--sdbench-store", tmp_path, "--sdbench-report=r.json")
    pytester.runpytest(*words, "-k", "fid").assert_outcomes(skipped=1, deselected=13)
    assert not list(tmp_path.iterdir())  # no image is made for nothing
    pytester.runpytest(*words)
    verdicts = {row["metric"]: row["verdict"] for row in rows(pytester.path / "r.json").values()}
    assert verdicts["inception_score"] == verdicts["clip_score"] == "uncalibrated"
    reasons = [row["reason"] for row in rows(pytester.path / "r.json").values() if row["n"] is None]
    assert len(reasons) == 2
    assert all("--sdbench-data" in reason for reason in reasons)


def test_a_missing_checkpoint_is_skipped_with_the_remedy_and_a_damaged_one_fails(run, project):
    unet = project.parent / "mini-sd" / "unet" / "diffusion_pytorch_model.safetensors"
    content = unet.read_bytes()
    unet.write_bytes(content[: len(content) // 2])
    damaged = run("cards")
    assert damaged.parseoutcomes().get("failed", 0) + damaged.parseoutcomes().get("errors", 0) == 4
    assert "diffusion_pytorch_model.safetensors" in damaged.stdout.str()
    assert "Traceback" not in damaged.stdout.str()
    # In full at the first item; the others refer to it.
    first = "cards/mini.md::test_quality[[]mini-inception_score]"
    damaged.stdout.fnmatch_lines([f"The same error as in *{first}"] * 3)
    # (The short summary of pytest says it again where CI is set in the environment.)
    assert sum("model.safetensors: damaged" in line for line in damaged.outlines if "FAILED" not in line) == 1
    make_card(project, checkpoint="nobody/nothing")
    missing = run("cards")
    missing.assert_outcomes(skipped=4)
    missing.stdout.fnmatch_lines(["*--sdbench-download*"])


def test_a_claim_of_another_number_of_images_is_not_compared(run, project, pytester):
    of_5000_images(project)
    run("cards", "-k", "mini-clip_score", "--sdbench-report=r.json").assert_outcomes(skipped=1, deselected=10)
    row = rows(pytester.path / "r.json")["test_quality[mini-clip_score]"]
    assert row["verdict"] == "mismatch"
    assert "the claim is of 5,000 images" in row["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("published", [{}, PASSES])
def test_a_record_of_a_protocol_that_has_changed_is_not_compared_and_is_renewed(
    run, project, pytester, published
):
    make_card(project, claims=published, protocols=["mini"], margins=MARGINS)
    run("cards", "--sdbench-update")
    before = read_card(project).records
    assert {record.metric for record in before} >= {"inception_score", "fid"}
    make_protocol(project.parent / "protocols" / "mini.yaml", seeds={"kind": "per-image", "seed": 7})
    run("cards", "-m", "quality", "--sdbench-report=r.json", "--sdbench-update")
    row = rows(pytester.path / "r.json")["test_quality[mini-fid-recorded]"]
    assert row["verdict"] == "mismatch"
    assert "has changed" in row["reason"]
    assert "--sdbench-update" in row["reason"]
    after = read_card(project).records
    assert {record.key for record in after} == {record.key for record in before}
    old, new = ({record.protocol_fingerprint for record in records} for records in (before, after))
    assert not old & new
    run("cards", "-m", "quality", "-k", "recorded", "--sdbench-report=r.json")
    assert {row["verdict"] for row in rows(pytester.path / "r.json").values()} == {"pass"}


def test_a_candidate_without_its_base_is_not_judged_by_the_cards_architecture(
    pytester, project, tiny_checkpoint
):
    make_card(project, checkpoint="nobody/nothing", architecture="bk-sdm-tiny", claims={})
    (tiny_checkpoint / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"garbage")
    result = pytester.runpytest(
        "--sdbench", "cards", "-m", "size or compute", f"--sdbench-weights=mini={tiny_checkpoint / 'unet'}"
    )
    assert result.parseoutcomes().get("passed") is None


def test_the_ini_may_name_weights_of_cards_that_do_not_run(pytester, project, tiny_checkpoint):
    pytester.makeini(f"[pytest]\nsdbench_weights =\n    other={tiny_checkpoint}\n")
    assert pytester.runpytest("--sdbench", "cards", "-m", "memory").ret == 0


def test_the_ini_names_no_weights_of_a_card_that_there_is_not(pytester, project, tiny_checkpoint):
    weights = f"sdbench_weights =\n    my_mini={tiny_checkpoint}\n"
    pytester.makeini(f"[pytest]\n{weights}sdbench_cards = cards/*.md\n")
    mistyped = pytester.runpytest("--sdbench", "-m", "memory")
    assert mistyped.ret == pytest.ExitCode.USAGE_ERROR
    mistyped.stderr.re_match_lines([r".*'my_mini' is none of the cards of sdbench_cards \(mini\)"])
    pytester.makeini(f"[pytest]\n{weights}")
    told = pytester.runpytest("--sdbench", "cards", "-m", "memory")
    told.stdout.fnmatch_lines(["sdbench: sdbench_weights: 'my_mini' is none of the cards of this run"])


@pytest.mark.slow
def test_a_pipeline_of_ones_own_is_never_judged_by_the_images_of_another(run, project, pytester):
    run("cards", "--sdbench-report=r.json")
    plain = rows(pytester.path / "r.json")["test_quality[mini-clip_score]"]["measured"]
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture(scope="module")
        def sdbench_pipeline(sdbench_pipeline):
            def load(dtype):
                pipeline = sdbench_pipeline(dtype)
                for parameter in pipeline.unet.parameters():
                    parameter.data.zero_()
                return pipeline

            return load
        """
    )
    card = pytester.path / "cards" / "mini.md"
    before = card.read_text(encoding="utf-8")
    result = run("cards", "--sdbench-report=r.json", "--sdbench-update")
    assert rows(pytester.path / "r.json")["test_quality[mini-clip_score]"]["measured"] != plain
    # Nor recorded as if the checkpoint alone had made them.
    result.stdout.fnmatch_lines(["*not recorded: *sdbench_pipeline is overridden*"])
    assert card.read_text(encoding="utf-8") == before
    assert not (pytester.path / "evidence").exists()


@pytest.mark.slow
def test_pipelines_of_a_parametrized_fixture_are_judged_each_by_its_own(run, project, pytester):
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture(scope="module", params=["plain", "broken"], autouse=True)
        def variant(request):
            return request.param

        @pytest.fixture(scope="module")
        def sdbench_pipeline(variant, sdbench_pipeline):
            def load(dtype):
                pipeline = sdbench_pipeline(dtype)
                if variant == "broken":
                    for parameter in pipeline.unet.parameters():
                        parameter.data.zero_()
                return pipeline

            return load
        """
    )
    result = run("cards", "-k", "clip_score", "--sdbench-report=r.json", "--sdbench-report=r.md", "-v")
    found = rows(pytester.path / "r.json")
    plain, broken = (found[f"test_quality[mini-clip_score-{each}]"] for each in ("plain", "broken"))
    assert plain["measured"] != broken["measured"]
    # What else is a parameter is no part of the claim's name.
    assert plain["name"] == broken["name"] == "mini-clip_score"
    # Every report tells which is which.
    result.stdout.fnmatch_lines(["*mini-clip_score (plain) *", "*mini-clip_score (broken) *"])
    assert "(broken)" in (pytester.path / "r.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_checkpoint_that_a_fixture_puts_in_the_place_is_never_recorded(run, project, pytester, damaged):
    pytester.makeconftest(
        f"""
        import pathlib, pytest

        @pytest.fixture(scope="module")
        def sdbench_weights():
            return pathlib.Path({str(damaged)!r})
        """
    )
    before = project.read_text(encoding="utf-8")
    result = run("cards", "--sdbench-update")
    result.stdout.fnmatch_lines(["*not recorded: *put another checkpoint in the place of the card's own*"])
    assert project.read_text(encoding="utf-8") == before


@pytest.mark.slow
def test_evidence_is_recorded_from_the_store_that_a_fixture_gives(pytester, project, tmp_path):
    pytester.makeconftest(
        f"""
        import pathlib, pytest

        @pytest.fixture(scope="session")
        def sdbench_store():
            return pathlib.Path({str(tmp_path)!r})
        """
    )
    result = pytester.runpytest(*QUALITY, "cards", "--sdbench-update")
    assert "not recorded: 6 of" not in result.stdout.str()
    assert "not in the store" not in result.stdout.str()
    assert (pytester.path / "evidence" / "mini" / "mini.safetensors").is_file()


def passed_over(project: Path) -> None:
    """Put weights beside those of a project's checkpoint that nobody loads."""
    (project.parent / "mini-sd" / "unet_ema").mkdir()
    (project.parent / "mini-sd" / "unet_ema" / "x.safetensors").touch()


class TestNetworks:
    """Size, compute and memory, on the tensors that are stored."""

    @pytest.fixture
    def counted(self, pristine_checkpoint) -> dict[str, int]:
        """Count parameters with the libraries that load them."""
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(pristine_checkpoint)
        parts = {
            "unet": pipeline.unet,
            "text_encoder": pipeline.text_encoder,
            "image_decoder": pipeline.vae.decoder,
        }
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}

    @pytest.mark.parametrize("off", [0, 1])
    def test_sizes_are_exact(self, pytester, project, counted, off):
        sizes = counted | {"unet": counted["unet"] + off}
        size = {name: {"exact": count} for name, count in (sizes | {"whole": sum(sizes.values())}).items()}
        make_card(project, size=size)
        passed_over(project)
        result = pytester.runpytest("--sdbench", "cards", "-m", "size")
        result.stdout.fnmatch_lines(["*not looked at: unet_ema/*"])
        # One parameter too many is one in the U-Net and one in the whole.
        result.assert_outcomes(
            passed=4 - 2 * off, failed=2 * off, deselected=result.parseoutcomes()["deselected"]
        )
        if off:
            assert f"{counted['unet'] + 1:,}" in result.stdout.str()
            assert "-1" in result.stdout.str()

    def test_sizes_of_an_inline_unet_without_its_companions_are_explained(self, pytester, project):
        make_card(project, checkpoint="nobody/nothing", architecture=UNET)
        result = pytester.runpytest("--sdbench", "cards", "-m", "size", "--sdbench-report=r.json")
        found = rows(pytester.path / "r.json")
        assert found["test_size[unet]"]["verdict"] == "uncalibrated"
        assert found["test_size[whole]"]["verdict"] == "unavailable"
        assert "--sdbench-weights mini=FOLDER" in found["test_size[whole]"]["reason"]
        assert result.ret == 0
        # Without either it says how to add one.
        make_card(project, checkpoint="nobody/nothing")
        result = pytester.runpytest("--sdbench", "cards", "-m", "compute", "-v")
        result.stdout.fnmatch_lines(["*sdbench.architecture*draft FOLDER*"])

    def test_compute_is_judged_to_a_thousandth(self, pytester, project):
        macs = unet_macs(UNET).total
        for name, claimed in (("mini.md", macs), ("off.md", round(1.01 * macs))):
            make_card(project.with_name(name), compute={"unet_macs": claimed})
        passed_over(project)
        result = pytester.runpytest("--sdbench", "cards", "-m", "compute", "-rA")
        assert [result.parseoutcomes()[outcome] for outcome in ("passed", "failed")] == [1, 1]
        result.stdout.fnmatch_lines(["*(not looked at: unet_ema/)", "PASSED cards/mini.md::test_compute"])


class TestSpeed:
    """Timing through pytest-benchmark: nothing here asserts a time."""

    @pytest.mark.slow
    def test_same_architecture_has_ratio_one_by_identity(self, speed):
        # So a student that is its teacher fails the ratio of a student.
        for largest, outcome in ((9.0, "passed"), (0.7, "failed")):
            result, row = speed("--benchmark-only", baseline="mini", speed=ratio(largest))
            result.assert_outcomes(**{outcome: 1})
            assert row["measured"] == 1.0
            assert row["extra"]["identical"] is True

    @pytest.mark.parametrize("words", ["-p no:benchmark", "--benchmark-disable", "--benchmark-skip"])
    def test_unmeasured_speed_is_skipped_never_passed(self, speed, words):
        result, _ = speed(*words.split(), baseline="mini", speed=ratio(9.0))
        result.assert_outcomes(skipped=1)
        result.stdout.fnmatch_lines([f"*{words}*"])

    @pytest.mark.slow
    def test_ratio_to_a_baseline_is_measured_in_turn_and_judged(self, speed):
        student = {"checkpoint": "nobody/nothing", "architecture": UNET | {"layers_per_block": 1}}
        for largest, outcome in ((1e6, "passed"), (0.001, "failed")):
            result, row = speed(baseline="mini", speed=ratio(largest), **student)
            result.assert_outcomes(**{outcome: 1})
            assert len(row["extra"]["baseline_seconds"]) == len(row["extra"]["seconds"]) >= 3
            assert row["measured"] > 0

    def test_memory_is_read_on_cuda_and_skipped_elsewhere(self, pytester, project):
        result = pytester.runpytest("--sdbench", "cards/mini.md", "-m", "memory", "--sdbench-device=cpu")
        result.assert_outcomes(skipped=1)
        result.stdout.fnmatch_lines(["*--sdbench-device cuda*"])


def test_a_hub_card_without_our_block_is_read_and_explained(run, pytester):
    pytester.makefile(
        ".md",
        hub="---\nmodel-index:\n- name: Hub\n  results:\n  - task: {type: text-to-image}\n"
        "    dataset: {type: coco, name: COCO}\n    metrics:\n    - {type: fid, value: 12.5}\n---\n# Hub\n",
    )
    result = run("hub.md", "-v")
    assert result.parseoutcomes().get("failed") is None
    result.stdout.fnmatch_lines(["*not comparable*", "*leave untested*", "- hub: *draft FOLDER*"])


def test_protocol_of_ones_own_beside_the_card(run, project, pytester):
    make_protocol(project.parent / "protocols" / "ours.yaml", n=32)
    make_card(project, claims=FAILS, protocol="ours", margins={"clip_score": 0.4})
    run("cards", "--sdbench-report=r.json").assert_outcomes(failed=1, skipped=3)
    row = rows(pytester.path / "r.json")["test_quality[ours-clip_score]"]
    assert (row["verdict"], row["protocol"], row["n"]) == ("fail", "ours", 32)
