"""Remove from FID what it owes to the number of images.

FID of n images is larger than that of infinitely many: the noise of a sample covariance always adds
distance, to first order in 1/n, and not only to first order when n is a few times the number of features.
Two corrections are joined, because each lacks what the other has.

The first is exact at any ratio of features to images, for Gaussian features and for those whose tails are
heavy because some images have larger features than others (`scales`): random matrix theory says how the
eigenvalues of a sample covariance spread, and the sum of the roots of the true ones is recovered from them by
a contour integral. The second, a jackknife over blocks of images, removes what is left to first order in 1/n
whatever the features are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pytest_sdbench.metrics.frechet import CUT_OFF, distance, product
from pytest_sdbench.metrics.moments import Array, FeatureStatistics, Moments

_POINTS = 24
"""Of the rule that stands for a distribution: exact for polynomials of a degree below twice this number."""

_MOST = 1 << 16
"""Images that one rule is found of: each takes a row of as many numbers as there are points."""


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

    Fewer points where there are fewer different squares. The rule of many images is that of the rules of some
    images each, in a bounded memory: these have all the moments that it is made of.
    """
    n, squares = len(squares), squares / squares.mean()
    if n <= _MOST:
        return _quadrature(squares, np.full(n, n**-0.5))
    parts = np.array_split(squares, -(-n // _MOST))
    rules = [_quadrature(part, np.full(len(part), len(part) ** -0.5)) for part in parts]
    weights = [np.sqrt(rule.shares * (len(part) / n)) for rule, part in zip(rules, parts, strict=True)]
    return _quadrature(np.concatenate([rule.squares for rule in rules]), np.concatenate(weights))


def _quadrature(squares: Array, first: Array) -> Scales:
    """Return the Gauss quadrature of squares, [n], whose shares are the squares of `first`, [n].

    Lanczos's method on the diagonal matrix of the squares (Golub and Welsch 1969): the rule has its moments
    up to the order 2 K - 1.
    """
    basis = np.zeros((min(_POINTS, len(squares)), len(squares)))
    basis[0] = first
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


BLOCKS = 5
"""Blocks of the jackknife: few, for each costs the eigenvalues of a covariance once."""

FEWEST = 2
"""Images that the correction needs, as a multiple of the features."""

FEWEST_LEFT = 1.25
"""Images that the jackknife needs to leave, as a multiple of the features."""

_NODES = 200
"""Of the contour integral."""

_AROUND, _HEIGHT = 1.0, 2.0
"""By how much the contour leaves the spectrum aside, and half its height (below pi), in log z."""

_SPREADS = 8
"""Steps in which scales are spread."""

_ITERATIONS, _PRECISION = 50, 1e-12
"""Of Newton's method: at most, and the relative change at which it ends."""

_TRACE = 1e-6
"""How near the trace must be met, relatively."""


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


def without_each(blocks: Sequence[Part], reference: FeatureStatistics) -> list[tuple[Part, Array]]:
    """Return all images but those of each block, and the eigenvalues of their S R; no product is kept."""
    found = []
    for k in range(len(blocks)):
        rest = together([*blocks[:k], *blocks[k + 1 :]], reference)
        values = np.linalg.eigvalsh(rest.product) / (rest.n - 1)
        found.append((replace(rest, product=np.empty((0, 0))), values))
    return found


def mean_without_each(
    rests: Sequence[tuple[Part, Array]], reference: FeatureStatistics, squares: Sequence[Array]
) -> float:
    """Return the mean of `elliptical_fid` without each block; `squares` are those of each block."""
    left = [np.concatenate([*squares[:k], *squares[k + 1 :]]) for k in range(len(rests))]
    found = [
        elliptical_fid(rest, reference, of, values) for (rest, values), of in zip(rests, left, strict=True)
    ]
    return float(np.mean(found))


def sum_of_roots(values: Array, n: int, known: Scales = GAUSSIAN) -> float:
    """Estimate the sum of the roots of a covariance's eigenvalues from those of a sample, [p] ascending.

    `n` is the number of degrees of freedom, above p; `values` are above zero. Image i is s_i x_i with x_i
    Gaussian, and `known` is the distribution of t_i = s_i^2, whose mean is one. NaN where no solution is
    found.

    At a z beside the sample's eigenvalues v_j let g = sum_j v_j / (v_j - z) / n. The equations of a
    covariance that is separable in features and images (Zhang 2006; Paul and Silverstein 2009) say that g =
    mean_i e t_i / (1 + e t_i), which gives e, and that sum_j w / (w - a_j) = p - n g at w = z e / g, with
    a_j the true eigenvalues. The sum of their roots is then, by Cauchy's theorem and by parts, n / (pi i)
    times the contour integral of sqrt(w) g'(z) dz around the v_j. (Mestre 2008 for the method, of Gaussian
    images, where e = g / (1 - g); Couillet, Tiomoko, Zozor and Moisan 2019 for distances between
    covariances.) Where g is one, e is infinite: that is between any two neighbours of the v_j and between 0
    and the smallest, and the contour passes between 0 and the smallest of these. It is an ellipse in log z,
    where spectra of many magnitudes are short, and the trapezoidal rule converges geometrically.
    """
    low, high = np.log(_smallest_zero(values, n)), np.log(values[-1])
    centre, half = (low + high) / 2, (high - low) / 2 + _AROUND
    # Half of the ellipse: the other half is its mirror image, and so is the integrand.
    angle = (np.arange(_NODES) + 0.5) * np.pi / _NODES
    z = np.exp(centre + half * np.cos(angle) + 1j * _HEIGHT * np.sin(angle))
    step = (-half * np.sin(angle) + 1j * _HEIGHT * np.cos(angle)) * z / _NODES
    apart = 1 / (values - z[:, None])
    g = (values * apart).sum(axis=1) / n
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        w = z * _solve(g, known) / g
    weight = (values * np.square(apart)).sum(axis=1) * step
    # The same integral of w in place of its root is the trace, which is known: what differs is not solved.
    if not np.isclose(float((w * weight).sum().imag), float(values.sum()), rtol=_TRACE, atol=0):
        return float("nan")
    return 2 * float((np.sqrt(w) * weight).sum().imag)


def _solve(g: npt.NDArray[np.complex128], known: Scales) -> npt.NDArray[np.complex128]:
    """Return e with g = mean e t / (1 + e t), by Newton's method; NaN where it does not converge.

    Of the several solutions it is the one that is g / (1 - g) where all t are one, followed as they spread.
    """
    e = g / (1 - g)
    for spread in np.linspace(0, 1, _SPREADS + 1)[1:]:
        squares = 1 + spread * (known.squares - 1)
        weighted = squares * known.shares
        for _ in range(_ITERATIONS):
            damped = 1 / (1 + e[:, None] * squares)
            change = (e * (damped @ weighted) - g) / (np.square(damped) @ weighted)
            e = e - change
            if not np.isfinite(e).all():
                return np.full_like(e, np.nan)
            if (np.abs(change) <= _PRECISION * np.abs(e)).all():
                break
        else:
            return np.full_like(e, np.nan)
    return e


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


def elliptical_fid(sample: Part, reference: FeatureStatistics, squares: Array, values: Array) -> float:
    """Return FID without its bias for images that are Gaussian but for their scales.

    `squares` are those of the scales, [n] (`scales.squared_scales`); `values` are the eigenvalues of S R, [p]
    ascending. NaN where it cannot be told.
    """
    trace = sample.trace / (sample.n - 1)
    values = values[values > CUT_OFF * values[-1]]
    # Without an eigenvalue above zero the root of S R is zero.
    root = sum_of_roots(values, sample.n - 1, scales(squares)) if len(values) else 0.0
    return distance(sample.mean, trace, reference, root) - trace / sample.n


def _smallest_zero(values: Array, n: int) -> float:
    """Return where sum_j v_j / (v_j - x) is n, between 0 and the smallest eigenvalue."""
    low, high = 0.0, float(values[0])
    for _ in range(60):
        middle = (low + high) / 2
        below = float((values / (values - middle)).sum()) < n
        low, high = (middle, high) if below else (low, middle)
    return (low + high) / 2
