"""Make shards as one of several processes that share them by their number, and need not know of each other.

Each has a fixed part of the grid and begins with that. Then it helps the others, from the back of what they
have left: so a process that is slow, or was killed and is never started again, holds nobody up. Two may make
the last few shards at the same time. Both make the same, and the time of one is lost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

from pytest_sdbench.base.part import Part
from pytest_sdbench.evaluation.engine import Work
from pytest_sdbench.evaluation.job import Job
from pytest_sdbench.evaluation.maker import Maker
from pytest_sdbench.store.shard_folder import in_grid
from pytest_sdbench.store.shards import Evidence

REST = 20
"""So many times as long as a listing took, the next one waits."""
Left = Callable[[Sequence[range]], list[range]]
"""Returns those of some shards that are not made yet."""


def make(
    job: Job,
    evidence: Evidence,
    *,
    count: Callable[[int], object] = lambda images: None,
    elsewhere: Callable[[int], object] = lambda images: None,
) -> Work:
    """Make what a job lacks, and return what was drawn here; raises as `Maker.make` does.

    `count` is told of images as they are made here, `elsewhere` of those that others have made meanwhile.
    """
    grid = list(in_grid(job.protocol.n))
    parts = (set(some) for some in job.workspace.part.slice(grid))
    own, others = ([images for images in job.missing if images in some] for some in parts)
    shards = shards_of(job.workspace.part, own, others, sparing(evidence.left), elsewhere)
    return Maker(job, evidence).make(shards, count=count)


def shards_of(
    part: Part,
    own: Sequence[range],
    others: Sequence[range],
    left: Left,
    elsewhere: Callable[[int], object] = lambda images: None,
) -> Iterator[range]:
    """Yield shards for one process to make: its own, then from the back what is left of the others'.

    `left` is asked before each. `elsewhere` is told of images that others have made.
    """
    while own or others:
        there = set(left([*own, *others]))
        elsewhere(sum(len(images) for images in (*own, *others) if images not in there))
        own, others = ([images for images in some if images in there] for some in (own, others))
        if own:
            yield own.pop(0)
        elif others:
            # Helpers spread over what is left: of several at the very end all would make the same one.
            yield others.pop(-1 - len(others) * part.rank // part.size)


def sparing(left: Left, clock: Callable[[], float] = time.monotonic) -> Left:
    """Ask what is left so seldom that it takes a twentieth of the time, and answer from memory in between.

    To list a draw of ten million images takes hundreds of requests, and each of a thousand processes asks. An
    answer from memory may name a shard that another has made meanwhile. A draw of usual size is listed in a
    fraction of the time that a shard takes: then each question is asked.
    """
    known, ready = set[range](), -math.inf

    def ask(wanted: Sequence[range]) -> list[range]:
        nonlocal known, ready
        began = clock()
        if began >= ready:
            known = set(left(wanted))
            now = clock()
            ready = now + REST * (now - began)
        return [images for images in wanted if images in known]

    return ask
