"""Accumulate mean and covariance of a stream of features in float64."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[Any]

_BLOCK = 1024
"""Rows folded into the moments at a time, whatever batches they came in: so the batch size changes no bit.

Folding reads and writes a whole covariance: with fewer rows that takes longer than their products."""


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


class Moments:
    """Mean and covariance of rows that arrive in batches.

    Rows are folded in blocks of fixed size with the pairwise update of Chan, Golub and LeVeque (1979): memory
    does not grow with the number of rows, and the result does not depend on how they were batched.
    """

    def __init__(self, width: int) -> None:
        if width < 1:
            raise ValueError(f"features have a width of at least 1, not {width}")
        self._folded = 0
        self._mean = np.zeros(width)
        self._scatter = np.zeros((width, width))
        self._block = np.empty((_BLOCK, width))
        self._pending = 0

    @property
    def n(self) -> int:
        """Rows seen so far."""
        return self._folded + self._pending

    @property
    def width(self) -> int:
        return len(self._mean)

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
                self._fold_rows(self._block)
                self._pending = 0

    def check(self, rows: Rows) -> None:
        """Raise ValueError for rows of another shape than [B, width]."""
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise ValueError(f"features must be [B, {self.width}], not {list(rows.shape)}")

    def merge(self, other: Moments) -> None:
        """Add all rows that another accumulator has seen."""
        n, mean, scatter = other.totals()
        if n:
            self._scatter += scatter
            apart = self._move_mean(n, mean)
            self._scatter += np.outer(apart, apart)

    def statistics(self, *, source: str = "") -> FeatureStatistics:
        """Return the moments of the rows so far; raises ValueError for fewer than two."""
        n, mean, scatter = self.totals()
        if n < 2:
            raise ValueError(f"a covariance needs at least 2 images, not {n}")
        return FeatureStatistics(mean, scatter / (n - 1), n, source=source)

    def finish(self) -> None:
        """Let the buffer go: no more rows will come."""
        self._fold_rows(self._block[: self._pending])
        self._pending, self._block = 0, self._block[:0].copy()

    def totals(self) -> tuple[int, Array, Array]:
        """Return the number of rows, their mean, [D], and the sum of outer products around it, [D, D].

        They are not to be written to.
        """
        if not self._pending:
            return self._folded, self._mean, self._scatter
        # Works on a copy: looking at the moments half-way must not move the borders of the blocks.
        whole = copy(self)
        whole._scatter = self._scatter.copy()
        whole._fold_rows(self._block[: self._pending])
        return whole._folded, whole._mean, whole._scatter

    def _fold_rows(self, rows: Array) -> None:
        if not len(rows):
            return
        # One more row is what the two means differ by: its outer product comes with those of the others.
        centred = np.empty((len(rows) + 1, self.width))
        mean = rows.mean(axis=0)
        np.subtract(rows, mean, out=centred[:-1])
        centred[-1] = self._move_mean(len(rows), mean)
        self._scatter += centred.T @ centred

    def _move_mean(self, n: int, mean: Array) -> Array:
        """Count n more rows, and return the vector whose outer product their distance adds to the scatter."""
        total = self._folded + n
        step = mean - self._mean
        weight = self._folded * n / total
        self._mean = self._mean + step * (n / total)
        self._folded = total
        return np.asarray(step * np.sqrt(weight))
