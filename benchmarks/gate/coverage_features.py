"""The cells of the coverage table of the newer distances of features, and of diversity.

FD-DINOv2 and KD-DINOv2 are estimated by the very functions of FID and KID; theirs are cells of their width.
Recall and coverage stand for one number of images, so their truth is the mean over many sets of so many;
precision, density and diversity are those of one very large set; CMMD is that of all pairs of a finite pool.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from functools import lru_cache
from itertools import product

import numpy as np

from benchmarks.gate import coverage_cells
from benchmarks.gate.coverage_cells import Array, Cell, Found, noise
from pytest_sdbench.metrics.definition import Sample
from pytest_sdbench.metrics.distances.rows import distance_blocks, nearest
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.metrics.moments import FeatureStatistics
from pytest_sdbench.metrics.registry import METRICS

WIDTH, REFERENCE, POOL, SETS = 16, 500, 6_000, 500
"""Features, reference images, images of a finite pool, sets behind the truth of recall and coverage."""


def draw(rng: np.random.Generator, kind: str, n: int, times: int = 1) -> Array:
    """Return features of n images, `times` of each prompt: of ten modes, seven of which lie together.

    Real ones are `good`; `dropping` are of five modes alone, `noisy` have noise besides, `heavy` wide tails.
    """
    centres = (
        np.random.default_rng(5).normal(size=(10, WIDTH)) * np.where(np.arange(10) < 7, 0.5, 2.0)[:, None]
    )
    modes = rng.integers(0, 5 if kind == "dropping" else 10, n // times)
    prompts = centres[modes] + noise(rng, "heavy" if kind == "heavy" else "gaussian", n // times, WIDTH)
    if times > 1:
        prompts = np.tile(prompts, (times, 1)) + 0.5 * rng.standard_normal((n, WIDTH))
    width = 0.7 if kind == "noisy" else 0.0
    return np.asarray(prompts + width * rng.standard_normal((n, WIDTH)), np.float32)


@lru_cache(maxsize=4)
def real(kind: str) -> FeatureStatistics:
    """Return the reference: as heavy in its tails as the images."""
    rows = draw(np.random.default_rng(77), "heavy" if kind == "heavy" else "good", REFERENCE)
    return FeatureStatistics(np.zeros(WIDTH), np.eye(WIDTH), REFERENCE, rows)


def measured(metric: str, rows: Array, reference: FeatureStatistics | None, times: int = 1) -> Found:
    """Return what the public code makes of these images, `times` of each prompt one after the other."""
    known, n = METRICS[metric], len(rows)
    groups = np.tile(np.arange(n // times), times) if times > 1 else None
    return known.estimate(Sample([rows], n, groups), reference, known.options())


def value_of(found: Found) -> float:
    """Return the value of an estimate that is there."""
    assert isinstance(found, Estimate)
    return found.value


@lru_cache(maxsize=8)
def truths(kind: str, n: int, times: int) -> dict[str, float]:
    """Return the expectation of the four that neighbours make, at this number of images."""
    rng = np.random.default_rng([zlib.crc32(kind.encode()), n, times])
    reference = real(kind)
    assert reference.features is not None
    large = draw(rng, kind, 100_000, times)
    found = {name: value_of(measured(name, large, reference)) for name in ("precision", "density")}
    radii = nearest(reference.features, 5)[0][:, 4]
    shares = np.zeros(2)
    for _ in range(SETS):
        rows = draw(rng, kind, n, times)
        own = nearest(rows, 3)[0][:, 2]
        for part, squares in distance_blocks(reference.features, rows):
            near = squares <= own, squares <= radii[part, None]
            shares += [np.count_nonzero(each.any(axis=1)) for each in near]
    recall, coverage = (float(share) / (SETS * REFERENCE) for share in shares)
    return found | {"recall": recall, "coverage": coverage}


def neighbour_cells() -> list[Cell]:
    """Precision, recall, density and coverage: generators, numbers of images, and prompts that repeat."""

    def cell(metric: str, kind: str, n: int, times: int) -> Cell:
        def measure(rng: np.random.Generator) -> Found:
            found = measured(metric, draw(rng, kind, n, times), real(kind), times)
            # The truth of recall and coverage is that of this number of images.
            return replace(found, corrected=found.value) if isinstance(found, Estimate) else found

        name = f"{metric}-{kind}-{n}" + (f"-{times}-a-prompt" if times > 1 else "")
        # The cell that is nearest to the end of the range is looked at more closely.
        replicates = 2_000 if (metric, kind, n) == ("recall", "noisy", 256) else 500
        return Cell(name, lambda: truths(kind, n, times)[metric], measure, replicates, higher_is_better=True)

    metrics = ("recall", "coverage", "precision", "density")
    once = product(metrics, ("good", "dropping", "noisy", "heavy"), (256, 512), (1,))
    return [cell(*which) for which in (*once, *product(metrics, ("good",), (512,), (2,)))]


DINOV2 = 1_024
"""Features of ViT-L/14."""


def dinov2_cells() -> list[Cell]:
    """FD-DINOv2, by multiples of the width, and KD-DINOv2; narrower and wider features are cells of FID."""

    def frechet(times: int) -> Cell:
        def measure(rng: np.random.Generator) -> Found:
            known = coverage_cells.population(DINOV2, "far-diagonal")
            rows = noise(rng, "gaussian", times * DINOV2, DINOV2) * known.root + known.mean
            return measured("fd_dinov2", rows, known.reference)

        def truth() -> float:
            return coverage_cells.population(DINOV2, "far-diagonal").fid

        return Cell(f"fd_dinov2-{DINOV2}-far-gaussian-{times}x", truth, measure, 100)

    def kernel(kind: str, tail: str, n: int) -> Cell:
        def measure(rng: np.random.Generator) -> Found:
            rows, reference, _ = coverage_cells.pool(DINOV2, kind, tail)
            return measured("kd_dinov2", rows[rng.integers(0, len(rows), n)], reference)

        name = f"kd_dinov2-{DINOV2}-{kind}-{tail}-{n}"
        return Cell(name, lambda: coverage_cells.pool(DINOV2, kind, tail)[2], measure)

    kinds = (("far", "gaussian"), ("close", "gaussian"), ("far", "heavy"))
    return [kernel(*which, 512) for which in kinds] + [frechet(times) for times in (2, 4)]


@lru_cache(maxsize=1)
def pool(kind: str) -> tuple[Array, FeatureStatistics, float]:
    """Return images to draw from, with replacement, a reference, and the CMMD of all of them."""
    rng = np.random.default_rng(zlib.crc32(kind.encode()))
    reference = real(kind)
    rows = draw(rng, kind, POOL)
    assert reference.features is not None
    x, y = (
        each / np.linalg.norm(each, axis=1, keepdims=True)
        for each in (rows.astype(np.float64), reference.features.astype(np.float64))
    )

    def mean(first: Array, second: Array) -> float:
        # exp(-|x - y|^2 / 200) of rows of length 1
        parts = [np.exp((part @ second.T - 1) / 100).sum() for part in np.array_split(first, 10)]
        return float(sum(parts)) / (len(first) * len(second))

    return rows, reference, 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


def cmmd_cells() -> list[Cell]:
    """CMMD: generators and numbers of images."""

    def cell(kind: str, n: int) -> Cell:
        def measure(rng: np.random.Generator) -> Found:
            rows, reference, _ = pool(kind)
            return measured("cmmd", rows[rng.integers(0, POOL, n)], reference)

        return Cell(f"cmmd-{kind}-{n}", lambda: pool(kind)[2], measure)

    return [cell(*which) for which in product(("good", "dropping", "noisy", "heavy"), (256, 1_000))]


@lru_cache(maxsize=4)
def true_diversity(kind: str) -> float:
    """Return the mean distance of two images of one prompt, of very many prompts."""
    rows = draw(np.random.default_rng(8), kind, 400_000, 2).astype(np.float64)
    x, y = rows[:200_000], rows[200_000:]
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return float(1 - (np.einsum("ij,ij->i", x, y) / lengths).mean())


def diversity_cells() -> list[Cell]:
    """Diversity: two tails, two and four images a prompt, two numbers of images."""

    def cell(kind: str, times: int, n: int) -> Cell:
        def measure(rng: np.random.Generator) -> Found:
            return measured("diversity", draw(rng, kind, n, times), None, times)

        name = f"diversity-{kind}-{times}-a-prompt-{n}"
        return Cell(name, lambda: true_diversity(kind), measure, higher_is_better=True)

    return [cell(*which) for which in product(("good", "heavy"), (2, 4), (200, 1_000))]


def feature_cells() -> list[Cell]:
    """Return every cell, the fast ones first."""
    return diversity_cells() + cmmd_cells() + neighbour_cells() + dinov2_cells()
