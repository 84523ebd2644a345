"""Time FID from moments: our solver, scipy's root as pytorch-fid calls it, torch-fidelity's eigenvalues."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.evaluation.memory import moments
from benchmarks.evaluation.published_procedure import frechet_distance
from benchmarks.turns import spread, take_turns
from pytest_sdbench.metrics.frechet import fid
from pytest_sdbench.metrics.moments import FeatureStatistics

OURS, KNOWN = "ours", "ours, root of the reference known"
SQRTM, EIGVALS = "scipy.linalg.sqrtm (pytorch-fid)", "torch-fidelity"
POWERS = (0.5, 1.0, 1.5)
"""Of the spectra: eigenvalue k is k to the minus this power."""

Pair = tuple[FeatureStatistics, FeatureStatistics]


def measure(width: int = 2048, rounds: int = 5) -> list[dict[str, Any]]:
    """Time the solvers in turn, first forwards, then backwards; each round has other moments.

    They are symmetric, of full rank, with spectra that fall as powers of different exponents. Ratios are of
    seconds to ours (nothing known of the reference); differences are the largest relative ones of the values.
    """
    pairs = [_pair(width, number) for number in range(rounds)]
    solvers: dict[str, Callable[[FeatureStatistics, FeatureStatistics], float]] = {
        OURS: lambda sample, reference: fid(sample, replace(reference)),  # a copy does not know the root yet
        KNOWN: fid,
        SQRTM: lambda one, other: frechet_distance(one.mu, one.sigma, other.mu, other.sigma),
        EIGVALS: _torch_fidelity,
    }
    ways = {name: partial(_timed, solver, iter(pairs)) for name, solver in solvers.items()}
    turns = take_turns(ways, rounds, show=lambda turn: f"{turn[0]:.2f} s")
    seconds = {name: [turn[0] for turn in own] for name, own in turns.items()}
    values = {name: [turn[1] for turn in own] for name, own in turns.items()}
    return [
        {
            "name": name,
            "seconds": statistics.median(seconds[name]),
            **spread(seconds[name], seconds[OURS]),
            "difference": max(abs(a / b - 1) for a, b in zip(values[name], values[OURS], strict=True)),
        }
        for name in ways
    ]


def _pair(width: int, number: int) -> Pair:
    power = POWERS[number % len(POWERS)]
    sample, reference = (
        FeatureStatistics(*moments(width, seed=2 * number + side, power=power)) for side in (0, 1)
    )
    fid(sample, reference)  # what it computes of the reference is kept with it
    return sample, reference


def _timed(solver: Callable[..., float], pairs: Iterator[Pair]) -> tuple[float, float]:
    pair = next(pairs)
    began = time.perf_counter()
    value = solver(*pair)
    return time.perf_counter() - began, value


def _torch_fidelity(sample: FeatureStatistics, reference: FeatureStatistics) -> float:
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    pair = [{"mu": one.mu, "sigma": one.sigma} for one in (sample, reference)]
    return float(fid_statistics_to_metric(*pair, verbose=False)[KEY_METRIC_FID])
