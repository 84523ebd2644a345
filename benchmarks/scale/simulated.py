"""Measure the driver alone: many workers that sleep as long as a GPU takes, in four processes at most."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from benchmarks import machine
from pytest_sdbench.base.workspace import Pool
from pytest_sdbench.evaluation.executors.crew import Crew, Report, Station
from pytest_sdbench.evaluation.executors.dispatch import Dispatch
from pytest_sdbench.evaluation.executors.ray import Cluster, cluster_of
from pytest_sdbench.store.shard_folder import in_grid
from pytest_sdbench.store.shard_format import SHARD

PROCESSES = 4
SPREAD = 0.3
"""By what part GPUs are faster or slower than the middle one."""


class Sleepers:
    """Workers that make no image: each sleeps over one shard after the other."""

    def __init__(self) -> None:
        self._busy: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def tell(self) -> Station:
        """Say where this is."""
        return Station("here", "none", {})

    async def make(self, number: int, seconds: float) -> Report:
        """Sleep as long as a worker takes for a shard."""
        async with self._busy[number]:
            await asyncio.sleep(seconds)
        return Report()


@dataclass(frozen=True, eq=False)
class Sleeper:
    """One of them, as the driver sees it."""

    actor: Any
    number: int
    seconds: float

    def tell(self) -> Any:
        return self.actor.tell.remote()

    def make(self, job: Any, images: range) -> Any:
        return self.actor.make.remote(self.number, self.seconds)

    def dismiss(self) -> None:
        """Leave its process to the others."""


def drive(workers: int, shards: int, seconds: float) -> dict[str, Any]:
    """Have sleepers make so many shards each, and tell what it took of this process, the driver.

    `seconds` is what the middle one takes for a shard. Memory and time are counted from when all have started
    and the first tenth is made.
    """
    cluster = cluster_of(Pool())
    hosts = [
        cluster.ray.remote(num_cpus=0, max_concurrency=1000)(Sleepers).remote()
        for _ in range(min(PROCESSES, workers))
    ]
    rng, hired = random.Random(0), list[Sleeper]()

    def hire() -> Sleeper:
        own = seconds * rng.uniform(1 - SPREAD, 1 + SPREAD)
        hired.append(Sleeper(hosts[len(hired) % len(hosts)], len(hired), own))
        return hired[-1]

    crew = Crew(hire, cluster.answers, room=lambda: workers, wanted=lambda: "nothing")
    figures = _watched(cluster, crew, workers * shards)
    crew.close()
    for host in hosts:
        cluster.ray.kill(host)
    # What all could do without a driver: each its own shards a second.
    most = SHARD * sum(1 / each.seconds for each in hired)
    return {"workers": workers, "seconds": seconds, "most": most, **figures}


def _watched(cluster: Cluster, crew: Crew, shards: int) -> dict[str, Any]:
    """Return images a second, share of a core and growth in bytes, without the first and the last tenth."""
    dispatch, done, marks = Dispatch([list(in_grid(SHARD * shards))]), 0, []

    def count(images: int) -> None:
        nonlocal done
        done += 1
        if done in (shards // 10, shards - shards // 10):
            marks.append((time.monotonic(), time.process_time(), machine.resident()[0], done))

    order = [cluster.ray.put("nothing")]
    list(crew.work(dispatch, [order], count=count))
    (began, cpu, base, first), (ended, spent, most, last) = marks
    return {
        "shards": shards,
        "rate": SHARD * (last - first) / (ended - began),
        "core": (spent - cpu) / (ended - began),
        "growth": max(most, machine.resident()[0]) - base,
        "base": base,
    }
