"""Compute the Frechet inception distance and how much each image moves it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pytest_sdbench.metrics.moments import Array, FeatureStatistics, Rows

CUT_OFF = 1e-10
"""Eigenvalues below this share of the largest count as zero where they are inverted."""

_STRIP = 256
"""Rows of a symmetric matrix that are computed at a time, up to the diagonal."""


def fid(sample: FeatureStatistics, reference: FeatureStatistics) -> float:
    """Return |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) (Heusel et al. 2017), in float64.

    The trace of the root comes from the eigenvalues of the symmetric A'SA with A A' = R, which are those of
    S R, but real and found by a symmetric solver; what rounding pushes below zero counts as zero. Raises
    ValueError where the widths differ.
    """
    values = np.asarray(np.linalg.eigvalsh(product(sample.sigma, reference)), np.float64)
    return distance(sample.mu, float(np.trace(sample.sigma)), reference, _sum_of_roots(values))


def product(sigma: Array, reference: FeatureStatistics) -> Array:
    """Return A'SA with A A' = R, [D, D]: the lower triangle, which is all that the symmetric solvers read.

    Raises ValueError where the widths differ.
    """
    if len(sigma) != reference.width:
        raise ValueError(
            f"the images have {len(sigma)} features and the reference {reference.width}: "
            "they come from different extractors"
        )
    lower, factor = np.zeros_like(sigma), reference.factor
    # Cholesky's factor is zero above its diagonal, and then so is most of the work.
    triangular = not np.triu(factor, 1).any()
    strips = _strips(len(sigma))
    for place, rows in enumerate(strips):
        top = rows.start if triangular else 0
        left = factor[top:, rows].T @ sigma[top:]
        for columns in strips[: place + 1]:
            top = columns.start if triangular else 0
            lower[rows, columns] = left[:, top:] @ factor[top:, columns]
    return lower


def distance(mu: Array, trace: float, reference: FeatureStatistics, root: float) -> float:
    """Return |mu1 - mu2|^2 + tr S1 + tr S2 - 2 root, where `root` is the trace of (S1 S2)^1/2."""
    shift = mu - reference.mu
    return float(shift @ shift + trace + np.trace(reference.sigma) - 2 * root)


@dataclass(frozen=True, eq=False)
class Influence:
    """The first-order change of FID with the weight of one image (its influence function)."""

    mu: Array
    slope: Array
    curvature: Array
    """I - T, folded: what lies above the diagonal is added below it, since x'(I - T)x needs no more."""
    mean: float
    eigenvalues: Array
    """Of S R, ascending, [D]."""
    value: float
    """FID itself, as `fid` returns it."""

    def __call__(self, rows: Rows) -> Array:
        """Return psi of each image, [B, D] -> [B]; over the sample itself their mean is zero up to 1/n."""
        centred = np.subtract(rows, self.mu, dtype=np.float64)
        values = centred @ self.slope - self.mean
        for columns in _strips(len(self.mu)):
            turned = centred[:, columns.start :] @ self.curvature[columns.start :, columns]
            values += np.einsum("ij,ij->i", turned, centred[:, columns])
        return np.asarray(values)


def fid_influence(
    sample: FeatureStatistics, reference: FeatureStatistics, known: Array | None = None
) -> Influence:
    """Return the function that gives psi_i = 2 (mu - m).(x_i - mu) + (x_i - mu)'(I - T)(x_i - mu), centred.

    mu, S are the sample's moments, m, R the reference's, T = A (A'SA)^-1/2 A' for any A A' = R the optimal
    transport map between the two Gaussians. The delta method then gives the standard error sd(psi) / sqrt(n).
    (Resampling images does not: a bootstrap repeats images, which shrinks the covariance and raises every
    resampled FID.) `known` is the `product` of sample and reference where it has been computed.
    """
    values, vectors = np.linalg.eigh(product(sample.sigma, reference) if known is None else known)
    kept = values > CUT_OFF * values[-1]
    basis = reference.factor @ (vectors[:, kept] * values[kept] ** -0.25)
    curvature = np.eye(sample.width) - basis @ basis.T
    curvature = 2 * np.tril(curvature) - np.diag(np.diag(curvature))
    return Influence(
        mu=sample.mu,
        slope=2 * (sample.mu - reference.mu),
        curvature=curvature,
        mean=float(np.vdot(curvature, sample.sigma)),
        eigenvalues=values,
        value=distance(sample.mu, float(np.trace(sample.sigma)), reference, _sum_of_roots(values)),
    )


def _sum_of_roots(values: Array) -> float:
    return float(np.sqrt(np.clip(values, 0.0, None)).sum())


def _strips(width: int) -> list[slice]:
    return [slice(start, min(start + _STRIP, width)) for start in range(0, width, _STRIP)]
