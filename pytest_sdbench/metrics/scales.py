"""Tell how much farther from the mean some images lie, in all features at once, than Gaussian ones do.

Heavy tails of image features are mostly of this kind: an image whose features are all large, rather than a
feature that is large in some image. A sample covariance of such images spreads more than that of Gaussian
ones, by as much as the squares of the images' scales do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pytest_sdbench.metrics.moments import Array, FeatureStatistics

_POINTS = 24
"""Of the rule that stands for a distribution: exact for polynomials of a degree below twice this number."""


@dataclass(frozen=True, eq=False)
class Scales:
    """A distribution of squared scales whose mean is one, as a few points."""

    squares: Array
    """[K]"""
    shares: Array
    """[K], of sum one."""


GAUSSIAN = Scales(np.ones(1), np.ones(1))
"""All images have one scale."""


def squared_scales(distances: Array, sample: FeatureStatistics) -> Array:
    """Return the square of each image's scale from its squared distance to the mean, [n]; their mean is one.

    Of Gaussian images that distance varies too: its variance is twice the trace of the squared covariance
    (without bias: tr S^2 less what each image adds to it alone). What of the variance is beyond that is the
    scales' own, and distances are drawn towards their mean until they have no more of it.
    """
    n, mean = len(distances), float(distances.mean())
    if mean <= 0:
        return np.ones(n)
    squares = distances / mean
    variance = float(squares.var())
    alone = float(np.square(distances / n).sum())
    of_gaussians = 2 * max(float(np.vdot(sample.sigma, sample.sigma)) - alone, 0.0) / mean**2
    own = (1 + variance) / (1 + of_gaussians) - 1
    return 1 + (squares - 1) * np.sqrt(own / variance) if own > 0 else np.ones(n)


def scales(squares: Array) -> Scales:
    """Return the distribution of squared scales, [n], as the points of its Gauss quadrature.

    Lanczos's method on the diagonal matrix of the squares (Golub and Welsch 1969): the rule has its moments
    up to the order 2 K - 1. Fewer points where there are fewer different squares.
    """
    squares = squares / squares.mean()
    n = len(squares)
    basis = np.zeros((min(_POINTS, n), n))
    basis[0] = n**-0.5
    diagonal, beside = [], []
    for k, vector in enumerate(basis):
        turned = squares * vector
        diagonal.append(float(turned @ vector))
        # Twice, for the first time leaves what rounding adds.
        for _ in range(2):
            turned -= basis[: k + 1].T @ (basis[: k + 1] @ turned)
        length = float(np.linalg.norm(turned))
        if k + 1 == len(basis) or length <= 1e-10 * squares.max():
            break
        beside.append(length)
        basis[k + 1] = turned / length
    points, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    return Scales(np.clip(points, 0.0, None), np.square(vectors[0]))
