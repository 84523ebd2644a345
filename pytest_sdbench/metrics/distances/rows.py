"""Lengths and distances of rows of features, in float64."""

from __future__ import annotations

import numpy as np

from pytest_sdbench.metrics.moments import Array, Rows


def unit(rows: Rows) -> Array:
    """Return rows [n, D] divided by their lengths; raises ValueError for a row of length 0."""
    wide = np.asarray(rows, np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError("features that are all zero have no direction")
    return np.asarray(wide / lengths)


def squared_distances(x: Array, y: Array) -> Array:
    """Return the squared distance of each of the rows x [n, D] from each of the rows y [m, D], [n, m].

    Of equal rows rounding leaves some 1e-16 of their squared lengths: it is 0 or more, and may be above 0.
    """
    squares = x @ y.T
    squares *= -2.0
    squares += np.einsum("ij,ij->i", x, x)[:, None]
    squares += np.einsum("ij,ij->i", y, y)
    return np.asarray(np.maximum(squares, 0.0, out=squares))
