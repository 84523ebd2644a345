"""Measure a recipe's training step beside the same step run the way the published script runs it.

`python -m benchmarks.training --recipe scenes-tiny`; benchmarks/README.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks import machine
from benchmarks.report import RESULTS
from benchmarks.training import flops
from benchmarks.training.breakdown import breakdown
from benchmarks.training.report import Figure, Result, text, write
from benchmarks.training.scenario import Scenario, Size, open_scenario
from benchmarks.training.ways import PLAIN, Run, Way, ours, start

TOLERANCE = {torch.float32: 1e-4}
"""How far the first loss may lie from the published script's, relative; half precision: 1e-2."""
SCRIPT = "published script"


@dataclass(frozen=True)
class Turn:
    """One timed window."""

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


class Peak:
    """The best that the machine showed in any round: other processes make it slower, never faster."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self.matmul = self.copy = 0.0

    def look(self) -> None:
        """Measure once more."""
        self.matmul = max(self.matmul, machine.matmul_peak(self._device, self._dtype, seconds=0.2))
        self.copy = max(self.copy, machine.copy_peak(self._device, seconds=0.1))


def turn(run: Run, device: torch.device, settings: Settings) -> Turn:
    """Time some steps, with the device idle before and after."""
    if settings.park:
        run.move(device)
        run.step()
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


def compare(
    first: Run, second: Run, device: torch.device, settings: Settings, peak: Peak
) -> tuple[list[Turn], list[Turn]]:
    """Time two runs turn by turn, AB BA AB, after a burn-in step of each."""
    turns: tuple[list[Turn], list[Turn]] = ([], [])
    for number in range(settings.rounds):
        peak.look()
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            turns[which].append(turn((first, second)[which], device, settings))
    return turns


def measure(
    scenario: Scenario,
    settings: Settings,
    *,
    compiled: bool = False,
    alone: bool = True,
    memory: Callable[[Way | None], float | None] = lambda _way: None,
    say: Callable[[str], None] = print,
) -> Result:
    """Measure ours beside the published script, then each difference alone.

    `memory` measures GiB where the device does not tell. Raises ValueError where two ways differ in their
    first loss: they would not be the same step.
    """
    recipe, device = scenario.recipe, scenario.device
    began, peak, counted = os.getloadavg()[0], Peak(device, scenario.half), flops.count(scenario)
    mine = ours(recipe, compiled=compiled)
    expected: list[float] = []

    def ready(way: Way | None) -> tuple[Run, float]:
        run = start(way, scenario)
        run.step()  # allocates the optimiser's states, and compiles
        loss = run.losses["loss"]
        expected.append(loss)
        tolerance = TOLERANCE.get(scenario.half, 1e-2)
        if abs(loss - expected[0]) > tolerance * abs(expected[0]):
            raise ValueError(f"the first loss is {loss} and not {expected[0]}: these are not the same steps")
        run.step()
        if settings.park:
            run.move("cpu")
        return run, loss

    def pair(
        name: str, way: Way, reference: str, other: tuple[Run, float], other_way: Way | None
    ) -> list[Figure]:
        try:
            run, loss = ready(way)
            turns, theirs = compare(run, other[0], device, settings, peak)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return [Figure(name, reference, 0, 0, 0, 0, None, None, 0, 0, problem="does not fit the device")]
        figures = [
            _figure(name, reference, turns, theirs, loss, scenario),
            _figure(reference, reference, theirs, theirs, other[1], scenario),
        ]
        say(f"{recipe.name}: {name} {figures[0].ratio:.2f} of {reference}")
        return [
            replace(figure, memory_gib=figure.memory_gib or memory(which))
            for figure, which in zip(figures, (way, other_way), strict=True)
        ]

    script = ready(None)
    headline = pair("ours", mine, SCRIPT, script, None)
    figures = [headline[1], headline[0]] if len(headline) == 2 else headline
    breakdowns = {}
    if alone:
        plain, fastest = "ours, all off", "ours"
        figures += pair(plain, PLAIN, SCRIPT, script, None)[:1]
        del script
        reference = ready(mine)
        for name in mine.names():
            figures += pair(f"without {name}", replace(mine, **{name: False}), fastest, reference, mine)[:1]
        breakdowns[fastest] = _profiled(reference[0], device, settings)
        del reference
        reference = ready(PLAIN)
        for name in mine.names():
            figures += pair(f"only {name}", replace(PLAIN, **{name: True}), plain, reference, PLAIN)[:1]
        breakdowns[plain] = _profiled(reference[0], device, settings)
    result = Result(
        recipe=recipe.name,
        networks=scenario.networks,
        device=machine.describe(device),
        precision=recipe.precision,
        batch=recipe.schedule.batch,
        micro_batch=recipe.schedule.micro_batch,
        resolution=scenario.pixels.shape[-1],
        rounds=settings.rounds,
        steps=settings.steps,
        flops_needed=counted.needed,
        flops_published=counted.done(None),
        matmul_peak=peak.matmul,
        copy_peak=peak.copy,
        versions={name: version(name) for name in ("torch", "diffusers", "accelerate")},
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        load=(began, os.getloadavg()[0]),
        figures=[
            replace(figure, peak_share=figure.images_per_second * counted.needed / peak.matmul)
            for figure in figures
        ],
        breakdowns=breakdowns,
    )
    return result


def resident_memory(arguments: Sequence[str]) -> Callable[[Way | None], float | None]:
    """Return a function that runs a way in a process of its own and tells the GiB that it takes there.

    That is the most that is resident during two steps, less what the interpreter and the libraries take.
    """

    def measured(way: Way | None) -> float | None:
        word = SCRIPT if way is None else ",".join(way.names())
        command = [sys.executable, "-m", "benchmarks.training", *arguments, "--memory-of", word]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        return float(json.loads(done.stdout.splitlines()[-1]))

    return measured


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--recipe", action="append", help="may be repeated; default: scenes-tiny")
    parser.add_argument("--full-size", action="store_true", help="random weights of Stable Diffusion v1.4")
    parser.add_argument(
        "--smoke", action="store_true", help="random weights of a few channels: only to see it run"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=2, help="steps of one turn")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each way")
    parser.add_argument("--compile", action="store_true", help="torch.compile is one of our speed-ups")
    parser.add_argument("--headline", action="store_true", help="not each difference alone")
    parser.add_argument("--memory", action="store_true", help="on a CPU: one more process for each way")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--note", default="", help="a sentence to stand above the tables")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/training-DEVICE")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.steps < 1:
        parser.error("--rounds and --steps have to be 1 or more")
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: give --device cpu")
    size: Size = "smoke" if options.smoke else "full" if options.full_size else "recipe"
    recipes = options.recipe or (["bk-sdm-base", "bk-sdm-tiny"] if options.full_size else ["scenes-tiny"])
    base = machine.resident()[0]
    results = []
    for name in recipes:
        scenario = open_scenario(name, size=size, device=device, overrides=options.set)
        if options.memory_of is not None:
            print(json.dumps(_peak_of(options.memory_of, scenario, base)))
            return
        child = ["--recipe", name, "--device", options.device, *(f"--set={value}" for value in options.set)]
        child += ["--smoke"] * options.smoke + ["--full-size"] * options.full_size
        result = measure(
            scenario,
            Settings(options.rounds, options.steps, park=device.type == "cuda"),
            compiled=options.compile,
            alone=not options.headline,
            memory=resident_memory(child) if options.memory and device.type == "cpu" else lambda _way: None,
        )
        print(text(result))
        results.append(result)
    out = options.out or RESULTS / f"training-{device.type}"
    for path in write(results, out, options.note):
        print(f"wrote {path}")


def _peak_of(word: str, scenario: Scenario, base: int) -> float:
    run = start(None if word == SCRIPT else Way.of(tuple(word.split(","))), scenario)
    machine.forget_peak()
    for _ in range(2):
        run.step()
    return (machine.resident()[1] - base) / 2**30


def _figure(
    name: str, reference: str, turns: list[Turn], theirs: list[Turn], loss: float, scenario: Scenario
) -> Figure:
    ratios = [other.seconds / one.seconds for one, other in zip(turns, theirs, strict=True)]
    cuda = scenario.device.type == "cuda"
    cpu = None if cuda else statistics.median(b.cpu / a.cpu for a, b in zip(turns, theirs, strict=True))
    return Figure(
        name,
        reference,
        images_per_second=scenario.recipe.schedule.batch / statistics.median(one.seconds for one in turns),
        ratio=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
        cpu_ratio=cpu,
        memory_gib=max(one.memory for one in turns) / 2**30 if cuda else None,
        peak_share=0.0,
        first_loss=loss,
    )


def _profiled(run: Run, device: torch.device, settings: Settings) -> dict[str, float]:
    if settings.park:
        run.move(device)
        run.step()
    found = breakdown(run, device)
    if settings.park:
        run.move("cpu")
    return found


if __name__ == "__main__":
    main()
