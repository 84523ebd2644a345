"""Make shards as one worker of a Ray cluster: an actor with one pipeline, which stays loaded."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_sdbench.base.environment import device_name, release_memory, versions
from pytest_sdbench.base.errors import CheckpointError, EvidenceError, SdbenchError, first_line
from pytest_sdbench.evaluation.executors.crew import Report, Station
from pytest_sdbench.evaluation.job import Job
from pytest_sdbench.evaluation.maker import Maker
from pytest_sdbench.store.shards import Evidence

IDLE = 1.0
"""Seconds without another shard after which what was begun is finished, and errors of it come out."""
SEEN = 40.0
"""Seconds that a shared disk may take to show a file that another host has just written."""


@dataclass(frozen=True)
class Order:
    """A job as the driver sends it: once, to all workers."""

    job: Job
    checkpoint: str
    """Fingerprint of the driver's checkpoint."""
    manifest: str
    """A file that the driver has written to the folder of the evidence."""


@dataclass(eq=False)
class _Wish:
    """A shard that the driver asks for."""

    order: Any
    images: range
    report: Future[Report] = field(default_factory=Future)


class RayWorker:
    """What runs in the process of an actor: calls wait in threads of their own, and one thread works."""

    def __init__(self, device: str) -> None:
        self._device = "cuda:0" if device == "cuda" else device  # Ray shows a worker its own GPU alone
        self._wishes: queue.Queue[_Wish | None] = queue.Queue()
        """What is asked for; None: nothing more."""
        self._stopped = threading.Event()
        self._next: _Wish | None = None
        """One that was taken from the queue and belongs to another job."""
        self._begun: dict[range, _Wish] = {}
        self._maker: tuple[Any, Maker] | None = None
        self._thread = threading.Thread(target=self._run, name="sdbench-worker", daemon=True)
        self._thread.start()

    def tell(self) -> Station:
        """Say where this is, and what computes."""
        return Station(socket.gethostname(), device_name(self._device), versions(), os.getpid())

    def make(self, order: list[Any], images: range) -> Report:
        """Make a shard after those that were asked for before, and return when it is whole in the store.

        `order` holds a reference to an `Order`, so that it is fetched once.
        """
        wish = _Wish(order[0], images)
        self._wishes.put(wish)
        return wish.report.result()

    def stop(self) -> None:
        """End the thread when it has made what it has begun."""
        self._stopped.set()
        self._wishes.put(None)
        self._thread.join()

    def _run(self) -> None:
        """Work until it is stopped."""
        import torch

        if self._device == "cpu":  # as many as Ray was asked for, whatever the node's environment says
            torch.set_num_threads(1)
        while not self._stopped.is_set() and (wish := self._take(None)) is not None:
            report = Report()
            self._begun[wish.images] = wish  # answered whatever happens, before the first shard, too
            try:
                self._maker_of(wish.order).make(self._shards(wish), done=self._done)
            except SdbenchError as error:
                self._maker, report = None, Report(error=error)
            except BaseException as error:
                self._maker, report = None, Report(fault=_told(error))
            for images in list(self._begun):
                self._begun.pop(images).report.set_result(report)
            del wish

    def _take(self, seconds: float | None) -> _Wish | None:
        """Return the next wish; None where there is none for so long, or never again."""
        wish, self._next = self._next, None
        try:
            wish = wish or self._wishes.get(timeout=seconds)
        except queue.Empty:
            return None
        return wish

    def _shards(self, first: _Wish) -> Iterator[range]:
        """Yield shards of one job as they are asked for, until another job's, or nothing, comes."""
        wish: _Wish | None = first
        while wish is not None:
            if wish.order != first.order:
                self._next = wish
                return
            self._begun[wish.images] = wish
            yield wish.images
            wish = self._take(IDLE)

    def _done(self, images: range) -> None:
        self._begun.pop(images).report.set_result(Report())

    def _maker_of(self, reference: Any) -> Maker:
        """Return the maker of a job, which stays until another job comes."""
        if self._maker is None or self._maker[0] != reference:
            import ray

            self._maker = None
            release_memory(self._device)
            self._maker = reference, open_maker(ray.get(reference), self._device)
        return self._maker[1]


def open_maker(order: Order, device: str, *, patience: float = SEEN) -> Maker:
    """Return what makes a job's images here, having checked that store and checkpoint are the driver's.

    Raises EvidenceError and CheckpointError where they are not.
    """
    job = order.job.on(device)
    tuning = replace(job.tuning, workers=1, keep_memory=True) if device == "cpu" else job.tuning
    # A copy: what the driver knows of its files is not known here.
    job = replace(job, tuning=tuning, checkpoint=replace(job.checkpoint))
    here = f"on {socket.gethostname()}"
    if job.checkpoint.fingerprint != order.checkpoint:
        what = f"the checkpoint {here} is another one than the driver's"
        remedy = "Give every node the same files: a shared folder, or one HF_HOME for all"
        raise CheckpointError(
            what, file=job.checkpoint.folder, found=job.checkpoint.fingerprint, remedy=remedy
        )
    evidence = job.evidence()
    if not _is_there(evidence, order.manifest, patience):
        what = f"the store {here} is another one than the driver's, which has {order.manifest} in it"
        remedy = "Give --sdbench-store a bucket, or a folder that all nodes share"
        raise EvidenceError(what, file=evidence.folder, remedy=remedy)
    return Maker(job, evidence)


def _is_there(evidence: Evidence, name: str, patience: float) -> bool:
    """Return whether a file of the driver's is in the folder, or comes to be; lists what is there, too."""
    end = time.monotonic() + patience
    while name not in evidence.shards.listing().files:
        if time.monotonic() > end:
            return False
        time.sleep(min(1.0, patience))
    return True


def _told(error: BaseException) -> str:
    """Return what an exception says, and where it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first_line(error)}{place}"
