"""The cells of the coverage table: populations whose score is known, and what measures it on draws there."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_sdbench.evaluation.estimate import estimate
from pytest_sdbench.metrics.definition import column
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.fid import fid_estimate
from pytest_sdbench.metrics.moments import FeatureStatistics

BATCH = 512
"""Images handed over at a time."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Interval:
    """A share, and bounds of it that are not so many standard errors away."""

    value: float
    low: float
    high: float
    """Both of the interval of 95 %."""
    one_sided: float
    """The upper bound of 95 %, which the gate looks at."""


Found = Estimate | Undefined | Interval


@dataclass(frozen=True)
class Cell:
    """One population, one number of images."""

    name: str
    truth: Callable[[], float]
    measure: Callable[[np.random.Generator], Found]
    """Measures the score on a fresh set of images."""
    replicates: int = 500
    higher_is_better: bool = False
    exact: bool = False
    """Whether its intervals hold the truth in at least 95 % by construction."""


FREEDOM = {"heavy": 5, "heavier": 3}
"""Degrees of freedom of the tails that are Student's t."""


def noise(rng: np.random.Generator, tail: str, n: int, width: int) -> Array:
    """Return rows of mean zero and unit covariance, [n, width]."""
    if tail == "skewed":
        return rng.standard_exponential((n, width), np.float32) - np.float32(1)
    rows = rng.standard_normal((n, width), np.float32)
    if tail in FREEDOM:
        # Student's t: one scale per image, so all its features are large at once.
        scales = np.sqrt((FREEDOM[tail] - 2) / rng.chisquare(FREEDOM[tail], n))
        rows *= scales.astype(np.float32)[:, None]
    return rows


@dataclass(frozen=True, eq=False)
class Population:
    """Features whose moments are known, and a reference that they are compared with."""

    mean: Array
    root: Array
    """A root of the covariance, [width, width]; its diagonal alone, [width], where there is nothing else."""
    reference: FeatureStatistics
    fid: float


@lru_cache(maxsize=1)
def population(width: int, kind: str) -> Population:
    """Return features whose eigenvalues fall as a power, `far` from or `close` to their reference.

    A `low-rank` reference has a quarter of the dimensions and the images have them all.
    """
    rng = np.random.default_rng([width, zlib.crc32(kind.encode())])
    if kind == "low-rank":
        few = rng.standard_normal((width, width // 4)) / 4
        rest = rng.standard_normal((width, width)) / 8
        return _apart(np.zeros(width), np.linalg.cholesky(1.2 * few @ few.T + rest @ rest.T), few)
    far = kind.startswith("far")
    values = np.arange(1, width + 1) ** (-0.7 if far else -1.0)
    shift = (0.3 if far else 0.03) * math.sqrt(values.mean()) * rng.standard_normal(width)
    if kind == "far-diagonal":
        # Rows of a diagonal covariance need no matrix multiplication; the reference takes over the rotation.
        sigma = np.diag(values * np.exp(0.5 * rng.standard_normal(width)))
        turned = _rotation(rng, width)
        reference = 0.5 * np.diag(values) + 0.5 * (turned * values) @ turned.T
        return _apart(shift, np.sqrt(np.diag(sigma)), np.linalg.cholesky(reference))
    turned = _rotation(rng, width)
    reference = (turned * values) @ turned.T
    other = _rotation(rng, width) if far else turned
    own = (other * (values * np.exp((0.5 if far else 0.1) * rng.standard_normal(width)))) @ other.T
    sigma = 0.5 * reference + 0.5 * own if far else own
    return _apart(shift, np.linalg.cholesky(sigma), np.linalg.cholesky(reference))


def _apart(shift: Array, root: Array, known: Array) -> Population:
    """Return features of mean `shift` beside a reference of mean zero, each with a root of its covariance.

    FID of the two Gaussians comes from singular values: tr (R^1/2 S R^1/2)^1/2 is the nuclear norm of A'B for
    any roots S = A A' and R = B B'.
    """
    whole = np.diag(root) if root.ndim == 1 else root
    common = np.linalg.svd(whole.T @ known, compute_uv=False).sum()
    truth = float(shift @ shift + np.square(whole).sum() + np.square(known).sum() - 2 * common)
    moments = FeatureStatistics(np.zeros(len(known)), known @ known.T)
    return Population(shift.astype(np.float32), root.astype(np.float32), moments, truth)


@lru_cache(maxsize=1)
def crowd(width: int, kind: str, shape: str) -> tuple[Array, Population]:
    """Return a finite population of features that are not Gaussian, [n, width], and what is known of it.

    `rectified`: zero wherever a Gaussian is below zero, as the features of a network are. `clusters`: around
    ten centres.
    """
    rng, far = np.random.default_rng([width, zlib.crc32(f"{kind} {shape}".encode())]), kind == "far"
    turned, n = rng.standard_normal((width, width)) / math.sqrt(width), 100_000
    centres = rng.standard_normal((2, 10, width))

    def drawn(scale: float, shift: float) -> Array:
        rows = scale * rng.standard_normal((n, width)) @ turned.T
        if shape == "rectified":
            return np.asarray(np.maximum(rows + shift, 0), np.float32)
        moved = centres[0] + shift * centres[1]
        return np.asarray(moved[rng.integers(0, 10, n)] + 0.3 * rows, np.float32)

    known, rows = drawn(1, 0), drawn(1.4, 0.3) if far else drawn(1.05, -0.05)
    # The reference's mean is zero.
    centre = known.mean(axis=0, dtype=np.float64).astype(np.float32)
    known, rows = known - centre, rows - centre
    roots = [np.linalg.cholesky(np.cov(each.T.astype(np.float64), ddof=0)) for each in (rows, known)]
    return rows, _apart(rows.mean(axis=0, dtype=np.float64), *roots)


def _rotation(rng: np.random.Generator, width: int) -> Array:
    return np.asarray(np.linalg.qr(rng.standard_normal((width, width)))[0])


def fid_cells() -> list[Cell]:
    """FID: widths, numbers of images, shapes of the features, near and far."""

    def cell(width: int, kind: str, shape: str, times: int, replicates: int = 400) -> Cell:
        gaussian = shape in ("gaussian", "skewed", *FREEDOM)

        def whole() -> Population:
            return population(width, kind) if gaussian else crowd(width, kind, shape)[1]

        def measure(rng: np.random.Generator) -> Found:
            known, n = whole(), times * width
            if gaussian:
                rows = noise(rng, shape, n, width)
                rows = rows * known.root if known.root.ndim == 1 else rows @ known.root.T
                rows += known.mean
            else:
                rows = crowd(width, kind, shape)[0]
                rows = rows[rng.integers(0, len(rows), n)]
            # In batches, as they come from a store.
            return fid_estimate(np.split(rows, range(BATCH, len(rows), BATCH)), known.reference)

        name = f"fid-{width}-{kind.removesuffix('-diagonal')}-{shape}-{times}x"
        return Cell(name, lambda: whole().fid, measure, replicates)

    either, multiples = ("far", "close"), (2, 4, 8, 15)
    usual = product((64, 512), either, ("gaussian", "heavy", "skewed"), multiples)
    wide = product((2048,), ("far-diagonal",), ("gaussian", "heavy"), multiples)
    # Whether more images mend what is off.
    many = product((64,), ("close",), ("heavy", "skewed"), (60,))
    rectified = product((16,), either, ("rectified",), (*multiples, 60))
    other = product((64,), either, ("heavier", "clusters"), multiples)
    low = product((16, 64), ("low-rank",), ("gaussian",), multiples)
    found = [cell(*which, 500) for which in usual] + [cell(*which, 200) for which in wide]
    return found + [cell(*which) for which in (*many, *rectified, *other, *low)]


def _logits(rng: np.random.Generator, classes: int, n: int) -> Array:
    """Return logits that are Gaussian around a mean of the class that was drawn, some classes more often."""
    often = np.arange(1, classes + 1) ** -0.5
    drawn = rng.choice(classes, n, p=often / often.sum())
    rows = rng.standard_normal((n, classes), np.float32)
    # So far above the others that most images have a clear class, whatever the number of classes.
    rows[np.arange(n), drawn] += np.float32(2 + math.log(classes))
    return rows


@lru_cache(maxsize=1)
def true_inception_score(classes: int, images: int = 2_000_000) -> float:
    """Return exp(H(E p) - E H(p)) of a very large sample; its own bias is below a ten-thousandth."""
    rng = np.random.default_rng([classes, 1])
    marginal, negentropy, step = np.zeros(classes), 0.0, 10_000
    for _ in range(images // step):
        rows = _logits(rng, classes, step)
        p = np.exp(rows)
        total = p.sum(axis=1, keepdims=True)
        p /= total
        marginal += p.sum(axis=0, dtype=np.float64)
        negentropy += float((p * (rows - np.log(total))).sum(dtype=np.float64))
    marginal /= images
    return math.exp(negentropy / images - float((marginal * np.log(marginal)).sum()))


def _protocol(**spec: object) -> Any:
    return SimpleNamespace(metrics={spec["metric"]: SimpleNamespace(**spec)})


def inception_cells() -> list[Cell]:
    """The Inception score: three numbers of classes, three of images, one split and ten."""

    def cell(classes: int, n: int, splits: int) -> Cell:
        asked = _protocol(metric="inception_score", extractor="net", splits=splits, shuffle_seed=2020)

        def measure(rng: np.random.Generator) -> Found:
            rows = {"net-logits": _logits(rng, classes, n)}
            return estimate(asked, [rows], {})["inception_score"]

        name = f"is-{classes}-{n}-splits-{splits}"
        return Cell(name, lambda: true_inception_score(classes), measure, higher_is_better=True)

    return [cell(*which) for which in product((9, 32, 200), (512, 2_000, 10_000), (1, 10))]


POOL, REFERENCE = 10_000, 1_000


@lru_cache(maxsize=1)
def pool(width: int, kind: str, tail: str) -> tuple[Array, FeatureStatistics, float]:
    """Return a finite population, a reference sample, and the squared MMD between the first and the second.

    Images are drawn from the population with replacement, so two may be the same row and its kernel with
    itself counts. The reference is one fixed sample, taken as given: among it the pairs of two rows count, as
    in KID.
    """
    rng = np.random.default_rng([width, zlib.crc32(f"{kind} {tail}".encode())])
    scale = np.arange(1, width + 1) ** -0.35
    scale /= math.sqrt(np.square(scale).mean())
    reference = noise(rng, tail, REFERENCE, width) * scale
    rows = noise(rng, tail, POOL, width) * scale
    if kind == "far":
        rows = rows * np.exp(0.2 * rng.standard_normal(width)) + 0.2 * rng.standard_normal(width)
    rows, reference = rows.astype(np.float32), reference.astype(np.float32)

    def total(x: Array, y: Array) -> float:
        x, y = x.astype(np.float64), y.astype(np.float64)
        return sum(float(((part @ y.T / width + 1) ** 3).sum()) for part in np.array_split(x, len(x) // 500))

    own = float(((np.square(reference.astype(np.float64)).sum(axis=1) / width + 1) ** 3).sum())
    truth = (
        total(rows, rows) / POOL**2
        - 2 * total(rows, reference) / (POOL * REFERENCE)
        + (total(reference, reference) - own) / (REFERENCE * (REFERENCE - 1))
    )
    known = FeatureStatistics(np.zeros(width), np.eye(width), REFERENCE, reference)
    return rows, known, truth


def kid_cells() -> list[Cell]:
    """KID: two widths, two tails, three numbers of images, near and far."""
    asked = _protocol(metric="kid", extractor="net")

    def cell(width: int, kind: str, tail: str, n: int) -> Cell:
        def measure(rng: np.random.Generator) -> Found:
            rows, reference, _ = pool(width, kind, tail)
            drawn = {"net": rows[rng.integers(0, POOL, n)]}
            return estimate(asked, [drawn], {"kid": reference})["kid"]

        return Cell(f"kid-{width}-{kind}-{tail}-{n}", lambda: pool(width, kind, tail)[2], measure)

    return [
        cell(*which)
        for which in product((16, 64), ("far", "close"), ("gaussian", "heavy"), (256, 1_000, 2_000))
    ]


def clip_cells() -> list[Cell]:
    """The CLIP score: prompts once and four times, two tails, two numbers of images."""
    asked, truth = _protocol(metric="clip_score", extractor="net"), 0.3

    def cell(tail: str, times: int, n: int) -> Cell:
        def measure(rng: np.random.Generator) -> Found:
            of_prompts = noise(rng, tail, n // times, 1)[:, 0]
            # One image after the other of all prompts, as the suite draws them.
            prompts = np.tile(np.arange(n // times), times)
            cosines = truth + 0.02 * (of_prompts[prompts] + noise(rng, tail, n, 1)[:, 0])
            groups = prompts if times > 1 else None
            return estimate(asked, [{column("net", "cosine"): cosines}], {}, groups)["clip_score"]

        return Cell(f"clip-{tail}-{times}-a-prompt-{n}", lambda: truth, measure, higher_is_better=True)

    return [cell(*which) for which in product(("gaussian", "skewed"), (1, 4), (200, 2_000))]


def all_cells() -> list[Cell]:
    """Return every cell, the fast ones first."""
    fids = fid_cells()
    narrow = [cell for cell in fids if cell.name.startswith(("fid-16-", "fid-64-"))]
    return (
        narrow
        + clip_cells()
        + inception_cells()
        + kid_cells()
        + [each for each in fids if each not in narrow]
    )
