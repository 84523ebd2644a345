"""The measurements for a GPU, rehearsed on a CPU: what a GPU adds is the answer alone."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cuda.__main__ import MEASUREMENTS, main
from benchmarks.cuda.measurement import Measurement
from benchmarks.cuda.packages import pinned
from benchmarks.cuda.roofline import roofline

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
    assert "no such kernel" in (tmp_path / "some-1.txt").read_text(encoding="utf-8")


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
