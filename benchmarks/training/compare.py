"""Time a recipe's training step beside the published script's, and each of our speed-ups alone."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks import machine
from benchmarks.training.scenario import Scenario
from benchmarks.training.ways import PLAIN, Run, Way, move, ours, start
from benchmarks.turns import spread, take_turns
from pytest_sdbench.base.environment import synchronise

TOLERANCE = {torch.float32: 1e-4}
"""How far the first loss may lie from the published script's, relative; half precision: 1e-2."""
SCRIPT, OURS, ALL_OFF = "published script", "ours", "ours, all off"
LIBRARIES = ("torch", "diffusers", "accelerate")

Turn = tuple[float, float, int]
"""One timed window: seconds and processor seconds of a step, and bytes on the device."""
Figure = dict[str, Any]
"""One way, timed turn by turn with a `reference`.

Images per second are the median over the rounds, ratios those of neighbours in time. `cpu_ratio` is that of
processor seconds, which other processes change less; None on CUDA. Memory is told by CUDA alone.
"""


@dataclass(frozen=True)
class Candidate:
    """A way that is loaded and has taken its first steps."""

    name: str
    way: Way | None
    run: Run
    loss: float


class Comparison:
    """The ways of one scenario; their first losses must agree, else they would not be the same step."""

    def __init__(self, scenario: Scenario, rounds: int, steps: int, say: Callable[[str], None]) -> None:
        self.scenario, self.rounds, self.steps, self.say = scenario, rounds, steps, say
        # On CUDA two ways do not fit the device: whose turn it is not waits in the host's memory.
        self.cuda = scenario.device.type == "cuda"
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

    def _turn(self, run: Run) -> Turn:
        """Time some steps, with the device idle before and after."""
        device, steps = self.scenario.device, self.steps
        if self.cuda:
            move(run, device)
            run.step()
            synchronise(str(device))
            torch.cuda.reset_peak_memory_stats(device)
        cpu, began = time.process_time(), time.perf_counter()
        for _ in range(steps):
            run.step()
        synchronise(str(device))
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        memory = torch.cuda.max_memory_allocated(device) if self.cuda else 0
        if self.cuda:
            move(run, "cpu")
        return seconds / steps, cpu / steps, memory

    def _figure(self, one: Candidate, other: Candidate, turns: dict[str, list[Turn]]) -> Figure:
        seconds, cpu, memory = zip(*turns[one.name], strict=True)
        their_seconds, their_cpu, _ = zip(*turns[other.name], strict=True)
        return {
            "name": one.name,
            "reference": other.name,
            "images_per_second": self.scenario.recipe.schedule.batch / statistics.median(seconds),
            **spread(their_seconds, seconds),
            "cpu_ratio": None if self.cuda else spread(their_cpu, cpu)["ratio"],
            "memory_gib": max(memory) / 2**30 if self.cuda else None,
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
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure ours beside the published script, then each difference alone; return plain data.

    `speed_ups` are those that are switched alone; None: all that are on in ours.
    Raises ValueError where two ways differ in their first loss.
    """
    recipe, began = scenario.recipe, os.getloadavg()[0]
    comparison = Comparison(scenario, rounds, steps, say)
    mine = ours(recipe, compiled=compiled)
    script = comparison.load(SCRIPT, None)
    figures = comparison.beside(OURS, mine, script)[::-1]
    figures += comparison.beside(ALL_OFF, PLAIN, script)[:1]
    del script
    for name, way, kind in ((OURS, mine, "without"), (ALL_OFF, PLAIN, "only")):
        candidate = comparison.load(name, way)
        figures += comparison.each_alone(kind, candidate, mine.names() if speed_ups is None else speed_ups)
        del candidate
    return {
        "recipe": recipe.name,
        "networks": scenario.networks,
        "precision": recipe.precision,
        "batch": recipe.schedule.batch,
        "micro_batch": recipe.schedule.micro_batch,
        "resolution": scenario.pixels.shape[-1],
        "rounds": rounds,
        "steps": steps,
        **machine.facts(str(scenario.device), LIBRARIES, began),
        "figures": figures,
    }
