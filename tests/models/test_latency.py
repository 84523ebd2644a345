"""Latency beside a baseline, and memory: what is measured and how often. No test asserts a time."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pytest_sdbench.base.environment import machine_lock
from pytest_sdbench.base.errors import Unavailable
from pytest_sdbench.gate.hardware import judge_speed
from pytest_sdbench.gate.verdict import Outcome
from pytest_sdbench.models import latency as speed
from pytest_sdbench.models.latency import Effort, Ratio, measure_latency, peak_memory
from tests.tiny_checkpoint import UNET

STUDENT = UNET | {"layers_per_block": 1}
GUIDED = STUDENT | {"time_cond_proj_dim": 32}


class Benchmark:
    """pytest-benchmark's fixture, with a clock that the test sets."""

    def __init__(self, *, disabled: bool = False) -> None:
        self.disabled = disabled
        self.extra_info: dict[str, Any] = {}
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[]))

    def pedantic(self, target: Callable[[], None], *, setup: Callable[[], None], rounds: int) -> None:
        for _ in range(rounds):
            setup()
            start = speed.time.perf_counter()
            target()
            self.stats.stats.data.append(speed.time.perf_counter() - start)


class Clock:
    """Stand-in for time: every U-Net call takes what the test says, and the order of calls is kept."""

    def __init__(self, **seconds: float) -> None:
        self.seconds, self.now, self.calls = seconds, 0.0, list[str]()
        self.first = 0.0
        """Seconds more that the first call of each takes."""

    def perf_counter(self) -> float:
        return self.now

    def call(self, name: str) -> None:
        self.now += self.seconds[name] + (0.0 if name in self.calls else self.first)
        self.calls.append(name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Calls of STUDENT take 2 s and those of UNET 4 s."""
    clock = Clock(student=2.0, teacher=4.0)

    class Call(speed.UnetCall):
        def __init__(self, architecture: Any, **options: Any) -> None:
            self.name = "student" if architecture["layers_per_block"] == 1 else "teacher"

        def __call__(self) -> None:
            clock.call(self.name)

    monkeypatch.setattr(speed, "time", clock)
    monkeypatch.setattr(speed, "UnetCall", Call)
    return clock


def test_baseline_and_candidate_run_in_turn_and_the_ratio_is_theirs(clock: Clock) -> None:
    benchmark = Benchmark()
    result = measure_latency(lambda: benchmark, STUDENT, UNET, effort=Effort(budget=48))
    assert clock.calls == ["teacher", "student"] * 8, "a warm-up and seven rounds of 6 s fit 48 s"
    assert result.seconds == (2.0,) * 7
    assert result.baseline_seconds == (4.0,) * 7
    assert (result.candidate_median, result.baseline_median, result.ratio) == (2.0, 4.0, 0.5)
    assert (result.rounds, result.spread) == (7, 0.0)
    assert benchmark.extra_info["ratio"] == 0.5
    assert benchmark.extra_info["device"] == "cpu"
    json.dumps(benchmark.extra_info)


@pytest.mark.parametrize(("seconds", "rounds"), [(100.0, 6), (0.001, 50)], ids=["slow", "fast"])
def test_the_number_of_rounds_has_bounds(clock: Clock, seconds: float, rounds: int) -> None:
    clock.seconds = {"student": seconds, "teacher": seconds}
    result = measure_latency(Benchmark, STUDENT, UNET)
    assert result.rounds == rounds
    slow = judge_speed(
        label="1 s", largest=0.5, ratio=1.0, seconds=result.seconds, baseline_seconds=result.baseline_seconds
    )
    assert slow.outcome is Outcome.FAIL, "the fewest rounds tell a network that is far too slow"


def test_three_rounds_do_for_a_slow_network_that_is_well_within_its_claim(clock: Clock) -> None:
    clock.seconds = {"student": 5.0, "teacher": 10.0}
    assert measure_latency(Benchmark, STUDENT, UNET, effort=Effort(largest=0.6)).rounds == 3
    assert measure_latency(Benchmark, STUDENT, UNET, effort=Effort(largest=0.55)).rounds == 6, (
        "too close to tell by three"
    )
    assert measure_latency(Benchmark, STUDENT, UNET, effort=Effort(largest=0.4)).rounds == 6, (
        "a fail needs six"
    )
    assert measure_latency(Benchmark, STUDENT, effort=Effort(largest=0.6)).rounds == 6, "there is no ratio"


def test_few_rounds_serve_another_card_only_where_it_passes_by_all_of_them(clock: Clock) -> None:
    clock.seconds, cache = {"student": 5.0, "teacher": 10.0}, {}
    assert measure_latency(Benchmark, STUDENT, UNET, cache=cache, effort=Effort(largest=0.6)).rounds == 3
    assert measure_latency(Benchmark, STUDENT, UNET, cache=cache, effort=Effort(largest=0.5)).reused
    anew = measure_latency(Benchmark, STUDENT, UNET, cache=cache, effort=Effort(largest=0.4))
    assert (anew.reused, anew.rounds) == (False, 6)
    assert measure_latency(Benchmark, STUDENT, UNET, cache=cache).reused, "six rounds judge any claim"


def test_a_slow_first_call_costs_a_small_network_no_rounds(clock: Clock) -> None:
    clock.seconds, clock.first = {"student": 0.01, "teacher": 0.01}, 1.0
    assert measure_latency(Benchmark, STUDENT, UNET).rounds == 50


def test_the_ratio_is_the_median_of_the_rounds() -> None:
    result = Ratio(seconds=(1.0, 9.0, 3.0), baseline_seconds=(2.0, 3.0, 4.0))
    assert result.ratio == statistics.median([0.5, 3.0, 0.75])
    assert result.spread == 1.25


def test_equal_pairs_are_measured_once_in_a_session(clock: Clock) -> None:
    cache: speed.Cache = {}
    benchmark = Benchmark()
    first = measure_latency(lambda: benchmark, STUDENT, UNET, cache=cache)
    made = len(clock.calls)

    def forbidden() -> Any:
        raise AssertionError("the fixture is asked for only if there is something to time")

    again = measure_latency(forbidden, dict(STUDENT, _name_or_path="x"), UNET, cache=cache)
    assert again.reused
    assert not first.reused
    assert (again.seconds, again.ratio) == (first.seconds, first.ratio)
    assert len(clock.calls) == made


def test_another_baseline_device_or_dtype_is_another_measurement(clock: Clock) -> None:
    cache: speed.Cache = {}
    measure_latency(Benchmark, STUDENT, UNET, cache=cache)
    assert not measure_latency(Benchmark, STUDENT, GUIDED, cache=cache).reused
    assert not measure_latency(Benchmark, STUDENT, UNET, dtype=torch.bfloat16, cache=cache).reused
    assert len(cache) == 3


@pytest.mark.parametrize(
    ("baseline", "ratio", "spread"), [(dict(STUDENT), 1.0, 0.0), (None, None, None)], ids=["its own", "none"]
)
def test_a_network_without_another_baseline_is_timed_alone(
    clock: Clock, baseline: Any, ratio: float | None, spread: float | None
) -> None:
    result = measure_latency(Benchmark, STUDENT, baseline)
    assert (result.ratio, result.identical) == (ratio, baseline is not None)
    assert (result.candidate_median, result.baseline_seconds, set(clock.calls)) == (2.0, (), {"student"})


def test_times_taken_beside_a_baseline_serve_the_network_alone(clock: Clock) -> None:
    cache: speed.Cache = {}
    beside = measure_latency(Benchmark, STUDENT, UNET, cache=cache)
    alone = measure_latency(Benchmark, STUDENT, STUDENT, cache=cache)
    assert (alone.reused, alone.ratio, alone.seconds) == (True, 1.0, beside.seconds)
    assert measure_latency(Benchmark, STUDENT, cache=cache).ratio is None
    teacher = measure_latency(Benchmark, UNET, cache=cache)
    assert (teacher.reused, teacher.ratio, teacher.seconds) == (True, None, beside.baseline_seconds)
    assert not measure_latency(Benchmark, UNET, dtype=torch.bfloat16, cache=cache).reused


def test_disabled_timing_is_unavailable_not_a_pass(clock: Clock) -> None:
    with pytest.raises(Unavailable, match="without --benchmark-disable and without -n"):
        measure_latency(lambda: Benchmark(disabled=True), STUDENT, UNET)
    assert clock.calls == []


def test_a_real_pair_is_timed_and_both_networks_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[weakref.ref[torch.nn.Module]] = []

    class Call(speed.UnetCall):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            built.append(weakref.ref(self.model))

    monkeypatch.setattr(speed, "UnetCall", Call)
    result = measure_latency(Benchmark, GUIDED, STUDENT, effort=Effort(budget=0))
    assert result.rounds == len(result.baseline_seconds) == 6
    assert len(built) == 2
    assert [network() for network in built] == [None, None]


@pytest.mark.slow
def test_pytest_benchmark_measures_and_keeps_the_figures(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A run inside a worker of this run is none itself.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    pytester.makepyfile(
        """
        from pytest_sdbench.models.latency import Effort, measure_latency
        from tests.tiny_checkpoint import UNET

        def test_speed(request):
            result = measure_latency(
                lambda: request.getfixturevalue("benchmark"),
                UNET | {"layers_per_block": 1},
                UNET,
                effort=Effort(budget=0),
            )
            assert result.rounds == 6
        """
    )
    pytester.runpytest_inprocess("--benchmark-json=out.json", "--benchmark-min-rounds=1").assert_outcomes(
        passed=1
    )
    (record,) = json.loads((pytester.path / "out.json").read_text())["benchmarks"]
    assert record["stats"]["rounds"] == 6
    assert record["extra_info"]["candidate_median"] == pytest.approx(record["stats"]["median"])
    assert len(record["extra_info"]["baseline_seconds"]) == 6
    disabled = pytester.runpytest_inprocess("--benchmark-disable")
    disabled.stdout.fnmatch_lines("*Unavailable: timing is disabled*")


HOLD = """
import sys
from pytest_sdbench.models.latency import machine_lock
with machine_lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_times_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Unavailable, match="another process"), machine_lock(timeout=0):
            pass
        other.communicate()
    with machine_lock(timeout=0) as path:
        assert path.parent == tmp_path


def test_a_lock_that_cannot_be_made_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="TMPDIR"), machine_lock():
        pass


def test_memory_is_measured_on_cuda_alone() -> None:
    with pytest.raises(Unavailable, match="--sdbench-device cuda"):
        peak_memory(UNET, device="cpu")


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A machine whose CUDA allocator reports what the test says; the network itself stays on the CPU."""
    figures = {"held": 100, "peak": 1100}
    for name, value in {
        "is_available": lambda: True,
        "memory_allocated": lambda device: figures["held"],
        "max_memory_allocated": lambda device: figures["peak"],
        "reset_peak_memory_stats": lambda device: None,
        "empty_cache": lambda: None,
        "synchronize": lambda device: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    real = speed.UnetCall

    def on_cpu(architecture: Any, *, device: str, dtype: torch.dtype) -> speed.UnetCall:
        call = real(architecture, device="cpu", dtype=dtype)
        call.device = device
        return call

    monkeypatch.setattr(speed, "UnetCall", on_cpu)
    return figures


@pytest.mark.slow
def test_peak_memory_leaves_out_what_was_held_and_none_is_no_measurement(allocator: dict[str, int]) -> None:
    assert peak_memory(UNET, device="cuda") == 1000
    allocator["peak"] = allocator["held"]
    with pytest.raises(Unavailable, match="reports no memory"):
        peak_memory(UNET, device="cuda")


def test_the_metal_device_is_waited_for_and_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.mps, name, lambda name=name: called.append(name))
    speed.synchronise("mps")
    speed.release_memory("mps")
    assert called == ["synchronize", "empty_cache"]
