"""Time a recipe's training step beside the published script's, and each of our speed-ups alone."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch

from benchmarks import machine
from benchmarks.training import flops
from benchmarks.training.breakdown import breakdown
from benchmarks.training.scenario import Scenario, Size, open_scenario
from benchmarks.training.ways import PLAIN, Run, Way, move, ours, start
from benchmarks.turns import spread, take_turns
from pytest_sdbench.base.environment import synchronise

TOLERANCE = {torch.float32: 1e-4}
"""How far the first loss may lie from the published script's, relative; half precision: 1e-2."""
SCRIPT, OURS, ALL_OFF = "published script", "ours", "ours, all off"
LIBRARIES = ("torch", "diffusers", "accelerate")

T = TypeVar("T")
Turn = tuple[float, float, int]
"""One timed window: seconds and processor seconds of a step, and bytes on the device."""
Figure = dict[str, Any]
"""One way, timed turn by turn with a `reference`.

Images per second are the median over the rounds, ratios those of neighbours in time. `cpu_ratio` is that of
processor seconds, which other processes change less; None on CUDA.
"""
Memory = Callable[[Way | None], float] | None
"""Measures GiB on a CPU."""


@dataclass(frozen=True)
class Candidate:
    """A way that is loaded and has taken its first steps."""

    name: str
    way: Way | None
    run: Run
    loss: float


class Comparison:
    """The ways of one scenario; their first losses must agree, else they would not be the same step."""

    def __init__(
        self, scenario: Scenario, rounds: int, steps: int, memory: Memory, say: Callable[[str], None]
    ) -> None:
        self.scenario, self.rounds, self.steps, self.memory, self.say = scenario, rounds, steps, memory, say
        # On CUDA two ways do not fit the device: whose turn it is not waits in the host's memory.
        self.cuda = scenario.device.type == "cuda"
        self.matmul_peak = 0.0
        self._loss: float | None = None

    def load(self, name: str, way: Way | None) -> Candidate:
        """Make a way ready; raises ValueError where its first loss is another than the first way's."""
        run = start(way, self.scenario)
        run.step()  # allocates the optimiser's states, and compiles
        loss = run.losses["loss"]
        wanted = self._loss = loss if self._loss is None else self._loss
        if abs(loss - wanted) > TOLERANCE.get(self.scenario.half, 1e-2) * abs(wanted):
            raise ValueError(f"the first loss is {loss} and not {wanted}: these are not the same steps")
        run.step()
        if self.cuda:
            move(run, "cpu")
        return Candidate(name, way, run, loss)

    def beside(self, name: str, way: Way, other: Candidate) -> list[Figure]:
        """Time a way turn by turn with another; return its figure, then the other's."""
        try:
            one = self.load(name, way)
            ways = {each.name: partial(self._turn, each.run) for each in (one, other)}
            turns = take_turns(ways, self.rounds, say=lambda _line: None, show=str)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return [{"name": name, "reference": other.name, "problem": "does not fit the device"}]
        figures = [self._figure(each, other, turns) for each in (one, other)]
        self.say(f"{self.scenario.recipe.name}: {name} {figures[0]['ratio']:.2f} of {other.name}")
        return figures

    def each_alone(self, kind: str, candidate: Candidate, names: Sequence[str]) -> list[Figure]:
        """Time a way beside itself `without` each speed-up, or with each of them as its `only` one."""
        ways = {name: replace(candidate.way or PLAIN, **{name: kind == "only"}) for name in names}
        return [self.beside(f"{kind} {name}", way, candidate)[0] for name, way in ways.items()]

    def profile(self, run: Run) -> dict[str, float]:
        """Return seconds per step by class of operation."""
        return self._on_device(run, lambda: breakdown(run, self.scenario.device))

    def _turn(self, run: Run) -> Turn:
        device, steps = self.scenario.device, self.steps
        # Other processes make the machine slower, never faster: its best in any turn counts.
        peak = machine.matmul_peak(device, self.scenario.half, seconds=0.1)
        self.matmul_peak = max(self.matmul_peak, peak)

        def timed() -> Turn:
            synchronise(str(device))
            if self.cuda:
                torch.cuda.reset_peak_memory_stats(device)
            cpu, began = time.process_time(), time.perf_counter()
            for _ in range(steps):
                run.step()
            synchronise(str(device))
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
            memory = torch.cuda.max_memory_allocated(device) if self.cuda else 0
            return seconds / steps, cpu / steps, memory

        return self._on_device(run, timed)

    def _on_device(self, run: Run, call: Callable[[], T]) -> T:
        """Call something while a run is where it can take steps."""
        if not self.cuda:
            return call()
        move(run, self.scenario.device)
        run.step()
        found = call()
        move(run, "cpu")
        return found

    def _figure(self, one: Candidate, other: Candidate, turns: dict[str, list[Turn]]) -> Figure:
        seconds, cpu, memory = zip(*turns[one.name], strict=True)
        their_seconds, their_cpu, _ = zip(*turns[other.name], strict=True)
        if self.cuda:
            gib: float | None = max(memory) / 2**30
        else:
            gib = self.memory(one.way) if self.memory else None
        return {
            "name": one.name,
            "reference": other.name,
            "images_per_second": self.scenario.recipe.schedule.batch / statistics.median(seconds),
            **spread(their_seconds, seconds),
            "cpu_ratio": None if self.cuda else spread(their_cpu, cpu)["ratio"],
            "memory_gib": gib,
            "first_loss": one.loss,
            "problem": "",
        }


def measure(
    scenario: Scenario,
    *,
    rounds: int,
    steps: int,
    compiled: bool = False,
    speed_ups: Sequence[str] | None = None,
    memory: Memory = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure ours beside the published script, then each difference alone; return plain data.

    `speed_ups` are those that are switched alone; None: all that are on in ours.
    Raises ValueError where two ways differ in their first loss.
    """
    recipe, began, counted = scenario.recipe, os.getloadavg()[0], flops.count(scenario)
    comparison = Comparison(scenario, rounds, steps, memory, say)
    mine = ours(recipe, compiled=compiled)
    script = comparison.load(SCRIPT, None)
    figures = comparison.beside(OURS, mine, script)[::-1]
    figures += comparison.beside(ALL_OFF, PLAIN, script)[:1]
    del script
    breakdowns = {}
    for name, way, kind in ((OURS, mine, "without"), (ALL_OFF, PLAIN, "only")):
        candidate = comparison.load(name, way)
        figures += comparison.each_alone(kind, candidate, mine.names() if speed_ups is None else speed_ups)
        breakdowns[name] = comparison.profile(candidate.run)
        del candidate
    for figure in figures:
        needed = counted.needed * figure.get("images_per_second", 0.0)
        figure["peak_share"] = needed / comparison.matmul_peak
    return {
        "recipe": recipe.name,
        "networks": scenario.networks,
        "precision": recipe.precision,
        "batch": recipe.schedule.batch,
        "micro_batch": recipe.schedule.micro_batch,
        "resolution": scenario.pixels.shape[-1],
        "rounds": rounds,
        "steps": steps,
        # Floating-point operations per image; published: with VAE, text encoder and a second forward pass.
        "flops_needed": counted.needed,
        "flops_published": counted.done(None),
        # Floating-point operations per second.
        "matmul_peak": comparison.matmul_peak,
        **machine.facts(str(scenario.device), LIBRARIES, began),
        "figures": figures,
        "breakdowns": breakdowns,
    }


def resident_gib(recipe: str, size: Size, overrides: Sequence[str], way: Way | None) -> float:
    """Return the most that is resident during two steps on the CPU; for a process of its own.

    What the interpreter and the libraries take is not counted.
    """
    base = machine.resident()[0]
    run = start(way, open_scenario(recipe, size=size, device=torch.device("cpu"), overrides=overrides))
    machine.forget_peak()
    for _ in range(2):
        run.step()
    return (machine.resident()[1] - base) / 2**30
