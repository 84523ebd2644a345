"""Measure a training step on all cores: `python -m benchmarks.training.processes --recipe scenes-tiny`.

A small network gains little from a second thread: most of its kernels are over before the threads have met.
One process for each core, their gradients averaged, uses the cores better, and is the same training. Three
groups of processes stay loaded side by side and take turns, so that all see the same machine: the published
script as it is run, in one process with a thread for each core; our loop in the same form; our loop with a
process for each core.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tabulate import tabulate

from benchmarks.report import RESULTS, ROOT


@dataclass(frozen=True)
class Layout:
    """One way on all cores."""

    name: str
    published: bool
    processes: int
    threads: int


@dataclass(frozen=True)
class Rate:
    """What a layout reached."""

    layout: Layout
    images_per_second: float
    ratio: float
    """Median over rounds of the first layout's seconds over this one's, of the same round."""
    lowest: float
    highest: float


class Group:
    """The processes of one layout, loaded, waiting for their turn."""

    def __init__(self, layout: Layout, recipe: str, overrides: Sequence[str], steps: int) -> None:
        self.layout = layout
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "benchmarks.training.processes",
            "--recipe",
            recipe,
            "--steps",
            str(steps),
        ]
        command += (
            [f"--set={value}" for value in overrides] + ["--worker"] + ["--published"] * layout.published
        )
        several = {"WORLD_SIZE": str(layout.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self._workers = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(layout.threads)}
                | ({**several, "RANK": str(rank), "LOCAL_RANK": str(rank)} if layout.processes > 1 else {}),
            )
            for rank in range(layout.processes)
        ]
        self._wait()

    def turn(self) -> float:
        """Let the processes take their steps; return the seconds until the last one is done."""
        began = time.perf_counter()
        for worker in self._workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        self._wait()
        return time.perf_counter() - began

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            assert worker.stdin is not None
            worker.stdin.close()
        for worker in self._workers:
            worker.wait()

    def _wait(self) -> None:
        for worker in self._workers:
            assert worker.stdout is not None
            if worker.stdout.readline() != "done\n":
                raise RuntimeError(f"a process of {self.layout.name!r} ended: its error stands above")


def work(recipe: str, overrides: Sequence[str], steps: int, *, published: bool) -> None:
    """Be one process of a group: load, then take steps whenever a line arrives on the standard input."""
    import torch

    from benchmarks.training.scenario import open_scenario
    from benchmarks.training.ways import ours, start

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    scenario = open_scenario(recipe, device=torch.device("cpu"), overrides=overrides)
    run = start(None if published else ours(scenario.recipe, compiled=False), scenario)
    for _ in range(2):
        run.step()
    print("done", flush=True)
    for _line in sys.stdin:
        for _ in range(steps):
            run.step()
        print("done", flush=True)


def measure(recipe: str, overrides: Sequence[str], *, cores: int, rounds: int, steps: int) -> list[Rate]:
    """Let the layouts take turns, first forwards, then backwards."""
    from training.recipes.load import load_recipe

    batch = load_recipe(recipe, overrides).schedule.batch
    layouts = [
        Layout("published script", True, 1, cores),
        Layout("ours", False, 1, cores),
        Layout("ours, a process for each core", False, cores, 1),
    ]
    groups = [Group(layout, recipe, overrides, steps) for layout in layouts]
    seconds: list[list[float]] = [[] for _ in groups]
    for number in range(rounds):
        for which in range(len(groups)) if number % 2 == 0 else reversed(range(len(groups))):
            seconds[which].append(groups[which].turn())
        print(
            f"round {number + 1} of {rounds}: " + ", ".join(f"{own[-1]:.2f} s" for own in seconds), flush=True
        )
    for group in groups:
        group.close()
    rates = []
    for layout, own in zip(layouts, seconds, strict=True):
        ratios = [first / mine for first, mine in zip(seconds[0], own, strict=True)]
        rate = batch * steps / statistics.median(own)
        rates.append(Rate(layout, rate, statistics.median(ratios), min(ratios), max(ratios)))
    return rates


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training.processes", description=__doc__)
    parser.add_argument("--recipe", default="scenes-tiny")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=4, help="steps of one turn")
    parser.add_argument("--out", type=Path, default=RESULTS / "training-processes")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--published", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        work(options.recipe, options.set, options.steps, published=options.published)
        return
    rates = measure(
        options.recipe, options.set, cores=options.cores, rounds=options.rounds, steps=options.steps
    )
    from importlib.metadata import version

    from pytest_sdbench.base.environment import device_name

    table = tabulate(
        [
            [
                rate.layout.name,
                f"{rate.layout.processes} x {rate.layout.threads}",
                f"{rate.images_per_second:.1f}",
                f"{rate.ratio:.2f}",
                f"{rate.lowest:.2f} to {rate.highest:.2f}",
            ]
            for rate in rates
        ],
        ["way", "processes x threads", "images/s", "ratio", "of all rounds"],
        tablefmt="github",
        disable_numparse=True,
    )
    facts = {
        "recipe": options.recipe,
        "overrides": options.set,
        "device": device_name("cpu"),
        "cores": options.cores,
        "rounds": options.rounds,
        "steps": options.steps,
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("torch", "diffusers", "accelerate")},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    content = {**facts, "rates": [asdict(rate) for rate in rates]}
    options.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    libraries = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    words = sys.argv[1:] if arguments is None else arguments
    text = (
        f"# A training step of {options.recipe} on all cores\n\n"
        f"`python -m benchmarks.training.processes {shlex.join(words)}`\n\n"
        f"{facts['device']}, {options.cores} cores, {options.rounds} rounds of {options.steps} steps; "
        f"ours has latents and text states cached. {libraries}. {facts['date']}, load average "
        f"{facts['load']:.1f}.\n\n"
        f"{table}\n"
    )
    options.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
