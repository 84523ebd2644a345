"""Say which row each image of the endless run is, as a function of its ordinal: any point can be resumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from training.errors import TrainingError

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class Order:
    """Every epoch is a new permutation of all rows, shuffled at two levels.

    The groups (shards) are permuted, then the rows within each `window` of consecutive groups: so at any time
    the rows come from `window` shards only. With one group it is a plain permutation. It follows from
    (`seed`, epoch) through a hash, the same on every machine and with every numpy.
    """

    def __init__(self, group_sizes: Sequence[int], seed: int, window: int = 8) -> None:
        if window < 1:
            raise TrainingError("not a number of shards", key="window", found=window, remedy="Give 1 or more")
        self._sizes = np.asarray(group_sizes, np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._seed, self._window = seed, window
        self._total = int(self._sizes.sum())
        # Two, because a batch and the look-ahead may straddle the border of an epoch.
        self._epochs: dict[int, npt.NDArray[np.int64]] = {}
        if not self._total:
            raise TrainingError("no training pairs", found=0, remedy="Check the data of the recipe")

    def rows(self, first: int, count: int) -> list[int]:
        """Return the rows of images `first` to `first + count` of the run, counted from 0 over all epochs."""
        rows: list[int] = []
        while count > 0:
            epoch, place = divmod(first, self._total)
            some = self._epoch(epoch)[place : place + count].tolist()
            rows += some
            first, count = first + len(some), count - len(some)
        return rows

    def _epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        known = self._epochs.get(epoch)
        if known is None:
            known = self._permute(epoch)
            kept = {other: rows for other, rows in self._epochs.items() if abs(other - epoch) == 1}
            # Replaced in one step: a look-ahead may read it in another thread.
            self._epochs = {**dict(list(kept.items())[-1:]), epoch: known}
        return known

    def _permute(self, epoch: int) -> npt.NDArray[np.int64]:
        salt = _mix(_mix(self._seed & _MASK) ^ epoch)
        groups = np.argsort(_random(salt, len(self._sizes)), kind="stable")
        keys = _random(_mix(salt), self._total)
        parts = []
        for first in range(0, len(groups), self._window):
            window = groups[first : first + self._window]
            rows = np.concatenate([np.arange(self._sizes[g]) + self._starts[g] for g in window])
            parts.append(rows[np.argsort(keys[rows], kind="stable")])
        return np.concatenate(parts)


def _mix(value: int) -> int:
    """Return one output of splitmix64 (Steele, Lea and Flood 2014)."""
    return int(_random(value, 1)[0])


def _random(state: int, count: int) -> npt.NDArray[np.uint64]:
    """Return `count` successive outputs of splitmix64."""
    value: npt.NDArray[Any] = np.arange(1, count + 1, dtype=np.uint64)
    value = value * np.uint64(_GOLDEN) + np.uint64(state)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = value ^ (value >> np.uint64(31))
    return mixed
