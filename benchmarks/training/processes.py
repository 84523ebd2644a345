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
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class Layout:
    """One way on all cores."""

    name: str
    published: bool
    processes: int
    threads: int


class Group:
    """The processes of one layout, loaded, waiting for their turn."""

    def __init__(self, layout: Layout, recipe: str, overrides: Sequence[str], steps: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        several = {"WORLD_SIZE": str(layout.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self._workers = []
        for rank in range(layout.processes):
            environment = {"OMP_NUM_THREADS": str(layout.threads)}
            if layout.processes > 1:
                environment |= {**several, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            arguments = (recipe, overrides, steps, layout.published)
            self._workers.append(Worker(start_steps, *arguments, environment=environment))
        for worker in self._workers:
            worker.result()

    def __call__(self) -> float:
        """Let the processes take their steps; return the seconds until the last one is done."""
        began = time.perf_counter()
        for worker in self._workers:
            worker.go()
        for worker in self._workers:
            worker.result()
        return time.perf_counter() - began

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()


def start_steps(recipe: str, overrides: Sequence[str], steps: int, published: bool) -> Callable[[], None]:
    """Load one process of a group, and return what takes its steps."""
    scenario = open_scenario(recipe, device=torch.device("cpu"), overrides=overrides)
    run = start(None if published else ours(scenario.recipe, compiled=False), scenario)

    def take(count: int = steps) -> None:
        for _ in range(count):
            run.step()

    take(2)
    return take


def measure(
    recipe: str, overrides: Sequence[str], *, cores: int, rounds: int, steps: int
) -> list[dict[str, Any]]:
    """Let the layouts take turns, first forwards, then backwards; ratios are to the published script."""
    batch = load_recipe(recipe, overrides).schedule.batch
    layouts = [
        Layout(SCRIPT, True, 1, cores),
        Layout("ours", False, 1, cores),
        Layout("ours, a process for each core", False, cores, 1),
    ]
    groups = {layout.name: Group(layout, recipe, overrides, steps) for layout in layouts}
    try:
        seconds = take_turns(groups, rounds, show="{:.2f} s".format)
    finally:
        for group in groups.values():
            group.close()
    return [
        {
            "layout": asdict(layout),
            "images_per_second": batch * steps / statistics.median(seconds[layout.name]),
            **spread(seconds[SCRIPT], seconds[layout.name]),
        }
        for layout in layouts
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
    parser = options.parser("training.processes", __doc__)
    parser.add_argument("--recipe", default="scenes-tiny", help="[%(default)s]")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
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
