"""Compute the Frechet inception distance and how much each image moves it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pytest_sdbench.metrics.moments import Array, FeatureStatistics, Rows

CUT_OFF = 1e-10
"""Eigenvalues below this share of the largest count as zero where they are inverted."""


def fid(sample: FeatureStatistics, reference: FeatureStatistics) -> float:
    """Return |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) (Heusel et al. 2017), in float64.

    The trace of the root comes from the eigenvalues of the symmetric R^1/2 S R^1/2, which are those of S R,
    but real and found by a symmetric solver; what rounding pushes below zero counts as zero. Raises
    ValueError where the widths differ.
    """
    values = product_eigenvalues(sample, reference)
    return distance(sample, reference, float(np.sqrt(np.clip(values, 0.0, None)).sum()))


def product_eigenvalues(sample: FeatureStatistics, reference: FeatureStatistics) -> Array:
    """Return the eigenvalues of S R, ascending, [D]; rounding may push some below zero."""
    _check(sample, reference)
    return np.asarray(np.linalg.eigvalsh(_product(sample, reference)))


def distance(sample: FeatureStatistics, reference: FeatureStatistics, root: float) -> float:
    """Return |mu1 - mu2|^2 + tr S1 + tr S2 - 2 root, where `root` is the trace of (S1 S2)^1/2."""
    shift = sample.mu - reference.mu
    return float(shift @ shift + np.trace(sample.sigma) + np.trace(reference.sigma) - 2 * root)


@dataclass(frozen=True, eq=False)
class Influence:
    """The first-order change of FID with the weight of one image (its influence function)."""

    mu: Array
    slope: Array
    curvature: Array
    mean: float
    eigenvalues: Array
    """Of S R, ascending, [D]."""
    value: float
    """FID itself, as `fid` returns it."""

    def __call__(self, rows: Rows) -> Array:
        """Return psi of each image, [B, D] -> [B]; over the sample itself their mean is zero up to 1/n."""
        centred = np.asarray(rows, np.float64) - self.mu
        values = centred @ self.slope + np.einsum("ij,ij->i", centred @ self.curvature, centred)
        return np.asarray(values - self.mean)


def fid_influence(sample: FeatureStatistics, reference: FeatureStatistics) -> Influence:
    """Return the function that gives psi_i = 2 (mu - m).(x_i - mu) + (x_i - mu)'(I - T)(x_i - mu), centred.

    mu, S are the sample's moments, m, R the reference's, T = R^1/2 (R^1/2 S R^1/2)^-1/2 R^1/2 the optimal
    transport map between the two Gaussians. The delta method then gives the standard error sd(psi) / sqrt(n).
    (Resampling images does not: a bootstrap repeats images, which shrinks the covariance and raises every
    resampled FID.)
    """
    _check(sample, reference)
    values, vectors = np.linalg.eigh(_product(sample, reference))
    kept = values > CUT_OFF * values[-1]
    basis = reference.root @ vectors[:, kept]
    curvature = np.eye(sample.width) - (basis / np.sqrt(values[kept])) @ basis.T
    return Influence(
        mu=sample.mu,
        slope=2 * (sample.mu - reference.mu),
        curvature=curvature,
        mean=float(np.vdot(curvature, sample.sigma)),
        eigenvalues=values,
        value=distance(sample, reference, float(np.sqrt(np.clip(values, 0.0, None)).sum())),
    )


def _product(sample: FeatureStatistics, reference: FeatureStatistics) -> Array:
    product = reference.root @ sample.sigma @ reference.root
    return np.asarray((product + product.T) / 2)


def _check(sample: FeatureStatistics, reference: FeatureStatistics) -> None:
    if sample.width != reference.width:
        raise ValueError(
            f"the images have {sample.width} features and the reference {reference.width}: "
            "they come from different extractors"
        )
