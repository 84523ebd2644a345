"""Accumulate mean and covariance of a stream of features in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[Any]

_BLOCK = 1024
"""Rows folded into the moments at a time, whatever batches they came in: so the batch size changes no bit.

Folding reads and writes a whole covariance: with fewer rows that takes longer than their products."""

_SUM = 32
"""Blocks, or sums, that are added up one after the other: few, for each adds its rounding."""


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Moments of a set of images in one feature space."""

    mu: Array
    """Mean, [D]."""
    sigma: Array
    """Covariance with the divisor n - 1, [D, D]."""
    n: int | None = None
    """Images behind the moments; None where a file does not say (pytorch-fid's do not)."""
    features: Rows | None = None
    """Features of some of these images, [M, D], which KID needs; None where only moments are known."""
    source: str = ""
    """File or data set that the moments come from, for messages."""

    @property
    def width(self) -> int:
        return len(self.mu)

    @cached_property
    def factor(self) -> Array:
        """A with A A' = sigma, [D, D]: Cholesky's, which costs a tenth of the symmetric root.

        The symmetric root where sigma is singular; eigenvalues that rounding pushed below zero count as zero.
        """
        try:
            return np.asarray(np.linalg.cholesky(self.sigma))
        except np.linalg.LinAlgError:
            values, vectors = np.linalg.eigh(self.sigma)
            return np.asarray((vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T)


@dataclass(eq=False)
class _Sum:
    """Number, mean and scatter of some rows."""

    n: int
    mean: Array
    rest: Array
    """What the mean lacks. It is of the size of the rows' deviations, however far from zero they all lie."""
    scatter: Array
    """Outer products around the mean, [D, D]."""
    parts: int = 0
    """Blocks or sums that it is made of."""

    @classmethod
    def of_none(cls, width: int) -> _Sum:
        return cls(0, np.zeros(width), np.zeros(width), np.zeros((width, width)))

    def copy(self) -> _Sum:
        return replace(self, scatter=self.scatter.copy())

    def add(self, other: _Sum) -> None:
        """Add the rows of another sum."""
        self.scatter += other.scatter
        apart = self._move_mean(other.n, other.mean, other.rest)
        self.scatter += np.outer(apart, apart)

    def add_rows(self, rows: Array) -> None:
        """Add a block of rows."""
        # One more row is what the two means differ by: its outer product comes with those of the others.
        centred = np.empty((len(rows) + 1, rows.shape[1]))
        mean = rows.mean(axis=0)
        np.subtract(rows, mean, out=centred[:-1])
        # What rounding took from the mean shows now: beside a large mean it is much.
        rest = centred[:-1].mean(axis=0)
        centred[:-1] -= rest
        centred[-1] = self._move_mean(len(rows), mean, rest)
        self.scatter += centred.T @ centred

    def _move_mean(self, n: int, mean: Array, rest: Array) -> Array:
        """Count n more rows, and return the vector whose outer product their distance adds to the scatter."""
        self.parts += 1
        if not self.n:
            self.n, self.mean, self.rest = n, mean, rest
            return np.zeros_like(mean)
        total = self.n + n
        # Means that are near each other are subtracted without rounding; what they lack is small.
        step = (mean - self.mean) + (rest - self.rest)
        apart = step * np.sqrt(self.n * n / total)
        self.rest = self.rest + step * (n / total)
        self.n = total
        return np.asarray(apart)


class Moments:
    """Mean and covariance of rows that arrive in batches, or in other moments.

    Rows are folded in blocks of fixed size with the pairwise update of Chan, Golub and LeVeque (1979), blocks
    are added up in sums of 32, these in sums of 32 again, and so on: a tree, of which one sum a level exists.
    So memory grows with the logarithm of the number of rows, the result does not depend on how they were
    batched, and moments that are merged in any order and grouping agree to 1e-12, relative to the standard
    deviations, however large the mean is beside these.
    """

    def __init__(self, width: int) -> None:
        if width < 1:
            raise ValueError(f"features have a width of at least 1, not {width}")
        self.width = width
        """Features."""
        self._levels = [_Sum.of_none(width)]
        """The sums that are not full yet: of blocks, of 32 blocks each, and so on."""
        self._block = np.empty((_BLOCK, width))
        self._pending = 0

    @property
    def n(self) -> int:
        """Rows seen so far."""
        return sum(level.n for level in self._levels) + self._pending

    def update(self, rows: Rows) -> None:
        """Add rows of any float type, [B, width].

        Raises ValueError for another shape and for NaN or infinity.
        """
        self.check(rows)
        if not np.isfinite(rows).all():
            raise ValueError("features hold NaN or infinity")
        while len(rows):
            taken = rows[: _BLOCK - self._pending]
            self._block[self._pending : self._pending + len(taken)] = taken
            self._pending += len(taken)
            rows = rows[len(taken) :]
            if self._pending == _BLOCK:
                self._make_room()
                self._levels[0].add_rows(self._block)
                self._pending = 0

    def check(self, rows: Rows) -> None:
        """Raise ValueError for rows of another shape than [B, width]."""
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise ValueError(f"features must be [B, {self.width}], not {list(rows.shape)}")

    def merge(self, other: Moments) -> None:
        """Add all rows that another accumulator has seen; raises ValueError for another width."""
        if other.width != self.width:
            raise ValueError(f"moments of {self.width} and of {other.width} features have no sum")
        if other.n:
            self._levels[-1].add(other._whole())

    def statistics(self, *, source: str = "") -> FeatureStatistics:
        """Return the moments of the rows so far; raises ValueError for fewer than two."""
        n, mean, scatter = self.totals()
        if n < 2:
            raise ValueError(f"a covariance needs at least 2 images, not {n}")
        return FeatureStatistics(mean, scatter / (n - 1), n, source=source)

    def finish(self) -> None:
        """Let the buffer and all sums but one go: no more rows will come."""
        self._levels = [self._whole()]
        self._pending, self._block = 0, self._block[:0].copy()

    def totals(self) -> tuple[int, Array, Array]:
        """Return the number of rows, their mean, [D], and the sum of outer products around it, [D, D].

        They are not to be written to.
        """
        whole = self._whole()
        return whole.n, whole.mean + whole.rest, whole.scatter

    def _whole(self) -> _Sum:
        """Return the sum of all rows, which is not to be written to."""
        *lower, top = self._levels
        if self._pending or lower:
            # Works on a copy: looking at the moments half-way must not move the borders of the blocks.
            top = top.copy()
        for level in reversed(lower):
            if level.n:
                top.add(level)
        if self._pending:
            top.add_rows(self._block[: self._pending])
        return top

    def _make_room(self) -> None:
        """Add sums that are full to those above them."""
        for height, level in enumerate(self._levels):
            if level.parts < _SUM:
                return
            self._levels[height] = _Sum.of_none(self.width)
            if height + 1 == len(self._levels):
                self._levels.append(replace(level, parts=1))
                return
            self._levels[height + 1].add(level)
