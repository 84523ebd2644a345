"""Time a recipe's training step beside the published script's, and each of our speed-ups alone."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks import machine
from benchmarks.report import paragraphs, table
from benchmarks.training.scenario import Scenario
from benchmarks.training.ways import PLAIN, Run, Way, move, ours, start
from benchmarks.turns import spread, take_turns
from pytest_sdbench.base.environment import synchronise

SCRIPT, OURS, ALL_OFF = "published script", "ours", "ours, all off"
LIBRARIES = ("torch", "diffusers", "accelerate")


@dataclass(frozen=True)
class Candidate:
    """A way that is loaded and has taken its first steps."""

    name: str
    way: Way | None
    run: Run
    loss: float


class Comparison:
    """The ways of one scenario; their first losses must agree, else they would not be the same step.

    Images per second are the median over the rounds, ratios those of neighbours in time.
    """

    def __init__(self, scenario: Scenario, rounds: int, steps: int) -> None:
        self.scenario, self.rounds, self.steps = scenario, rounds, steps
        # On CUDA two ways do not fit the device: whose turn it is not waits in the host's memory.
        self.cuda = scenario.device.type == "cuda"
        self._loss: float | None = None

    def load(self, name: str, way: Way | None) -> Candidate:
        """Make a way ready; raises ValueError where its first loss is another than the first way's."""
        run = start(way, self.scenario)
        run.step()  # allocates the optimiser's states, and compiles
        loss = run.losses["loss"]
        wanted = self._loss = loss if self._loss is None else self._loss
        tolerance = 1e-4 if self.scenario.half == torch.float32 else 1e-2
        if abs(loss - wanted) > tolerance * abs(wanted):
            raise ValueError(f"the first loss is {loss} and not {wanted}: these are not the same steps")
        run.step()
        if self.cuda:
            move(run, "cpu")
        return Candidate(name, way, run, loss)

    def beside(self, name: str, way: Way, other: Candidate) -> list[dict[str, Any]]:
        """Time a way turn by turn with another; return its figure, then the other's."""
        try:
            one = self.load(name, way)
            ways = {each.name: partial(self._turn, each.run) for each in (one, other)}
            turns = take_turns(ways, self.rounds)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return [{"name": name, "reference": other.name, "problem": "does not fit the device"}]
        figures = [self._figure(each, other, turns) for each in (one, other)]
        print(f"{self.scenario.recipe.name}: {name} {figures[0]['ratio']:.2f} of {other.name}")
        return figures

    def _turn(self, run: Run) -> float:
        """Return the seconds of a step, with the device idle before and after."""
        if self.cuda:
            move(run, self.scenario.device)
            run.step()
        synchronise(str(self.scenario.device))
        began = time.perf_counter()
        for _ in range(self.steps):
            run.step()
        synchronise(str(self.scenario.device))
        seconds = time.perf_counter() - began
        if self.cuda:
            move(run, "cpu")
        return seconds / self.steps

    def _figure(self, one: Candidate, other: Candidate, turns: dict[str, list[float]]) -> dict[str, Any]:
        return {
            "name": one.name,
            "reference": other.name,
            "images_per_second": self.scenario.recipe.schedule.batch / statistics.median(turns[one.name]),
            **spread(turns[other.name], turns[one.name]),
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
) -> dict[str, Any]:
    """Measure ours beside the published script, then each difference alone; return plain data.

    `speed_ups` are those that are switched alone; None: all that are on in ours.
    Raises ValueError where two ways differ in their first loss.
    """
    recipe, began = scenario.recipe, os.getloadavg()[0]
    comparison = Comparison(scenario, rounds, steps)
    mine = ours(recipe, compiled=compiled)
    script = comparison.load(SCRIPT, None)
    figures = comparison.beside(OURS, mine, script)[::-1]
    figures += comparison.beside(ALL_OFF, PLAIN, script)[:1]
    del script
    for name, way, kind in ((OURS, mine, "without"), (ALL_OFF, PLAIN, "only")):
        candidate = comparison.load(name, way)
        # Beside itself `without` each speed-up, or with each of them as its `only` one.
        for one in mine.names() if speed_ups is None else speed_ups:
            changed = replace(way, **{one: kind == "only"})
            figures += comparison.beside(f"{kind} {one}", changed, candidate)[:1]
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


def report(content: Mapping[str, Any]) -> str:
    """Return the whole file: a section for each recipe."""
    sections = [piece for result in content["results"] for piece in section(result)]
    return paragraphs("# Throughput of a training step", *sections)


def section(result: Mapping[str, Any]) -> list[str]:
    """Return the pieces of one recipe."""
    return [
        f"## {result['recipe']}",
        "{device}; {precision}; {networks}. Batch {batch} in parts of {micro_batch}, {resolution} px. "
        "{rounds} rounds of {steps} steps. ".format_map(result)
        + machine.libraries_and_load(result),
        table(
            result["figures"],
            [
                ("way", "{name}"),
                ("beside", "{reference}"),
                ("images/s", lambda row: row["problem"] or f"{row['images_per_second']:.1f}"),
                ("ratio", "{ratio:.2f}"),
                ("low", "{lowest:.2f}"),
                ("high", "{highest:.2f}"),
                ("first loss", "{first_loss:.5f}"),
            ],
        ),
    ]
