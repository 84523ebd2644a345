"""Lengths and distances of rows of features, in float64; distances block by block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pytest_sdbench.metrics.moments import Array, Rows

Mask = npt.NDArray[np.bool_]

_ROUNDING = 1e-12
"""Squared distances below this part of the squared lengths are what rounding leaves of none."""

BLOCK = 512
"""Rows whose distances from all others exist at one time."""


def unit(rows: Rows) -> Array:
    """Return rows [n, D] divided by their lengths; raises ValueError for a row of length 0."""
    wide = np.asarray(rows, np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError("features that are all zero have no direction")
    return np.asarray(wide / lengths)


def distance_blocks(rows: Rows, others: Rows) -> Iterator[tuple[slice, Array]]:
    """Yield some rows of [n, D], and their squared distances from all others [m, D]: [B, m].

    Raises ValueError for different widths.
    """
    if rows.ndim != 2 or others.ndim != 2 or rows.shape[1] != others.shape[1]:
        raise ValueError(f"features {list(rows.shape)} and {list(others.shape)} do not match")
    for part in _parts(len(rows)):
        x = np.asarray(rows[part], np.float64)
        squares = np.empty((len(x), len(others)))
        for at in _parts(len(others)):
            y = np.asarray(others[at], np.float64)
            lengths = np.einsum("ij,ij->i", x, x)[:, None] + np.einsum("ij,ij->i", y, y)
            apart = lengths - 2 * x @ y.T
            # What rounding leaves between copies depends on the size of a block, and is no distance.
            squares[:, at] = np.where(apart > _ROUNDING * lengths, apart, 0.0)
        yield part, squares


def nearest(rows: Rows, count: int) -> tuple[Array, npt.NDArray[np.intp]]:
    """Return the squared distances of each row from the `count` nearest others, ascending, and their places.

    Both are [n, count]; raises ValueError for no more rows than that.
    """
    if not 1 <= count < len(rows):
        raise ValueError(f"{len(rows)} rows have no {count} neighbours each")
    squares, places = np.empty((len(rows), count)), np.empty((len(rows), count), np.intp)
    for part, block in distance_blocks(rows, rows):
        np.fill_diagonal(block[:, part], np.inf)  # no row is a neighbour of itself
        found = np.argpartition(block, count - 1, axis=1)[:, :count]
        values = np.take_along_axis(block, found, axis=1)
        order = np.argsort(values, axis=1, kind="stable")
        squares[part] = np.take_along_axis(values, order, axis=1)
        places[part] = np.take_along_axis(found, order, axis=1)
    return squares, places


def _parts(n: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]
