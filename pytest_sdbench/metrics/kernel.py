"""Compute the kernel inception distance."""

from __future__ import annotations

import numpy as np

from pytest_sdbench.metrics.moments import Array, Rows

_BLOCK = 1024
"""Rows and columns of the kernel matrix that exist at one time."""


def kid(features: Rows, reference: Rows) -> float:
    """Return the unbiased squared MMD with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018), in float64.

    The full U-statistic over all pairs: no random subsets, so no draw to repeat. It may be slightly negative.
    The kernel matrix is visited block by block: memory is that of the features. Raises ValueError for fewer
    than two rows on a side or for different widths.
    """
    _check(features, reference)
    n, m = len(features), len(reference)
    within = _sum_of_pairs(features) / (n * (n - 1)) + _sum_of_pairs(reference) / (m * (m - 1))
    return within - 2 * _sum_across(features, reference) / (n * m)


def kid_subsets(
    features: Rows, reference: Rows, *, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> Array:
    """Return the KID of random subsets as torch-fidelity draws them, [subsets]; their mean is its KID.

    For comparison with published figures only: `kid` uses every pair once.
    Raises ValueError where a side has fewer rows than a subset.
    """
    _check(features, reference)
    if min(len(features), len(reference)) < subset_size:
        raise ValueError(
            f"subsets of {subset_size} need as many images and references, "
            f"not {len(features)} and {len(reference)}"
        )
    rng = np.random.RandomState(seed)
    return np.array(
        [
            kid(
                features[rng.choice(len(features), subset_size, replace=False)],
                reference[rng.choice(len(reference), subset_size, replace=False)],
            )
            for _ in range(subsets)
        ]
    )


def _kernel(x: Array, y: Array) -> Array:
    k = x @ y.T
    k /= x.shape[1]
    k += 1.0
    return np.asarray(k * k * k)


def _blocks(rows: Rows) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, len(rows), _BLOCK)]


def _sum_of_pairs(rows: Rows) -> float:
    """Sum the kernel over all ordered pairs of two different rows."""
    total = 0.0
    blocks = _blocks(rows)
    for i, first in enumerate(blocks):
        x = np.asarray(rows[first], np.float64)
        own = _kernel(x, x)
        total += float(own.sum() - np.trace(own))
        for second in blocks[i + 1 :]:
            total += 2 * float(_kernel(x, np.asarray(rows[second], np.float64)).sum())
    return total


def _sum_across(rows: Rows, others: Rows) -> float:
    total = 0.0
    for first in _blocks(rows):
        x = np.asarray(rows[first], np.float64)
        for second in _blocks(others):
            total += float(_kernel(x, np.asarray(others[second], np.float64)).sum())
    return total


def _check(features: Rows, reference: Rows) -> None:
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise ValueError(
            f"features {list(features.shape)} and reference features {list(reference.shape)} do not match"
        )
    if min(len(features), len(reference)) < 2:
        raise ValueError("KID needs at least 2 images and 2 references")
