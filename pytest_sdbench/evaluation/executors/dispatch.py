"""Decide who makes which shard: workers come, go, break down and differ in speed, and shards may be poison.

Nothing here waits, computes or knows a cluster. A worker gets the next shard when it has made one, so that a
fast one makes more; it stays with the job it has loaded while that has shards left. What was held by a worker
that broke down is under suspicion: it is made last, and alone, so that no neighbour is blamed for it. Only
while nothing of its job was made yet it comes first: that tells a hopeless job from a node that went away.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_sdbench.base.errors import EvidenceError, SdbenchError

AHEAD = 2
"""Shards that a worker holds: it draws one while another is finished or on its way."""
MOST = {"died": 5, "raised": 3}
"""Workers that a shard may kill, and exceptions that it may raise, before it is given up."""
HOPELESS = 10
"""Breakdowns over a job of which no shard was ever made, before all of it is given up: exceptions, and deaths
over a suspect alone. What dies otherwise may have been on a node that went away."""


@dataclass(frozen=True)
class Shard:
    """Consecutive images of one job."""

    job: int
    """Its number."""
    images: range


@dataclass(frozen=True)
class Breakdown:
    """What happened to a worker."""

    how: str
    """A key of `MOST`."""
    cause: str


@dataclass
class Dispatch:
    """The shards of some jobs, and where each is: still to be made, held by a worker, made or given up."""

    missing: Sequence[Sequence[range]]
    """The shards of each job."""
    made: list[int] = field(init=False)
    """Images of each job that are whole in the store by now."""
    failed: dict[int, SdbenchError] = field(default_factory=dict, init=False)
    """By job: what no other try would help against."""
    lost: dict[Shard, list[Breakdown]] = field(default_factory=dict, init=False)
    """Shards that were given up, with all that happened to their workers."""

    def __post_init__(self) -> None:
        self.made = [0 for _ in self.missing]
        self._fresh = [deque(Shard(job, images) for images in each) for job, each in enumerate(self.missing)]
        self._suspects: list[deque[Shard]] = [deque() for _ in self.missing]
        self._breakdowns: dict[Shard, list[Breakdown]] = {}
        self._held: dict[Any, list[Shard]] = {}
        self._loaded: dict[Any, int] = {}
        self._mishaps = Counter[int]()

    @property
    def left(self) -> int:
        """Shards that are neither made nor given up."""
        return sum(map(len, (*self._fresh, *self._suspects, *self._held.values())))

    def finished(self, job: int) -> bool:
        """Return whether all of a job is made or given up."""
        held = (shard.job == job for shards in self._held.values() for shard in shards)
        return not (self._fresh[job] or self._suspects[job] or any(held))

    def held(self, worker: Any) -> Sequence[Shard]:
        """Return what a worker has to do, in order."""
        return self._held.get(worker, ())

    def give(self, workers: Sequence[Any]) -> Iterator[tuple[Any, Shard]]:
        """Yield what to give to whom, so that each of these workers has enough to do.

        Near the end nobody gets a second shard that another could begin at once.
        """
        for level in range(AHEAD):
            for worker in workers:
                held = self._held.setdefault(worker, [])
                if len(held) != level or (level and (self._alone(held) or self._scarce(workers))):
                    continue
                if (shard := self._next(worker, level)) is not None:
                    held.append(shard)
                    self._loaded[worker] = shard.job
                    yield worker, shard

    def _alone(self, held: Iterable[Shard]) -> bool:
        return any(shard in self._breakdowns for shard in held)

    def _scarce(self, workers: Sequence[Any]) -> bool:
        return sum(map(len, self._fresh)) < len(workers)

    def _next(self, worker: Any, level: int) -> Shard | None:
        """Return the next shard for a worker: of its own job, else of that with most left for each worker."""
        unproven = [deque() if made else each for each, made in zip(self._suspects, self.made, strict=True)]
        for queues in (self._fresh,) if level else (unproven, self._fresh, self._suspects):
            busy, own = Counter(self._loaded.values()), self._loaded.get(worker)
            order = sorted(range(len(queues)), key=lambda job: -len(queues[job]) / (busy[job] + 1))
            for job in order if own is None else [own, *order]:
                if queues[job]:
                    return queues[job].popleft()
        return None

    def done(self, worker: Any, shard: Shard) -> bool:
        """Note that a shard is whole in the store; return False where nobody waits for it any more."""
        if shard not in self._held.get(worker, ()):
            return False
        self._held[worker].remove(shard)
        self.made[shard.job] += len(shard.images)
        return True

    def fail(self, job: int, error: SdbenchError) -> None:
        """Give a job up, whatever is left of it; the others go on."""
        self.failed.setdefault(job, error)
        self._fresh[job].clear()
        self._suspects[job].clear()
        for worker, held in self._held.items():
            self._held[worker] = [shard for shard in held if shard.job != job]

    def leave(self, worker: Any, breakdown: Breakdown) -> None:
        """Take back what a worker held that broke down: each of these shards may have been the cause."""
        self._loaded.pop(worker, None)
        held = self._held.pop(worker, [])
        telling = breakdown.how == "raised" or self._alone(held)
        for shard in held:
            past = self._breakdowns.setdefault(shard, [])
            past.append(breakdown)
            if sum(each.how == breakdown.how for each in past) < MOST[breakdown.how]:
                self._suspects[shard.job].append(shard)
            else:
                self.lost[shard] = past
        for job in {shard.job for shard in held}:
            self._mishaps[job] += telling
            if self._mishaps[job] >= HOPELESS and not self.made[job]:
                what = f"{HOPELESS} workers broke down over it, and none made a shard"
                remedy = "Try a few images without a cluster: --images 64"
                self.fail(job, EvidenceError(what, found=breakdown.cause, remedy=remedy))
