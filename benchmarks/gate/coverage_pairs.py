"""The cells of the coverage table of means over pairs of pictures, their differences, and shares of them.

A population is some prompts with some images each, all of whose scores are known: its mean is the truth, and
a set of images is drawn from it with replacement, prompts first. The preference scores and those of other
tools are the same means.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from itertools import product

import numpy as np

from benchmarks.gate.coverage_cells import FREEDOM, Array, Cell, Found, Interval
from pytest_sdbench.gate.binomial import lower_bound, repeats_of, trials_of, upper_bound
from pytest_sdbench.metrics.definition import Sample
from pytest_sdbench.metrics.difference import FEWEST_PROMPTS, difference
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.metrics.imported import imported_metric
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.metrics.standard_error import Groups

PROMPTS, IMAGES = 20_000, 8
"""Of a population."""

ALIKE = 0.9
"""Correlation of what a checkpoint and another one make of the same prompt and noise."""

RARE = 2.32635
"""What one in a hundred normal values is above."""

NUMBERS = (64, 512, 5_000)
KINDS = (
    *("psnr-equal", "psnr-rare", "ssim-skewed", "lpips-heavy", "cosine-heavier", "imported-votes"),
    "ssim-failures",
)


def scores(kind: str, own: Array, other: Array) -> Array:
    """Return scores of images that have two independent standard normal properties each.

    `equal` and `rare`: a tenth and a hundredth of the pictures equal the reference's, and have 100 dB.
    `failures`: a hundredth of the pictures are black. `votes` are yes or no.
    """
    metric, _, shape = kind.partition("-")
    if shape in ("equal", "rare"):
        return np.where(other > {"equal": 1.28155, "rare": RARE}[shape], 100.0, 35 + 4 * own)
    if shape == "failures":
        return np.where(other > RARE, 0.1, 1 - 0.03 * np.exp(0.5 * own))
    if shape == "skewed":
        return np.asarray(1 - 0.03 * np.exp(0.8 * own))
    if shape == "votes":
        return np.asarray(own < 0.5244, np.float64)
    # Student's t: a normal over the root of a chi-squared of as many degrees of freedom, about.
    freedom = FREEDOM[shape]
    scales = 2 / (9 * freedom)
    tails = own / np.sqrt(np.maximum(1 - scales + other * np.sqrt(scales), 0.05) ** 3)
    least, middle, width, most = (0, 0.2, 0.03, np.inf) if metric == "lpips" else (-1, 0.9, 0.02, 1)
    return np.asarray(np.clip(middle + width * tails, least, most))


def properties(rng: np.random.Generator) -> Array:
    """Return two properties of every image, half of whose variance is its prompt's, [2, PROMPTS, IMAGES]."""
    of_prompts = rng.standard_normal((2, PROMPTS, 1))
    return np.asarray((of_prompts + rng.standard_normal((2, PROMPTS, IMAGES))) / np.sqrt(2))


@lru_cache(maxsize=1)
def population(kind: str) -> Array:
    """Return the scores of a recorded checkpoint and of a candidate, [2, PROMPTS, IMAGES]."""
    rng = np.random.default_rng(KINDS.index(kind))
    recorded, fresh = properties(rng), properties(rng)
    candidate = ALIKE * recorded + np.sqrt(1 - ALIKE**2) * fresh
    candidate[0] -= 0.2
    return np.stack([scores(kind, *recorded), scores(kind, *candidate)])


def drawn(rng: np.random.Generator, n: int, times: int) -> tuple[Groups, Groups, Groups | None]:
    """Return prompts and images of a set, [n] each, and which share a prompt, as the suite draws them."""
    numbers = np.tile(np.arange(n // times), times)
    return rng.integers(0, PROMPTS, n // times)[numbers], rng.integers(0, IMAGES, n), _groups(numbers, times)


def _groups(numbers: Groups, times: int) -> Groups | None:
    return numbers if times > 1 else None


def measured(kind: str, values: Array, groups: Groups | None) -> Estimate:
    """Return what the public code makes of scores; no error of so few prompts that the gate calls nothing."""
    name = {"cosine": "feature_cosine"}.get(kind.partition("-")[0], kind.partition("-")[0])
    known = METRICS.get(name) or imported_metric(name, name, higher_is_better=True, minimum=0, maximum=1)
    found = known.estimate(Sample([values], len(values), groups), None, known.options())
    assert isinstance(found, Estimate)
    prompts = len(values) if groups is None else int(groups.max()) + 1
    return found if prompts >= FEWEST_PROMPTS else replace(found, standard_error=None)


def is_higher_better(kind: str) -> bool:
    """Return the direction of what a population is scored by."""
    return not kind.startswith("lpips")


def mean_cells() -> list[Cell]:
    """Means: what their scores look like, images a prompt, numbers of images."""

    def cell(kind: str, times: int, n: int) -> Cell:
        def measure(rng: np.random.Generator) -> Found:
            prompts, images, groups = drawn(rng, n, times)
            return measured(kind, population(kind)[0, prompts, images], groups)

        name = f"{kind}-{times}-a-prompt-{n}"
        return Cell(
            name,
            lambda: float(population(kind)[0].mean()),
            measure,
            higher_is_better=is_higher_better(kind),
        )

    return [cell(*which) for which in product(KINDS, (1, 2, 4), NUMBERS)]


def difference_cells() -> list[Cell]:
    """Differences of a candidate and a recorded checkpoint, paired on prompts and noise."""

    def cell(kind: str, times: int, n: int) -> Cell:
        def measure(rng: np.random.Generator) -> Found:
            prompts, images, groups = drawn(rng, n, times)
            recorded, candidate = (measured(kind, each[prompts, images], groups) for each in population(kind))
            found = difference(candidate, recorded, groups=groups)
            assert found is not None
            assert found.paired
            error = None if candidate.standard_error is None else found.standard_error
            return Estimate(found.metric, found.value, error, n, found.value)

        def truth() -> float:
            recorded, candidate = population(kind)
            return float((candidate - recorded).mean())

        name = f"{kind}-difference-{times}-a-prompt-{n}"
        return Cell(name, truth, measure, higher_is_better=is_higher_better(kind))

    return [cell(*which) for which in product(KINDS, (1, 4), NUMBERS)]


@lru_cache(maxsize=100_000)
def bounds(count: float, trials: float, repeats: tuple[int, ...]) -> tuple[float, float, float]:
    """Return both bounds of the interval of 95 %, and the upper bound that a verdict looks at."""
    low = lower_bound(count, trials, 0.025, repeats)
    return low, upper_bound(count, trials, 0.025, repeats), upper_bound(count, trials, 0.05, repeats)


def _sizes(repeats: str, n: int) -> Groups:
    """Return how many images each prompt has: one, two, or one and three by turns."""
    if repeats == "once":
        return np.ones(n, np.intp)
    return np.full(n // 2, 2) if repeats.startswith("twice") else np.tile([1, 3], n // 4)


def lost_cells() -> list[Cell]:
    """Shares of lost pictures: true shares, numbers of images, and prompts that repeat.

    `alone`: each picture of a prompt is lost by itself; otherwise all are, or none.
    """
    lost = METRICS["lost"]

    def measure(share: float, n: int, repeats: str, rng: np.random.Generator) -> Found:
        groups = np.repeat(np.arange(len(_sizes(repeats, n))), _sizes(repeats, n))
        is_lost = rng.random(n) < share
        if not repeats.endswith("alone"):
            is_lost = (rng.random(groups.max() + 1) < share)[groups]
        shared = None if repeats == "once" else groups
        values = np.where(is_lost, 0.5, 0.9)
        found = lost.estimate(Sample([values], n, shared), None, lost.options(below=0.75))
        assert isinstance(found, Estimate)
        trials = trials_of(n, shared)
        return Interval(found.value, *bounds(found.value * trials, trials, repeats_of(shared)))

    def cell(share: float, repeats: str, n: int) -> Cell:
        return Cell(
            f"lost-{share:g}-{repeats}-{n}", lambda: share, partial(measure, share, n, repeats), exact=True
        )

    shares, alike = (0.001, 0.01, 0.05), ("once", "twice", "twice-alone")
    cells = [*product(shares, alike, (512, 1_000, 5_000)), *product(shares, ("uneven",), (512, 1_000))]
    return [cell(*which) for which in cells]


def pair_cells() -> list[Cell]:
    """Return every cell."""
    return mean_cells() + difference_cells() + lost_cells()
