"""The measurements for a GPU, rehearsed on a CPU: what a GPU adds is the answer alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cuda.__main__ import MEASUREMENTS, main
from benchmarks.cuda.measurement import Measurement
from benchmarks.cuda.packages import LACKING, PRESENT, pinned
from benchmarks.cuda.process import failed, running
from benchmarks.cuda.resume import compare_logs, differences
from benchmarks.cuda.roofline import roofline
from benchmarks.report import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def stance() -> object:
    """A smoke run tells the compiler to do nothing; other tests are to find it as it was."""
    yield
    torch.compiler.set_stance("default")


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_rehearsal_answers_every_question(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--smoke", "--device", "cpu", "--minutes", "30", "--out", str(tmp_path)]) == 0
    answers = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))["answers"]
    assert answers
    assert not [answer for answer in answers if "problem" in answer]
    assert f"# {name}, smoke" in capsys.readouterr().out


def measurement(folder: Path, minutes: float = 1.0) -> Measurement:
    return Measurement("some", folder, torch.device("cpu"), minutes, smoke=True)


def kept(folder: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((folder / "some.json").read_text(encoding="utf-8"))["answers"]
    return found


def test_every_answer_is_on_the_disk_before_the_next_is_asked(tmp_path: Path) -> None:
    asked = measurement(tmp_path)
    asked.ask("one", 0, lambda: {"rate": 2.0})

    def second() -> dict[str, object]:
        assert [answer["what"] for answer in kept(tmp_path)] == ["one"]
        return {"rate": 3.0}

    asked.ask("two", 0, second)
    assert [answer["rate"] for answer in kept(tmp_path)] == [2.0, 3.0]


def test_a_failure_is_an_answer_and_the_next_question_is_asked(tmp_path: Path) -> None:
    asked = measurement(tmp_path)

    def fail() -> dict[str, object]:
        raise RuntimeError("no such kernel")

    asked.ask("one", 0, fail)
    asked.ask("two", 0, lambda: {"rate": 3.0})
    assert kept(tmp_path)[0]["problem"] == "RuntimeError: no such kernel"
    assert kept(tmp_path)[1]["rate"] == 3.0
    assert asked.problems == 1
    assert "no such kernel" in (tmp_path / "some-problems.txt").read_text(encoding="utf-8")


def test_a_stop_leaves_the_table_and_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[subprocess.Popen[bytes]] = []

    def stopped(asked: Measurement) -> None:
        asked.keep({"what": "one", "rate": 2.0})
        with running("import time; time.sleep(60)", tmp_path / "child.txt") as process:
            begun.append(process)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    monkeypatch.setitem(MEASUREMENTS, "cards", stopped)  # type: ignore[arg-type]
    with pytest.raises(SystemExit) as end:
        main(["cards", "--smoke", "--device", "cpu", "--out", str(tmp_path)])
    assert end.value.code == 143
    assert begun[0].returncode == -signal.SIGKILL
    assert "# cards, smoke" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_error_of_a_process_is_told(tmp_path: Path) -> None:
    output = tmp_path / "child.txt"
    with running("raise ValueError('no such shape')", output) as process:
        assert process.wait() == 1
    error = failed("exit status 1", output)
    assert str(error) == "exit status 1: ValueError: no such shape"
    assert "Traceback" in error.__notes__[0]


def test_states_that_differ_in_one_bit_are_told_apart() -> None:
    weights = {"a": torch.tensor([3.0, 4.0]), "b": torch.zeros(2)}
    nudged = {**weights, "a": torch.tensor([3.0, torch.nextafter(torch.tensor(4.0), torch.tensor(5.0))])}
    device = torch.device("cpu")
    assert differences(weights, dict(weights), device) == {
        "tensors": 2,
        "that_differ": 0,
        "largest": 0.0,
        "of_the_norm": 0.0,
    }
    found = differences(weights, nudged, device)
    assert found["that_differ"] == 1
    assert found["largest"] == 2**-21
    assert found["of_the_norm"] == pytest.approx(2**-21 / 5)


def test_logs_are_compared_step_by_step_with_infinite_norms(tmp_path: Path) -> None:
    mine = [{"seen": 4, "loss": 1.0, "gradient_norm": float("inf")}, {"seen": 8, "loss": 2.0}]
    theirs = [{**mine[0], "seconds": 3.0}, {"seen": 8, "loss": 2.5}, {"seen": 12, "loss": 3.0}]
    for name, lines in (("mine", mine), ("theirs", theirs)):
        (tmp_path / name).mkdir()
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "log.jsonl").write_text(text, encoding="utf-8")
    assert compare_logs(tmp_path / "mine", tmp_path / "theirs", batch=4) == {
        "steps": 2,
        "that_differ": 1,
        "first_that_differs": 2,
        "largest_relative": 0.2,
        "last_loss": 2.0,
    }


def test_every_dependency_is_there_or_fetched() -> None:
    """Wheels are installed alone: what they need has to be among them, or come with the machine."""
    here = {_plain(name) for name in LACKING}
    there = _with_needs(PRESENT)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for owner, needs in [
        ("pyproject.toml", project["dependencies"]),
        *((name, metadata.requires(name) or []) for name in LACKING),
    ]:
        missing = {_plain(need.name) for need in _applying(needs)} - here - there
        assert not missing, f"{owner} needs {sorted(missing)}"


def _with_needs(names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = _plain(waiting.pop())
        if name not in found:
            found.add(name)
            waiting += [need.name for need in _applying(metadata.requires(name) or [])]
    return found


def _applying(needs: Iterable[str]) -> list[Requirement]:
    """Return what is needed on Linux without extras."""
    read = map(Requirement, needs)
    return [need for need in read if need.marker is None or need.marker.evaluate({"extra": ""})]


def _plain(name: str) -> str:
    return canonicalize_name(name)


def test_what_takes_longer_than_is_left_is_not_begun(tmp_path: Path) -> None:
    asked = measurement(tmp_path, minutes=0.1)
    asked.began = time.monotonic() - 5
    asked.ask("long", 10, lambda: pytest.fail("begun"))
    assert str(kept(tmp_path)[0]["problem"]).startswith("not asked: 1 s")


def test_the_roofline_counts_each_operation_once() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.GroupNorm(2, 8), torch.nn.SiLU(), torch.nn.Flatten()
    )
    head, pixels = torch.nn.Linear(8 * 64, 5), torch.randn(2, 3, 8, 8)

    def call() -> torch.Tensor:
        return head(model(pixels))

    rows = {
        row["class"]: row for row in roofline(call, torch.device("cpu"), flops_peak=1e12, bytes_peak=1e10)
    }
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    flops = sum(row["tflops"] * row["ms"] * 1e9 for row in rows.values())
    assert flops == pytest.approx(counter.get_total_flops())
    assert rows["convolution"]["calls"] == rows["matrix product"]["calls"] == rows["norm"]["calls"] == 1
    # Read: pixels and weights with bias; written: the result. All are float32.
    moved = rows["convolution"]["gb_per_s"] * rows["convolution"]["ms"] * 1e6
    assert moved == pytest.approx(4 * (2 * 3 * 64 + 8 * 3 * 9 + 8 + 2 * 8 * 64), rel=1e-6)
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)


def test_wheels_are_fetched_in_the_versions_that_are_tested() -> None:
    constraints = "# these\nopen_clip_torch==3.3.0\npydantic-core==2.1\n"
    assert pinned(["open-clip-torch", "pydantic_core", "ftfy"], constraints) == [
        "open_clip_torch==3.3.0",
        "pydantic-core==2.1",
        "ftfy",
    ]
