"""Measure a training step on all cores: `python -m benchmarks.training.processes --recipe scenes-tiny`.

A small network gains little from a second thread: most of its kernels are over before the threads have met.
One process for each core, their gradients averaged, uses the cores better, and is the same training. Three
groups of processes stay loaded side by side and take turns, so that all see the same machine: the published
script as it is run, in one process with a thread for each core; our loop in the same form; our loop with a
process for each core.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, options
from benchmarks.report import RESULTS, paragraphs, save, table
from benchmarks.training.compare import LIBRARIES, SCRIPT
from benchmarks.training.scenario import open_scenario
from benchmarks.training.ways import ours, start
from benchmarks.turns import Worker, spread, take_turns
from training.recipes.load import load_recipe


def start_group(name: str, processes: int, threads: int, *how: Any) -> list[Worker]:
    """Load the processes of one way; return them when they are ready for their turn."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"OMP_NUM_THREADS": str(threads)}
    if processes > 1:
        common |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    workers = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        workers.append(Worker(start_steps, name == SCRIPT, *how, environment=common | own))
    for worker in workers:
        worker.loaded.result()
    return workers


def start_steps(published: bool, recipe: str, overrides: Sequence[str], steps: int) -> Callable[[], None]:
    """Load one process of a group, and return what takes its steps."""
    scenario = open_scenario(recipe, device=torch.device("cpu"), overrides=overrides)
    run = start(None if published else ours(scenario.recipe, compiled=False), scenario)

    def take(count: int = steps) -> None:
        for _ in range(count):
            run.step()

    take(2)
    return take


def take_turn(workers: Sequence[Worker]) -> float:
    """Let the processes of a group take their steps; return the seconds until the last one is done."""
    began = time.perf_counter()
    for turn in [worker.begin() for worker in workers]:
        turn.result()
    return time.perf_counter() - began


def measure(
    recipe: str, overrides: Sequence[str], *, cores: int, rounds: int, steps: int
) -> list[dict[str, Any]]:
    """Let the ways take turns, first forwards, then backwards; ratios are to the published script."""
    batch = load_recipe(recipe, overrides).schedule.batch
    layouts = {
        SCRIPT: {"processes": 1, "threads": cores},
        "ours": {"processes": 1, "threads": cores},
        "ours, a process for each core": {"processes": cores, "threads": 1},
    }
    groups = {}
    with ExitStack() as ending:
        for name, layout in layouts.items():
            groups[name] = start_group(name, *layout.values(), recipe, overrides, steps)
            for worker in groups[name]:
                ending.callback(worker.close)
        ways = {name: partial(take_turn, group) for name, group in groups.items()}
        seconds = take_turns(ways, rounds, show="{:.2f} s".format)
    return [
        {
            "layout": {"name": name, **layout},
            "images_per_second": batch * steps / statistics.median(seconds[name]),
            **spread(seconds[SCRIPT], seconds[name]),
        }
        for name, layout in layouts.items()
    ]


def report(found: Mapping[str, Any]) -> str:
    """Return the table as Markdown."""
    return paragraphs(
        f"# A training step of {found['recipe']} on all cores",
        f"`{found['command']}`",
        f"{found['device']}, {found['cores']} cores, {found['rounds']} rounds of {found['steps']} steps; "
        f"ours has latents and text states cached. {machine.libraries_and_load(found)}",
        table(
            found["rates"],
            [
                ("way", "{layout[name]}"),
                ("processes x threads", "{layout[processes]} x {layout[threads]}"),
                ("images/s", "{images_per_second:.1f}"),
                ("ratio", "{ratio:.2f}"),
                ("of all rounds", "{lowest:.2f} to {highest:.2f}"),
            ],
        ),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = options.parser("training.processes", __doc__, "--set")
    parser.add_argument("--recipe", default="scenes-tiny", help="[%(default)s]")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="[%(default)s]")
    parser.add_argument("--rounds", type=int, default=11, help="turns of each way [%(default)s]")
    parser.add_argument("--steps", type=int, default=4, help="steps of one turn [%(default)s]")
    parser.add_argument("--out", type=Path, default=RESULTS / "training-processes")
    asked = options.parse(parser, arguments)
    options.check(parser, "cpu", asked.cores, asked.rounds, asked.steps)
    began, how = os.getloadavg()[0], {"cores": asked.cores, "rounds": asked.rounds, "steps": asked.steps}
    rates = measure(asked.recipe, asked.set, **how)
    found = {
        "command": options.command("training.processes", arguments),
        "recipe": asked.recipe,
        "overrides": asked.set,
        **machine.facts("cpu", LIBRARIES, began),
        **how,
        "rates": rates,
    }
    save(asked.out, found, report(found))
    print(report(found))


if __name__ == "__main__":
    main()
