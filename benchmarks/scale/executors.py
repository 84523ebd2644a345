"""Measure the executors beside each other: `sample` as a command, timed by the files of its store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.turns import spread, take_turns
from pytest_sdbench.base.paths import reference
from pytest_sdbench.base.workspace import Pool, Workspace
from pytest_sdbench.evaluation.evidence import fulfil, request
from pytest_sdbench.evaluation.executors.ray import close, cluster_of
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.store.shard_format import SHARD

CARD, PROTOCOL = reference() / "cards" / "scenes-tiny-lcm.md", "scenes-lcm4-5k"
CHECKPOINT = {"base": "embedded:scenes-sd", "unet": "embedded:scenes-tiny-lcm"}
LOCAL = "local"


@dataclass(frozen=True)
class Turn:
    """One run of `sample`."""

    rate: float
    """Images a second between the first shard and the last."""
    startup: float
    """Seconds beside that: imports, loading, and what an executor starts."""


def compare(images: int, rounds: int, workers: int = 2) -> list[dict[str, Any]]:
    """Return the rate of each executor with so many workers, and its ratio to that of `local`."""
    ways = {
        LOCAL: partial(_sample, images, [["--workers", str(workers)]]),
        "static": partial(_sample, images, [["--part", f"{part + 1}/{workers}"] for part in range(workers)]),
        "ray": partial(_sample, images, [["--ray", "--ray-workers", str(workers)]]),
    }
    turns = take_turns(ways, rounds, lambda turn: f"{turn.rate:.1f} images/s")
    local = [turn.rate for turn in turns[LOCAL]]
    return [
        {
            "name": name,
            "images": images,
            "workers": workers,
            "rates": [turn.rate for turn in own],
            "startups": [turn.startup for turn in own],
            **spread(local, [turn.rate for turn in own]),
        }
        for name, own in turns.items()
    ]


def _sample(images: int, commands: Sequence[Sequence[str]]) -> Turn:
    """Make images in an empty store, in one process or several that share it."""
    with tempfile.TemporaryDirectory(prefix="sdbench-scale-") as store:
        words = ["sample", str(CARD), "--protocol", PROTOCOL, "--images", str(images), "--store", store]
        environment = {**os.environ} | ({"OMP_NUM_THREADS": "1"} if len(commands) > 1 else {})
        began = time.time()
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "pytest_sdbench", *words, "--device", "cpu", *more],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for more in commands
        ]
        if any([each.wait() for each in running]):
            raise SystemExit(f"sample {' '.join(commands[0])} failed: run it by hand")
        wall = time.time() - began
        ends = sorted(path.stat().st_mtime for path in Path(store).glob("*/shard-*"))
        rate = (images - SHARD) / (ends[-1] - ends[0])
        return Turn(rate, wall - images / rate)


def kill(images: int, workers: int = 2) -> dict[str, Any]:
    """Kill a worker at half of the images, and return after how many seconds it is known, and replaced."""
    marks: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="sdbench-scale-") as store:
        workspace = Workspace(store, None, "cpu", pool=Pool(workers=workers), progress=False)
        protocol = load_protocol(PROTOCOL).with_samples(images)
        asked = request(resolve(CHECKPOINT), protocol, workspace)
        crew = cluster_of(workspace.pool).crew("cpu")
        watch = threading.Thread(target=_watch, args=(crew, Path(store), images, marks), daemon=True)
        watch.start()
        outcomes = list(fulfil([asked]))
        watch.join(60)
        close()
    assert not isinstance(outcomes[0][1], Exception), outcomes
    killed = marks["killed"]
    return {
        "images": images,
        "workers": workers,
        "shard": marks["shard"],
        **{name: marks[name] - killed for name in ("known", "started", "made")},
    }


def _watch(crew: Any, store: Path, images: int, marks: dict[str, float]) -> None:
    """Kill the first worker when half is made, and note when what follows happens."""

    def until(ready: Callable[[], Any]) -> float:
        while not ready():
            time.sleep(0.02)
        return time.monotonic()

    def shards() -> int:
        return len(list(store.glob("*/shard-*")))

    until(lambda: len(crew.ready) == len(crew.workers) and shards() >= 2)
    began, before = time.monotonic(), shards()
    until(lambda: shards() * SHARD >= images / 2)
    marks["shard"] = len(crew.ready) * (time.monotonic() - began) / max(1, shards() - before)
    victim = crew.ready[0]
    marks["killed"] = time.monotonic()
    os.kill(victim.station.process, signal.SIGKILL)
    others = set(crew.workers) - {victim}
    marks["known"] = until(lambda: victim not in crew.workers)
    marks["started"] = until(lambda: set(crew.ready) - others)
    (new,) = set(crew.ready) - others
    marks["made"] = until(lambda: new.first is not None)
