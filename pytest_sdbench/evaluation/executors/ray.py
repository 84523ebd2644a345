"""Make shards on the workers of a Ray cluster: a pipeline on each GPU, or on each core of a CPU.

Ray starts and watches the workers; it is imported by nobody who does not ask for it. All jobs of a call share
one pool, and the pool lives until `close`.
"""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pytest_sdbench.base.errors import EvidenceError, SdbenchError, Unavailable, first_line
from pytest_sdbench.base.progress import Progress
from pytest_sdbench.base.workspace import Pool
from pytest_sdbench.evaluation.executors.crew import Crew
from pytest_sdbench.evaluation.executors.dispatch import Breakdown, Dispatch, Shard
from pytest_sdbench.evaluation.job import Job

_QUIET = {"RAY_DEDUP_LOGS_SKIP_REGEX": "^A worker died or was killed"}
"""Ray prints it to the standard output; what becomes of a worker's shards is said here."""
_OWN = {
    # A cluster of this machine alone is nobody's business, and its workers need no copy of the project.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_worker_register_timeout_seconds": "300",  # a busy machine imports torch for minutes
}
_STARTS = 5
"""Times that a cluster of this machine is started: a busy one may miss the 15 seconds that Ray gives it."""
_OBJECTS = 100 << 20
"""Bytes of memory for what Ray passes on: orders alone, which are small."""


@dataclass
class Cluster:
    """A connection to a cluster."""

    pool: Pool
    ray: Any
    """The library."""
    own: bool
    """Whether it was started for this process, and ends with it."""
    crews: dict[str, Crew] = field(default_factory=dict)
    """By device: workers stay from one call to the next."""

    def device(self, asked: str) -> str:
        """Return the device that workers compute on: of `auto` a GPU where the cluster has one.

        Raises EvidenceError for a device that workers cannot be asked for.
        """
        kind, _, index = asked.partition(":")
        if kind == "auto":
            return "cuda" if self.ray.cluster_resources().get("GPU") else "cpu"
        if kind not in ("cpu", "cuda") or index:
            what, remedy = "workers of a cluster are asked for by kind", "Give auto, cuda or cpu"
            raise EvidenceError(what, key="--device", found=asked, remedy=remedy)
        return kind

    def crew(self, device: str) -> Crew:
        """Return the workers of a device; raises EvidenceError where this machine can have none."""
        if device not in self.crews:
            needs = _needs(self.pool, device)
            worker = _actor(self.ray, device, needs)
            crew = Crew(
                hire=lambda: _Actor(self.ray, worker.remote(device)),
                wait=self.answers,
                room=lambda: sum(_fits(node["Resources"], needs) for node in self._nodes()),
                wanted=lambda: self._wanted(needs),
                most=self.pool.workers,
                mixed=self.pool.mixed,
            )
            if self.pool.address == "local" and not crew.room():
                remedy = "Ask for less, or give the address of a cluster: --ray ADDRESS"
                raise EvidenceError(self._wanted(needs), key="--ray", remedy=remedy)
            self.crews[device] = crew
        return self.crews[device]

    def close(self) -> None:
        """End the workers, and the cluster if it is this process's own."""
        for crew in self.crews.values():
            crew.close()
        self.crews.clear()
        if self.own and self.ray.is_initialized():
            self.ray.shutdown()

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def answers(self, calls: Sequence[Any], seconds: float) -> Iterator[tuple[Any, object]]:
        """Yield the calls that are answered by then, all that are at once; an answer may be an exception."""
        if not calls:
            time.sleep(seconds)
            return
        ready, _ = self.ray.wait(calls, num_returns=len(calls), timeout=seconds)
        for call in ready:
            try:
                yield call, self.ray.get(call)
            except self.ray.exceptions.RayError as error:
                yield call, error

    def _wanted(self, needs: dict[str, float]) -> str:
        nodes, free = self._nodes(), self.ray.available_resources()
        there = {key: sum(node["Resources"].get(key, 0) for node in nodes) for key in ("CPU", "GPU")}
        has = ", ".join(f"{count:g} {key} ({free.get(key, 0):g} free)" for key, count in there.items())
        takes = ", ".join(f"{count:g} {key}" for key, count in needs.items())
        return f"a worker takes {takes}; the cluster has {has} on {len(nodes)} nodes"


_clusters: dict[Pool, Cluster] = {}


def cluster_of(pool: Pool | None) -> Cluster:
    """Return the connection to a pool's cluster, which is made once and stays until `close`.

    Raises Unavailable where Ray is not installed, EvidenceError for a cluster that does not answer.
    """
    assert pool is not None, "asked for by --ray alone"
    if pool not in _clusters:
        if not _clusters:
            atexit.register(close)
        _clusters[pool] = _connect(pool)
    return _clusters[pool]


def close() -> None:
    """End the workers of all pools; a cluster that was there before stays."""
    if not _clusters:
        return
    with _undisturbed():
        while _clusters:
            _clusters.popitem()[1].close()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let Ctrl-C, pressed again, not interrupt what ends the workers: it takes a second."""
    if threading.current_thread() is not threading.main_thread():  # others are not interrupted
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def make(jobs: Sequence[Job]) -> Iterator[tuple[int, int | SdbenchError]]:
    """Make what some jobs of one workspace lack, and yield of each, when it is done, its number and images.

    Of a job that cannot be made whole there is the reason in their place, when all else of it is made. Raises
    EvidenceError for what concerns all: no workers, or workers that differ.
    """
    later = list(enumerate(jobs))
    while later:
        folders = [(job.checkpoint.fingerprint, job.protocol.draw_fingerprint) for _, job in later]
        # Of two that want shards of one folder the second takes what the first has made.
        first = [folders.index(folder) == place for place, folder in enumerate(folders)]
        now = [each for each, is_first in zip(later, first, strict=True) if is_first]
        later = [each for each, is_first in zip(later, first, strict=True) if not is_first]
        for place, outcome in _make_together([job for _, job in now]):
            yield now[place][0], outcome


def _make_together(jobs: Sequence[Job]) -> Iterator[tuple[int, int | SdbenchError]]:
    """Do as `make` does, for jobs of which no two want the same shards."""
    from pytest_sdbench.evaluation.executors.ray_worker import Order

    workspace = jobs[0].workspace
    cluster = cluster_of(workspace.pool)
    crew, orders, missing = cluster.crew(workspace.device), [], []
    for job in jobs:
        evidence = job.evidence()
        evidence.prepare()
        order = Order(job, job.checkpoint.fingerprint, f"manifest-{evidence.writer}.json")
        orders.append([cluster.ray.put(order)])
        missing.append(evidence.left(job.missing))
    dispatch = Dispatch(missing)
    title = jobs[0].title if len(jobs) == 1 else f"{len(jobs)} draws"
    total = sum(len(images) for each in missing for images in each)
    with Progress(total, "images", title, shown=workspace.progress) as shower:
        for number in crew.work(dispatch, orders, count=shower.update, note=shower.note):
            yield number, _outcome(number, jobs[number], dispatch)


def _outcome(number: int, job: Job, dispatch: Dispatch) -> int | SdbenchError:
    if number in dispatch.failed:
        return dispatch.failed[number]
    lost = {shard: why for shard, why in dispatch.lost.items() if shard.job == number}
    if not lost:
        return dispatch.made[number]
    told = "; ".join(_loss(shard, why) for shard, why in lost.items())
    remedy = "All other images are in the store. Run again, or make these without a cluster to see more"
    return EvidenceError(f"given up: {told}", key=job.title, remedy=remedy)


def _loss(shard: Shard, why: Sequence[Breakdown]) -> str:
    died = sum(each.how == "died" for each in why)
    happened = [f"killed {died} workers"] * (died > 0)
    if len(why) > died:
        happened.append(f"raised {len(why) - died} exceptions")
    first, last = shard.images[0], shard.images[-1]
    return f"images {first} to {last} {' and '.join(happened)} ({why[-1].cause})"


def _connect(pool: Pool) -> Cluster:
    for name, value in ({**_QUIET, **_OWN} if pool.address == "local" else _QUIET).items():
        os.environ.setdefault(name, value)
    try:
        ray = importlib.import_module("ray")
    except ModuleNotFoundError:
        remedy = 'pip install "pytest-sdbench[ray]"'
        raise Unavailable("Ray is not installed", key="--ray", remedy=remedy) from None
    if ray.is_initialized():  # by the program that this is a part of
        return Cluster(pool, ray, own=False)
    local = pool.address == "local"
    own = {"include_dashboard": False, "object_store_memory": _OBJECTS} if local else {}
    for left in reversed(range(_STARTS if local else 1)):
        try:
            ray.init(pool.address, log_to_driver=False, logging_level="error", **own)
            break
        except Exception as error:  # it has no kind of its own for a cluster that does not answer
            ray.shutdown()
            if left:
                continue
            what = f"the cluster cannot be reached: {type(error).__name__}: {first_line(error)}"
            remedy = "Give the address of a running cluster, auto within one, or none for this machine alone"
            raise EvidenceError(what, key="--ray", found=pool.address, remedy=remedy) from error
    return Cluster(pool, ray, own=True)


def _needs(pool: Pool, device: str) -> dict[str, float]:
    """Return the resources of one worker."""
    return {"CPU": 1.0} if device == "cpu" else {"GPU": 1.0 if pool.gpus is None else pool.gpus}


def _fits(there: dict[str, float], needs: dict[str, float]) -> int:
    """Return how many workers a node has what they take; none has parts of two GPUs."""
    ((key, each),) = needs.items()
    amount = there.get(key, 0.0)
    return int(amount) * int(1 / each + 1e-9) if each < 1 else int(amount // each)


def _actor(ray: Any, device: str, needs: dict[str, float]) -> Any:
    """Return the kind of actor that workers are. Ray restarts none: who died over what is known here."""
    from pytest_sdbench.evaluation.executors.ray_worker import RayWorker

    return ray.remote(
        num_cpus=needs.get("CPU", 0),
        num_gpus=needs.get("GPU", 0),
        max_restarts=0,
        max_task_retries=0,
        max_concurrency=8,
    )(RayWorker)


@dataclass(frozen=True, eq=False)
class _Actor:
    """A worker that is an actor."""

    ray: Any
    actor: Any

    def tell(self) -> Any:
        return self.actor.tell.remote()

    def make(self, job: Any, images: range) -> Any:
        return self.actor.make.remote(job, images)

    def dismiss(self) -> None:
        self.ray.kill(self.actor)
