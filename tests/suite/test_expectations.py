"""What users of pytest expect of a run: statuses, options, and their own fixtures beside the suite's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_sdbench import resolve
from tests.project import make_card, make_project, make_protocol

ABOUT = {"architecture": "bk-sdm-tiny", "checkpoint": "nobody/nothing"}


@pytest.fixture
def card(pytester: pytest.Pytester) -> Path:
    """A card that counts, and needs no weights."""
    make_protocol(pytester.path / "cards" / "protocols" / "mini.yaml")
    return make_card(pytester.path / "cards" / "good.md", claims={}, **ABOUT)


@pytest.fixture
def outside_xdist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run inside a worker of xdist have workers of its own."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


def test_an_internal_error_of_a_worker_never_ends_with_success(pytester, card, outside_xdist):
    pytester.makeconftest(
        """
        def pytest_runtest_teardown(item):
            item.user_properties.append(("odd", object()))  # which no worker can hand over
        """
    )
    result = pytester.runpytest_subprocess("--sdbench", "cards", "-m", "size", "-n", "1")
    assert "INTERNALERROR" in result.stdout.str() + result.stderr.str()
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR


def test_reports_stay_where_nothing_is_tested(pytester, card):
    report = pytester.path / "r.md"
    for word in ("--setup-plan", "--setup-only", "--fixtures", "--fixtures-per-test", "--cache-show"):
        report.write_text("yesterday's", encoding="utf-8")
        pytester.runpytest("--sdbench", "cards", "-m", "size", word, f"--sdbench-report={report}")
        assert report.read_text(encoding="utf-8") == "yesterday's"


def test_help_is_shown_whatever_stands_before_it(pytester, card, monkeypatch):
    (pytester.path / "store").mkdir()
    monkeypatch.setenv("PYTEST_ADDOPTS", "--sdbench-store store")
    result = pytester.runpytest_subprocess("--sdbench", "--help")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*--sdbench-store*"])


@pytest.mark.parametrize("strict", [False, True], ids=["", "warnings are errors"])
def test_a_path_after_a_space_that_moves_nothing_is_no_fault(pytester, card, strict):
    (pytester.path / "r.md").write_text("x", encoding="utf-8")
    (pytester.path / "store").mkdir()
    words = ("cards/good.md", "-m", "size", "--sdbench-report", "r.md", "--sdbench-store", "store")
    more = ("-W", "error::pytest.PytestConfigWarning") if strict else ()
    result = pytester.runpytest_subprocess("--sdbench", *words, *more)
    assert result.ret == 0
    assert "rootdir is" not in result.stdout.str() + result.stderr.str()
    # A switch takes no path.
    assert "Write --sdbench-download" not in str(
        pytester.runpytest_subprocess("--sdbench", "--sdbench-download", "cards/good.md", "--co").stdout
    )


def test_a_moved_rootdir_is_a_usage_error_where_warnings_are_errors(pytester, card, tmp_path):
    words = ("--sdbench", "cards/good.md", "--co", "-q", "--sdbench-store", tmp_path)
    told = f"pytest takes {tmp_path} for a place of tests"
    warned = pytester.runpytest_subprocess(*words)
    assert (warned.ret, told in warned.stdout.str()) == (0, True)
    strict = pytester.runpytest_subprocess(*words, "-W", "error")
    assert (strict.ret, told in strict.stderr.str()) == (pytest.ExitCode.USAGE_ERROR, True)


def test_the_debugger_stops_at_errors_and_not_at_what_is_lacking(pytester, card):
    make_card(card, protocol="mini", **ABOUT)
    result = pytester.runpytest_subprocess("--sdbench", "cards", "-k", "inception", "--pdb")
    assert "entering PDB" not in result.stdout.str()
    result.assert_outcomes(skipped=1)


def test_fixtures_of_a_project_keep_their_names_and_parameters(pytester, card):
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture(params=["http", "https"])
        def protocol(request):
            return request.param

        @pytest.fixture(autouse=True)
        def server(protocol):
            assert protocol in ("http", "https")
        """
    )
    result = pytester.runpytest("--sdbench", "cards", "-m", "size", "-v")
    result.stdout.fnmatch_lines(["*test_size?unet-http? *", "*test_size?unet-https? *"])
    result.assert_outcomes(skipped=8)  # no count is claimed


def test_what_a_conftest_breaks_is_not_the_cards_fault(pytester, card):
    pytester.makeconftest("def pytest_generate_tests(metafunc):\n    raise RuntimeError('no such thing')\n")
    result = pytester.runpytest("--sdbench", "cards", "-m", "size")
    result.stdout.fnmatch_lines(["*no such thing*a conftest or a plugin*"])
    assert "Correct its front matter" not in result.stdout.str()


def test_what_is_broken_is_left_out_by_its_node_id(pytester, card):
    make_card(card.with_name("wrong.md"), architecture="of-nobody")
    make_card(card.with_name("half.md"), claims={"inception_score": 0.0, "fid": 9.0}, **ABOUT)
    broken = ["cards/wrong.md::card", "cards/half.md::test_quality[mini-inception_score]"]
    words = [f"--deselect={each}" for each in broken]
    result = pytester.runpytest("--sdbench", "cards", "--co", "-q", *words)
    ids = result.stdout.str().split("\n")
    assert not set(broken) & set(ids)
    assert "cards/half.md::test_quality[mini-fid]" in ids
    result.stdout.fnmatch_lines(["*2 deselected*"])


def test_a_history_that_nothing_was_added_to_is_told_once(pytester, card):
    words = ("--sdbench-report=r.html", "--sdbench-history=runs", "-k", "memory")
    result = pytester.runpytest("--sdbench", "cards", *words)
    result.stdout.fnmatch_lines(["*nothing was measured, and the history has no object of this run*"])
    assert "history NOT read" not in result.stdout.str()


OVERRIDES = {
    "device": ("sdbench_device", "torch.device('cpu')"),
    "dtype": ("sdbench_dtype", "torch.float32"),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_fixtures_may_give_what_torch_calls_them(pytester, card, name):
    fixture, value = OVERRIDES[name]
    pytester.makeconftest(
        f"""
        import pytest, torch

        @pytest.fixture(scope="session")
        def {fixture}():
            return {value}
        """
    )
    result = pytester.runpytest("--sdbench", "cards", "-m", "memory", "--sdbench-report=r.json")
    result.assert_outcomes(skipped=1)
    (row,) = json.loads((pytester.path / "r.json").read_text(encoding="utf-8"))["results"]
    assert "CUDA" in row["reason"]


def test_a_pipeline_in_place_of_a_function_is_told(pytester, pristine_checkpoint):
    make_project(pytester.path, pristine_checkpoint)
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture(scope="module")
        def sdbench_pipeline(sdbench_checkpoint):
            from pytest_sdbench import load_pipeline

            return load_pipeline(sdbench_checkpoint)
        """
    )
    result = pytester.runpytest("--sdbench", "cards", "-k", "inception", "--sdbench-samples=2")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*Return a function that takes the name of a dtype*"])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_a_store_that_a_fixture_gives_serves_page_and_evidence(
    pytester, pristine_checkpoint, tmp_path, outside_xdist, workers
):
    make_project(pytester.path, pristine_checkpoint)
    pytester.makeconftest(
        f"""
        import pathlib, pytest

        @pytest.fixture(scope="session")
        def sdbench_store():
            return pathlib.Path({str(tmp_path)!r})
        """
    )
    words = ("cards", "-k", "inception", "--sdbench-update", "--sdbench-report=r.html", *workers)
    result = pytester.runpytest_subprocess("--sdbench", *words)
    assert "not in the store" not in result.stdout.str()
    assert (pytester.path / "evidence" / "mini" / "mini.safetensors").is_file()
    assert "<img" in (pytester.path / "r.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_checkpoint_of_a_fixture_is_never_recorded_as_the_cards_own(
    pytester, pristine_checkpoint, tiny_checkpoint
):
    card = make_project(pytester.path, pristine_checkpoint)
    config = tiny_checkpoint / "scheduler" / "scheduler_config.json"
    content = json.loads(config.read_text(encoding="utf-8")) | {"beta_end": 0.02}
    config.write_text(json.dumps(content), encoding="utf-8")
    pytester.makeconftest(
        f"""
        import pytest
        from pytest_sdbench import resolve

        @pytest.fixture(scope="module", autouse=True, params=["cards/mini-sd", {str(tiny_checkpoint)!r}])
        def which(request):
            return request.param

        @pytest.fixture(scope="module")
        def sdbench_checkpoint(which):
            return resolve(f"./{{which}}" if which[0] != "/" else which)
        """
    )
    result = pytester.runpytest("--sdbench", "cards", "-k", "inception", "--sdbench-update")
    result.stdout.fnmatch_lines(["*not recorded: *sdbench_checkpoint gave another checkpoint than the card*"])
    (record,) = [line for line in card.read_text(encoding="utf-8").split("\n") if "checkpoint_fing" in line]
    assert resolve(str(card.parent / "mini-sd")).fingerprint in record
