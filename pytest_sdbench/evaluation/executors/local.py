"""Make shards on this machine: in this process, and on several GPUs in a process for each."""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait

from pytest_sdbench.base.environment import devices_of
from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.base.part import Part
from pytest_sdbench.evaluation.engine import Work
from pytest_sdbench.evaluation.executors import static
from pytest_sdbench.evaluation.job import Job
from pytest_sdbench.store.shards import Evidence


class FewerProcesses(UserWarning):
    """Images that were made by fewer processes than there are GPUs."""


def make(job: Job, evidence: Evidence, *, count: Callable[[int], object]) -> Work:
    """Make what a job lacks, and return what was drawn; raises as `Maker.make` does.

    A job that is tied to this process (`Job.tie`) has one GPU, and a warning says why. Where a process dies
    or fails and others make up for it, there is a warning, too.
    """
    devices = devices_of(job.workspace.device)
    if len(devices) > 1 and (tie := job.tie):
        warnings.warn(f"{job.title}: one GPU of {len(devices)} draws: {tie}", FewerProcesses, stacklevel=2)
    elif len(devices) > 1 and len(job.gaps) > 1:
        return _in_processes(job, devices, count)
    return static.make(job, evidence, count=count, elsewhere=count)


def _in_processes(job: Job, devices: list[str], count: Callable[[int], object]) -> Work:
    """Have a process for each device make its part. One that dies is made up for by the others."""
    context = multiprocessing.get_context("spawn")  # CUDA does not live through a fork
    children = {}
    drawn, errors = [], list[BaseException]()
    try:
        for rank, device in enumerate(devices):
            here, there = context.Pipe(duplex=False)
            part = Part(rank, len(devices), rank, len(devices))
            child = context.Process(target=_child, args=(job.on(device, part=part), there), daemon=True)
            child.start()
            there.close()
            children[here] = child, device
        while children:
            for end in wait(list(children)):
                assert isinstance(end, Connection)
                try:
                    said = end.recv()
                except EOFError:
                    child, device = children.pop(end)
                    child.join()
                    if child.exitcode:
                        errors.append(_death(device, child.exitcode))
                    continue
                if isinstance(said, int):
                    count(said)
                elif isinstance(said, Work):
                    drawn.append(said)
                else:
                    errors.append(said)
    finally:
        for child, _ in children.values():
            child.terminate()
    if errors and not drawn:
        raise errors[0]
    for error in errors:
        warnings.warn(f"{job.title}: the others made up for it: {error}", FewerProcesses, stacklevel=3)
    return Work(sum(work.images for work in drawn), max(work.seconds for work in drawn))


def _child(job: Job, parent: Connection) -> None:
    """Make one part; tell the parent of images as they are made, and at the end what was drawn or failed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends this process
    job.workspace.part.share_cores()
    try:
        parent.send(static.make(job, job.evidence(), count=parent.send))
    except Exception as error:  # raised by the parent, or told where the others made up for it
        parent.send(error)


def _death(device: str, status: int) -> SdbenchError:
    """Return the error of a process that ended without a word."""
    how = f"signal {-status}" if status < 0 else f"status {status}"
    what = f"the process that drew on {device} ended with {how}"
    return SdbenchError(what, remedy="Look for what the system says: memory is the usual reason")
