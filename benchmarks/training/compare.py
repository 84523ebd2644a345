"""Time a recipe's training step beside the published script's, and each of our speed-ups alone."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks import machine
from benchmarks.training import flops
from benchmarks.training.breakdown import breakdown
from benchmarks.training.scenario import Scenario, Size, open_scenario
from benchmarks.training.ways import PLAIN, Run, Way, ours, start
from benchmarks.turns import spread, take_turns

TOLERANCE = {torch.float32: 1e-4}
"""How far the first loss may lie from the published script's, relative; half precision: 1e-2."""
SCRIPT, OURS, ALL_OFF = "published script", "ours", "ours, all off"
LIBRARIES = ("torch", "diffusers", "accelerate")


@dataclass(frozen=True)
class Figure:
    """One way, timed turn by turn with a reference."""

    name: str
    reference: str
    images_per_second: float = 0.0
    """Median over the rounds."""
    ratio: float = 0.0
    """Of its rate to the reference's: median over the rounds of the ratio of neighbours in time."""
    lowest: float = 0.0
    highest: float = 0.0
    cpu_ratio: float | None = None
    """The same ratio of processor seconds, which other processes change less; None on CUDA."""
    memory_gib: float | None = None
    peak_share: float = 0.0
    """Needed floating-point operations per second, over the measured matrix-multiply peak."""
    first_loss: float = 0.0
    problem: str = ""


@dataclass(frozen=True)
class Turn:
    """One timed window: seconds and processor seconds of a step, and bytes on the device."""

    seconds: float
    cpu: float
    memory: int


@dataclass(frozen=True)
class Settings:
    """How a comparison is timed."""

    rounds: int
    steps: int
    park: bool
    """Move the run whose turn it is not off the device: both would not fit."""


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
        self,
        scenario: Scenario,
        settings: Settings,
        memory: Callable[[Way | None], float | None],
        say: Callable[[str], None],
    ) -> None:
        self.scenario, self.settings, self.memory, self.say = scenario, settings, memory, say
        self.matmul_peak = self.copy_peak = 0.0
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
        if self.settings.park:
            run.move("cpu")
        return Candidate(name, way, run, loss)

    def turn(self, run: Run) -> Turn:
        """Time some steps, with the device idle before and after."""
        device, settings = self.scenario.device, self.settings
        # Other processes make the machine slower, never faster: its best in any turn counts.
        peak = machine.matmul_peak(device, self.scenario.half, seconds=0.1)
        self.matmul_peak = max(self.matmul_peak, peak)
        self.copy_peak = max(self.copy_peak, machine.copy_peak(device, seconds=0.05))
        self._fetch(run)
        machine.wait(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        cpu, began = time.process_time(), time.perf_counter()
        for _ in range(settings.steps):
            run.step()
        machine.wait(device)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        if settings.park:
            run.move("cpu")
        return Turn(seconds / settings.steps, cpu / settings.steps, memory)

    def beside(self, name: str, way: Way, other: Candidate) -> list[Figure]:
        """Time a way turn by turn with another; return its figure, then the other's."""
        try:
            one = self.load(name, way)
            ways = {each.name: partial(self.turn, each.run) for each in (one, other)}
            turns = take_turns(ways, self.settings.rounds, say=lambda _line: None, show=str)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return [Figure(name, other.name, problem="does not fit the device")]
        figures = [self._figure(each, other, turns) for each in (one, other)]
        self.say(f"{self.scenario.recipe.name}: {name} {figures[0].ratio:.2f} of {other.name}")
        return figures

    def each_alone(self, kind: str, candidate: Candidate, names: Sequence[str]) -> list[Figure]:
        """Time a way beside itself `without` each speed-up, or with each of them as its `only` one."""
        figures: list[Figure] = []
        for name in names:
            way = replace(candidate.way or PLAIN, **{name: kind == "only"})
            figures += self.beside(f"{kind} {name}", way, candidate)[:1]
        return figures

    def profile(self, run: Run) -> dict[str, float]:
        """Return seconds per step by class of operation."""
        self._fetch(run)
        found = breakdown(run, self.scenario.device)
        if self.settings.park:
            run.move("cpu")
        return found

    def _fetch(self, run: Run) -> None:
        if self.settings.park:
            run.move(self.scenario.device)
            run.step()

    def _figure(self, one: Candidate, other: Candidate, turns: dict[str, list[Turn]]) -> Figure:
        mine, theirs = turns[one.name], turns[other.name]
        cuda = self.scenario.device.type == "cuda"
        cpu = spread([turn.cpu for turn in theirs], [turn.cpu for turn in mine])["ratio"]
        seconds = [turn.seconds for turn in mine]
        return Figure(
            one.name,
            other.name,
            images_per_second=self.scenario.recipe.schedule.batch / statistics.median(seconds),
            cpu_ratio=None if cuda else cpu,
            memory_gib=max(turn.memory for turn in mine) / 2**30 if cuda else self.memory(one.way),
            first_loss=one.loss,
            problem="",
            **spread([turn.seconds for turn in theirs], seconds),
        )


def measure(
    scenario: Scenario,
    settings: Settings,
    *,
    compiled: bool = False,
    alone: bool = True,
    memory: Callable[[Way | None], float | None] = lambda _way: None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure ours beside the published script, then each difference alone; return plain data.

    `memory` measures GiB where the device does not tell. Raises ValueError where two ways differ in their
    first loss.
    """
    recipe, began, counted = scenario.recipe, os.getloadavg()[0], flops.count(scenario)
    comparison = Comparison(scenario, settings, memory, say)
    mine = ours(recipe, compiled=compiled)
    script = comparison.load(SCRIPT, None)
    figures = comparison.beside(OURS, mine, script)[::-1]
    breakdowns = {}
    if alone:
        figures += comparison.beside(ALL_OFF, PLAIN, script)[:1]
        del script
        for name, way, kind in ((OURS, mine, "without"), (ALL_OFF, PLAIN, "only")):
            candidate = comparison.load(name, way)
            figures += comparison.each_alone(kind, candidate, mine.names())
            breakdowns[name] = comparison.profile(candidate.run)
            del candidate
    per_peak = counted.needed / comparison.matmul_peak
    return {
        "recipe": recipe.name,
        "networks": scenario.networks,
        "precision": recipe.precision,
        "batch": recipe.schedule.batch,
        "micro_batch": recipe.schedule.micro_batch,
        "resolution": scenario.pixels.shape[-1],
        "rounds": settings.rounds,
        "steps": settings.steps,
        # Floating-point operations per image; published: with VAE, text encoder and a second forward pass.
        "flops_needed": counted.needed,
        "flops_published": counted.done(None),
        # Floating-point operations, and bytes read and written, per second.
        "matmul_peak": comparison.matmul_peak,
        "copy_peak": comparison.copy_peak,
        **machine.facts(str(scenario.device), LIBRARIES, began),
        "figures": [asdict(replace(each, peak_share=each.images_per_second * per_peak)) for each in figures],
        "breakdowns": breakdowns,
    }


def resident_gib(way: Way | None, recipe: str, size: Size, overrides: Sequence[str]) -> float:
    """Return the most that is resident during two steps on the CPU; for a process of its own.

    What the interpreter and the libraries take is not counted.
    """
    base = machine.resident()[0]
    run = start(way, open_scenario(recipe, size=size, device=torch.device("cpu"), overrides=overrides))
    machine.forget_peak()
    for _ in range(2):
        run.step()
    return (machine.resident()[1] - base) / 2**30
