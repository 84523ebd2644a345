"""Say what a count of runs tells of a chance."""

from __future__ import annotations

from scipy.stats import beta


def clopper_pearson(count: int, runs: int) -> tuple[float, float]:
    """Return the 95 % interval of the chance of what came in `count` of `runs` (Clopper, Pearson 1934)."""
    low = float(beta.ppf(0.025, count, runs - count + 1)) if count else 0.0
    return low, float(beta.ppf(0.975, count + 1, runs - count)) if count < runs else 1.0
