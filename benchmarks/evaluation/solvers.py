"""Time FID from moments: our solver, scipy's root as pytorch-fid calls it, torch-fidelity's eigenvalues."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.evaluation.memory import moments
from benchmarks.evaluation.published_procedure import frechet_distance
from pytest_sdbench.metrics.fid import fid
from pytest_sdbench.metrics.moments import FeatureStatistics

OURS, KNOWN = "ours", "ours, root of the reference known"
SQRTM, EIGVALS = "scipy.linalg.sqrtm (pytorch-fid)", "torch-fidelity"
POWERS = (0.5, 1.0, 1.5)
"""Of the spectra: eigenvalue k is k to the minus this power."""


@dataclass(frozen=True)
class Solver:
    """One way to compute FID, timed beside ours."""

    name: str
    seconds: float
    """Median over the rounds."""
    ratio: float
    """Of its seconds to ours (nothing known of the reference), in the same round: median."""
    lowest: float
    highest: float
    difference: float
    """The largest relative difference of its value from ours."""


def measure(width: int = 2048, rounds: int = 5, say: Callable[[str], None] = print) -> list[Solver]:
    """Time the solvers in turn, first forwards, then backwards; each round has other moments.

    They are symmetric, of full rank, with spectra that fall as powers of different exponents.
    """
    ways = {OURS: _ours, KNOWN: fid, SQRTM: _sqrtm, EIGVALS: _torch_fidelity}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    values: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        pair = [
            FeatureStatistics(*moments(width, seed=2 * number + side, power=POWERS[number % len(POWERS)]))
            for side in (0, 1)
        ]
        fid(*pair)  # what it computes of the reference is kept with it
        for name in ways if number % 2 == 0 else reversed(ways):
            began = time.perf_counter()
            values[name].append(ways[name](*pair))
            seconds[name].append(time.perf_counter() - began)
        say(f"round {number + 1} of {rounds}: " + ", ".join(f"{n} {t[-1]:.2f} s" for n, t in seconds.items()))
    found = []
    for name in ways:
        ratios = [theirs / own for theirs, own in zip(seconds[name], seconds[OURS], strict=True)]
        differences = [abs(a / b - 1) for a, b in zip(values[name], values[OURS], strict=True)]
        found.append(
            Solver(
                name,
                statistics.median(seconds[name]),
                statistics.median(ratios),
                min(ratios),
                max(ratios),
                max(differences),
            )
        )
    return found


def _ours(sample: FeatureStatistics, reference: FeatureStatistics) -> float:
    return fid(sample, replace(reference))  # a copy does not know the root yet


def _sqrtm(sample: FeatureStatistics, reference: FeatureStatistics) -> float:
    return frechet_distance(sample.mu, sample.sigma, reference.mu, reference.sigma)


def _torch_fidelity(sample: FeatureStatistics, reference: FeatureStatistics) -> float:
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    pair = [{"mu": one.mu, "sigma": one.sigma} for one in (sample, reference)]
    return float(fid_statistics_to_metric(*pair, verbose=False)[KEY_METRIC_FID])
