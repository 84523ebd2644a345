"""Populations whose moments are known, and what a test asks of many estimates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pytest_sdbench.metrics.moments import FeatureStatistics

Array = np.ndarray[Any, Any]


def power_law(width: int, exponent: float) -> Array:
    """Return variances that fall with a power of their number, [width]."""
    return np.asarray(np.arange(1, width + 1) ** -exponent, np.float64)


def exact(sigma: Array, mu: Array | None = None) -> FeatureStatistics:
    """Return the moments of a whole population."""
    return FeatureStatistics(np.zeros(len(sigma)) if mu is None else mu, sigma)


def moments(rows: Array) -> FeatureStatistics:
    """Return the moments of a sample, [n, width], by numpy alone."""
    return FeatureStatistics(rows.mean(axis=0), np.cov(rows, rowvar=False), len(rows))


def eigenvalues(matrix: Array) -> Array:
    return np.asarray(np.linalg.eigvalsh(matrix), np.float64)


def off(values: Array, truth: float) -> float:
    """Return how far the mean of independent values lies from the truth, in its standard errors."""
    return float((values.mean() - truth) / values.std(ddof=1) * math.sqrt(len(values)))


def root_mean_square(values: Array) -> float:
    return float(np.sqrt(np.square(values).mean()))
