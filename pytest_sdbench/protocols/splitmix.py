"""Draw whole numbers from a hash: the same on every machine and with every numpy."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TypeVar

_MASK = (1 << 64) - 1
_T = TypeVar("_T")


def mix(value: int) -> int:
    """Return one output of splitmix64 (Steele, Lea and Flood 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class Dice:
    """A stream of choices that depends on an index alone; each `stream` of an index is another one."""

    def __init__(self, index: int, stream: int = 0) -> None:
        self._key = mix(mix(index) ^ 0x5CE7E5 ^ (stream << 32))
        self._count = 0

    def below(self, n: int) -> int:
        """Return a whole number from 0 to n - 1."""
        self._count += 1
        return (mix(self._key ^ self._count) >> 11) % n

    def pick(self, options: Sequence[_T]) -> _T:
        """Return one of the options, each as likely."""
        return options[self.below(len(options))]

    def weighted(self, options: Sequence[_T], ladder: Sequence[int]) -> _T:
        """Return one of the options; `ladder` holds the running sums of their whole weights."""
        return options[bisect_right(ladder, self.below(ladder[-1]))]

    def around(self, reach: int) -> int:
        """Return a whole number from -reach to reach."""
        return self.below(2 * reach + 1) - reach
