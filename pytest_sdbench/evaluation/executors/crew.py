"""Keep workers of a cluster busy: hire them, give them shards, hear what came of it, and replace the dead.

A worker is known by its `Handle`, whatever stands behind it. Every wait ends: where no worker can be had, or
none starts, that is an error with its reason, and one that makes no shard for very long is taken for dead.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pytest_sdbench.base.errors import EvidenceError, SdbenchError, cut
from pytest_sdbench.base.text import duration
from pytest_sdbench.evaluation.executors.dispatch import Breakdown, Dispatch, Shard

TICK = 0.2
"""Seconds for which what workers say is collected: at most so long one waits that has a single shard."""
LOOK = 3.0
"""Seconds after which the cluster is asked again what room it has."""
STARTS = 5
"""Workers that may die one after the other before any has started."""
SILENCE = 1800.0, 20.0
"""A worker that makes no shard for so many seconds, and so many times the longest one, is taken for dead."""
FIRST = 86400.0
"""Seconds that the first shard may take: compilers are slow, and so are processors with large networks."""


@dataclass(frozen=True)
class Station:
    """Where a worker is, and what makes its images."""

    host: str
    device: str
    versions: Mapping[str, str]
    process: int = 0
    """Its number on that host."""

    def setup(self) -> dict[str, str]:
        """Return what workers have to agree in."""
        return {"device": self.device, **self.versions}


@dataclass(frozen=True)
class Report:
    """What came of one shard."""

    error: SdbenchError | None = None
    """What no other try would help against."""
    fault: str = ""
    """What else went wrong; empty: the shard is whole in the store."""


class Handle(Protocol):
    """A worker, from far away. A call returns at once what `Crew.wait` knows to wait for."""

    def tell(self) -> Any:
        """Ask for the `Station`; there is no answer until the worker runs."""

    def make(self, job: Any, images: range) -> Any:
        """Ask for a shard; the answer is a `Report`."""

    def dismiss(self) -> None:
        """End the worker, at whatever it is."""


@dataclass(eq=False)
class Worker:
    """A worker as the driver knows it."""

    handle: Handle
    station: Station | None = None
    """None: it has not started yet."""
    since: float = 0.0
    """When it last said anything, or was given something to do."""
    first: float | None = None
    """When it made its first shard, from which its rate is counted."""
    images: int = 0
    """Made since then."""

    def rate(self, now: float) -> float | None:
        """Return its images a second; None where that is not known yet."""
        return self.images / (now - self.first) if self.first is not None and self.images else None


@dataclass
class Crew:
    """The workers that one pool has; they stay from one piece of work to the next."""

    hire: Callable[[], Handle]
    wait: Callable[[Sequence[Any], float], Iterable[tuple[Any, object]]]
    """Return, after so many seconds at most, the calls that are answered, with answers or exceptions."""
    room: Callable[[], int]
    """Return for how many workers the cluster has what one takes, whether or not others use it."""
    wanted: Callable[[], str]
    """Say what one worker takes and what the cluster has."""
    most: int | None = None
    """Workers at most; None: for as many as there is room."""
    mixed: bool = False
    """Whether workers may differ in device and versions."""
    patience: float = 900.0
    """Seconds to wait for a first worker, and for one after all are gone; clusters that grow take minutes."""
    clock: Callable[[], float] = time.monotonic
    workers: list[Worker] = field(default_factory=list)
    _calls: dict[Any, tuple[Worker, Shard | None, _Run | None]] = field(default_factory=dict, repr=False)
    _looked: float = field(default=-math.inf, repr=False)
    _failed_starts: int = field(default=0, repr=False)

    def work(
        self,
        dispatch: Dispatch,
        jobs: Sequence[Any],
        *,
        count: Callable[[int], object] = lambda images: None,
        note: Callable[[str], object] = lambda text: None,
    ) -> Iterator[int]:
        """Have everything made that can be, and yield the number of each job that is finished, or given up.

        `jobs` are given to workers as they are. `count` is told of images that are whole in the store, `note`
        how fast workers are, or what is waited for. Raises EvidenceError where no worker can be had, none
        starts, or two differ that must not. Whatever ends it early ends the workers.
        """
        run, unfinished = _Run(dispatch, count), list(range(len(jobs)))
        for worker in self.workers:
            worker.first, worker.images = None, 0
        try:
            while True:
                finished = [job for job in unfinished if dispatch.finished(job)]
                unfinished = [job for job in unfinished if job not in finished]
                yield from finished
                if not unfinished:
                    return
                self._fill(dispatch.left)
                waits = self._wait_for_room(run)
                for worker, shard in dispatch.give(self.ready):
                    if len(dispatch.held(worker)) == 1:
                        worker.since = self.clock()
                    self._calls[worker.handle.make(jobs[shard.job], shard.images)] = worker, shard, run
                for call, answer in self.wait(list(self._calls), TICK):
                    self._hear(call, answer, run)
                self._end_silent(run)
                note(waits or self.pace())
        except BaseException:
            self.close()
            raise

    @property
    def ready(self) -> list[Worker]:
        """The workers that have started."""
        return [worker for worker in self.workers if worker.station is not None]

    def close(self) -> None:
        """End all workers."""
        while self.workers:
            self.workers.pop().handle.dismiss()
        self._calls.clear()

    def pace(self) -> str:
        """Return how fast the workers are, in a few words; nothing where none has made two shards."""
        now = self.clock()
        rates = sorted(rate for worker in self.ready if (rate := worker.rate(now)) is not None)
        if not rates:
            return ""
        if len(rates) <= 4:
            return " + ".join(f"{rate:.3g}" for rate in reversed(rates)) + "/s"
        return f"{len(rates)} workers {sum(rates):,.4g}/s, {rates[0]:.3g} to {rates[-1]:.3g}"

    def _fill(self, shards: int) -> None:
        """Ask for as many workers as there is room and work for; those that have not started may go again."""
        if self.clock() - self._looked < LOOK:
            return
        self._looked = self.clock()
        # Where a number is asked for, those without room are asked for too: a cluster that can grow sees it.
        wanted = min(shards, self.most or max(1, self.room()))
        too_many = max(0, len(self.workers) - wanted)
        for worker in [each for each in self.workers if each.station is None][:too_many]:
            self._let_go(worker)
        while len(self.workers) < wanted:
            worker = Worker(self.hire(), since=self.clock())
            self.workers.append(worker)
            self._calls[worker.handle.tell()] = worker, None, None

    def _wait_for_room(self, run: _Run) -> str:
        """Return what is waited for, where there is no worker; raises EvidenceError after a while."""
        if self.ready:
            run.alone = None
            return ""
        run.alone = self.clock() if run.alone is None else run.alone
        waited = self.clock() - run.alone
        if waited > self.patience:
            what = f"no worker could be had in {duration(waited)}: {self.wanted()}"
            raise EvidenceError(what, key="--ray", remedy=_ROOM)
        return f"waiting for a worker: {self.wanted()}" if waited > 10 * LOOK else ""

    def _hear(self, call: Any, answer: object, run: _Run) -> None:
        if call not in self._calls:  # its worker was let go a moment ago
            return
        worker, shard, asked = self._calls.pop(call)
        if isinstance(answer, Station):
            self._welcome(worker, answer)
        elif not isinstance(answer, Report):
            self._bury(worker, Breakdown("died", _told(answer)), run)
        elif answer.fault:
            # What an exception leaves behind, on a GPU above all, must not spoil the next shard.
            self._bury(worker, Breakdown("raised", answer.fault), run)
        elif shard is not None and asked is run:
            if answer.error is not None:
                run.dispatch.fail(shard.job, answer.error)
            elif run.dispatch.done(worker, shard):
                self._credit(worker, shard, run)

    def _welcome(self, worker: Worker, station: Station) -> None:
        worker.station, worker.since, self._failed_starts = station, self.clock(), 0
        first = self.ready[0].station
        assert first is not None
        setups = first.setup(), station.setup()
        for key in dict.fromkeys((*setups[0], *setups[1])):
            here, there = (setup.get(key, "none") for setup in setups)
            if here != there and not self.mixed:
                what = f"workers differ in {key}: {here} on {first.host}, {there} on {station.host}"
                raise EvidenceError(what, key="--ray", remedy=_MIXED)

    def _credit(self, worker: Worker, shard: Shard, run: _Run) -> None:
        now, images = self.clock(), len(shard.images)
        run.longest[shard.job] = max(run.longest.get(shard.job, 0.0), now - worker.since)
        worker.since = now
        if worker.first is None:  # the time until then is loading, too
            worker.first = now
        else:
            worker.images += images
        run.count(images)

    def _bury(self, worker: Worker, breakdown: Breakdown, run: _Run) -> None:
        run.dispatch.leave(worker, breakdown)
        self._let_go(worker)
        if worker.station is not None:
            self._looked = -math.inf  # there may be room for another at once
            return
        self._failed_starts += 1
        if self._failed_starts >= STARTS:
            what = f"{self._failed_starts} workers died one after the other before they had started"
            raise EvidenceError(what, key="--ray", found=breakdown.cause, remedy=_START)

    def _let_go(self, worker: Worker) -> None:
        self.workers.remove(worker)
        worker.handle.dismiss()
        self._calls = {call: said for call, said in self._calls.items() if said[0] is not worker}

    def _end_silent(self, run: _Run) -> None:
        """Take for dead who has made no shard for far longer than any took."""
        least, times = SILENCE
        for worker in self.ready:
            held, silent = run.dispatch.held(worker), self.clock() - worker.since
            if held and silent > least:
                longest = run.longest.get(held[0].job)
                if silent > (FIRST if longest is None else max(least, times * longest)):
                    cause = f"no shard in {duration(silent)}"
                    self._bury(worker, Breakdown("died", cause), run)


@dataclass(eq=False)
class _Run:
    """One piece of work."""

    dispatch: Dispatch
    count: Callable[[int], object]
    alone: float | None = None
    """Since when there is no worker."""
    longest: dict[int, float] = field(default_factory=dict)
    """By job: seconds that a shard took at most."""


def _told(answer: object) -> str:
    """Return the gist of what a cluster says of a worker that is gone: its last line tells the cause."""
    lines = [line.strip() for line in str(answer).splitlines() if line.strip()]
    return cut(lines[-1].partition(" Some common causes")[0], 200) if lines else type(answer).__name__


_ROOM = "Add nodes to the cluster, ask for less (--ray-gpus), or name a device that it has: --device"
_MIXED = (
    "Give all nodes one environment and one kind of device, or allow it: --ray-mixed. The images of a score "
    "then come from both, and its verdict says so"
)
_START = "Install the same version of pytest-sdbench, with its extras, on every node"
