"""Remove from FID what it owes to the number of images.

FID of n images is larger than that of infinitely many: the noise of a sample covariance always adds
distance, to first order in 1/n, and not only to first order when n is a few times the number of features.
Two corrections are joined, because each lacks what the other has.

The first is exact for Gaussian features at any ratio of features to images: random matrix theory says how
the eigenvalues of a sample covariance spread, and the sum of the roots of the true ones is recovered from
them by a contour integral. The second, a jackknife over blocks of images, removes what is left to first
order in 1/n whatever the features are: heavy tails make it large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_sdbench.metrics.frechet import CUT_OFF, distance, product
from pytest_sdbench.metrics.moments import Array, FeatureStatistics, Moments

BLOCKS = 5
"""Blocks of the jackknife: few, for each costs the eigenvalues of a covariance once."""

FEWEST = 2
"""Images that the correction needs, as a multiple of the features."""

_NODES = 200
"""Of the contour integral."""

_AROUND, _HEIGHT = 1.0, 2.0
"""By how much the contour leaves the spectrum aside, and half its height (below pi), in log z."""


@dataclass(frozen=True, eq=False)
class Part:
    """What FID to one reference takes from a set of images; sets without a common image can be added."""

    n: int
    mean: Array
    trace: float
    """Of the scatter, the sum of outer products around the mean."""
    product: Array
    """A' times the scatter times A with A A' = R, [D, D] (see `frechet.product`)."""


def part(images: Moments, reference: FeatureStatistics) -> Part:
    """Return what FID takes from some images."""
    n, mean, scatter = images.totals()
    return Part(n, mean, float(np.trace(scatter)), product(scatter, reference))


def together(parts: Sequence[Part], reference: FeatureStatistics) -> Part:
    """Return what FID takes from all images of several parts."""
    counts, means = np.array([each.n for each in parts]), np.stack([each.mean for each in parts])
    n = int(counts.sum())
    mean = counts @ means / n
    steps = np.sqrt(counts)[:, None] * (means - mean)
    turned = steps @ reference.factor
    whole = turned.T @ turned
    for each in parts:
        whole += each.product
    return Part(n, mean, sum(each.trace for each in parts) + float(np.vdot(steps, steps)), whole)


def corrected_fid(whole: float, left_out: Sequence[float]) -> float:
    """Return FID without its bias, from its values of all images and without each block (`of_gaussians`).

    The result may be below zero, as an unbiased estimate of zero must. It needs twice as many images as
    features. (A jackknife over blocks of images removes the term in 1/n: Quenouille 1956.)
    """
    return whole - (len(left_out) - 1) * (float(np.mean(left_out)) - whole)


def left_out(blocks: Sequence[Part], reference: FeatureStatistics) -> list[float]:
    """Return FID of all images but one block, for each block, unbiased for Gaussian features."""
    return [
        of_gaussians(together([*blocks[:k], *blocks[k + 1 :]], reference), reference)
        for k in range(len(blocks))
    ]


def sum_of_roots(values: Array, n: int) -> float:
    """Estimate the sum of the roots of a covariance's eigenvalues from those of a sample, [p] ascending.

    `n` is the number of degrees of freedom, above p; `values` are above zero. With the companion
    Stieltjes transform m(z) = (sum_i 1 / (values_i - z) - (n - p) / z) / n the sum is (n / pi i) times the
    contour integral of sqrt(-m(z)) dz around the sample's eigenvalues (Mestre 2008 for the method; Couillet,
    Tiomoko, Zozor and Moisan 2019 for distances between covariances; for the root the integral is
    elementary once integrated by parts). The root has a cut between each eigenvalue and the zero of m below
    it, and one that ends in 0: the contour passes between 0 and the smallest zero. It is an ellipse in
    log z, where spectra of many magnitudes are short, and the trapezoidal rule converges geometrically.
    """
    low, high = np.log(_smallest_zero(values, n)), np.log(values[-1])
    centre, half = (low + high) / 2, (high - low) / 2 + _AROUND
    # Half of the ellipse: the other half is its mirror image, and so is the integrand.
    angle = (np.arange(_NODES) + 0.5) * np.pi / _NODES
    u = centre + half * np.cos(angle) + 1j * _HEIGHT * np.sin(angle)
    step = -half * np.sin(angle) + 1j * _HEIGHT * np.cos(angle)
    z = np.exp(u)
    # -z m(z) lies in the lower half-plane where z lies in the upper one: its root has no jump there.
    transform = ((n - len(values)) - (z[:, None] / (values - z[:, None])).sum(axis=1)) / n
    integral = (np.sqrt(transform) * np.sqrt(z) * step).sum() * np.pi / _NODES
    return float(2 * n / np.pi * integral.imag)


def degenerate_variance(values: Array, sample: FeatureStatistics) -> float:
    """Return the variance of the second-order part of FID, for Gaussian features; [p] eigenvalues of S R.

    To second order FID holds |mu - E mu|^2 + 1/2 sum_ij w_ij E_ij^2 with E the error of the covariance in the
    eigenbasis of R^1/2 S R^1/2 and w_ij = 1 / (r_i r_j (r_i + r_j)), r the roots of the eigenvalues.
    """
    assert sample.n is not None
    values = values[values > CUT_OFF * values[-1]]
    if not len(values):
        return 2 * float(np.vdot(sample.sigma, sample.sigma)) / sample.n**2
    roots = np.sqrt(values)
    weighted = np.square(np.outer(roots, roots) / (roots[:, None] + roots))
    shape = float(weighted.sum() + np.trace(weighted))
    return (shape + 2 * float(np.vdot(sample.sigma, sample.sigma))) / sample.n**2


def joined(blocks: Sequence[Moments]) -> FeatureStatistics:
    """Return the moments of all blocks together."""
    whole = Moments(blocks[0].width)
    for block in blocks:
        whole.merge(block)
    return whole.statistics()


def of_gaussians(sample: Part, reference: FeatureStatistics, values: Array | None = None) -> float:
    """Return FID without its bias for Gaussian features; `values` are the eigenvalues of S R if known."""
    trace = sample.trace / (sample.n - 1)
    values = np.linalg.eigvalsh(sample.product) / (sample.n - 1) if values is None else values
    values = values[values > CUT_OFF * values[-1]]
    # All images are one where there is no eigenvalue above zero.
    root = sum_of_roots(values, sample.n - 1) if len(values) else 0.0
    return distance(sample.mean, trace, reference, root) - trace / sample.n


def _smallest_zero(values: Array, n: int) -> float:
    """Return the zero of m between 0 and the smallest eigenvalue: there sum_j v_j / (v_j - x) is n."""
    low, high = 0.0, float(values[0])
    for _ in range(60):
        middle = (low + high) / 2
        below = float((values / (values - middle)).sum()) < n
        low, high = (middle, high) if below else (low, middle)
    return (low + high) / 2
