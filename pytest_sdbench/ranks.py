"""Compare two sets of timings by their ranks, which no outlier moves far."""

from __future__ import annotations

from collections.abc import Sequence


def larger_by_rank(first: Sequence[float], second: Sequence[float]) -> float:
    """Return how likely the first sample ranks as high above the second as it does, were both of one kind.

    The one-sided p-value of the U test (Mann and Whitney 1947) from U's exact distribution without ties; a
    tie counts against the finding, which keeps the p-value valid. Raises ValueError for an empty sample.
    """
    if not first or not second:
        raise ValueError("a rank test needs two samples")
    above = sum(a > b for a in first for b in second)
    counts = _orders(len(first), len(second))
    return sum(counts[above:]) / sum(counts)


def _orders(n: int, m: int) -> list[int]:
    """Return in how many orders of n and m values U is 0, 1, ..., n m: the Gaussian binomial's coefficients.

    They are those of prod_i (1 - q^(m + i)) / (1 - q^i), i = 1 ... n.
    """
    size = n * m + 1
    counts = [1] + [0] * (size - 1)
    for i in range(1, n + 1):
        for u in range(size - 1, m + i - 1, -1):
            counts[u] -= counts[u - m - i]
        for u in range(i, size):
            counts[u] += counts[u - i]
    return counts
