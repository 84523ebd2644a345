"""Look at growing numbers of images, and stop as soon as the verdict is certain.

Every look is another chance to be wrong. So the looks of a protocol share one error rate: a part of it is for
the last look, the rest is divided among the earlier ones, and the sum of the chances bounds the chance
of a wrong verdict over the whole sequence, however the looks depend on each other. Which part a look may
spend follows from the protocol alone: a run that stopped, by its budget or by force, goes on later as if it
had never stopped.
"""

from __future__ import annotations

from dataclasses import dataclass

LAST = 0.4
"""The part of the last of several looks. Half would decide close cases a little more often; this decides
clear ones with a twentieth fewer images."""

WEIGHTS = {256: 1, 1000: 4, 2000: 75, 5000: 10, 10_000: 10, 30_000: 10}
"""Numbers of images at which a sequence looks, and how the earlier looks divide the rest: little to the first
ones, which easily miss a rare failure, and most where clear cases are decided."""


@dataclass(frozen=True)
class Look:
    """One number of images, and the part of the error rate that may be spent there."""

    n: int
    share: float


def looks(n: int, budget: int | None = None) -> list[Look]:
    """Return the looks at a protocol of n images that a budget of images reaches, in order.

    The last look is at all n images; a protocol with no more images than the first look has no other.
    """
    earlier = {size: weight for size, weight in WEIGHTS.items() if size < n}
    total = sum(earlier.values())
    whole = [Look(size, (1 - LAST) * weight / total) for size, weight in earlier.items()]
    whole.append(Look(n, LAST if earlier else 1.0))
    return [look for look in whole if budget is None or look.n <= budget]


UNASKED = 1000
"""New images of one checkpoint under one protocol that a CPU makes without being asked: minutes of work."""
