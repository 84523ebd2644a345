"""Call the changes in a history of scores, paired where the evidence of its runs is at hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pytest_sdbench.gate.binomial import chance_of_at_least, chance_of_at_most
from pytest_sdbench.metrics.change_points import (
    Chance,
    Change,
    change_points,
    comparisons,
    covariance,
    steadied,
)
from pytest_sdbench.metrics.difference import FEWEST_PROMPTS
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.metrics.moments import Array
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.metrics.standard_error import Groups, count_prompts, images_per_trial
from pytest_sdbench.report.history import Measurement, Point, Series, continues

Find = Callable[[Measurement], tuple[Estimate, Groups | None] | None]
"""Returns the estimate of a measurement from its kept evidence, and which images share a prompt."""


@dataclass(frozen=True)
class Step:
    """One point of a series less the one before it."""

    value: float
    standard_error: float | None
    paired: bool


@dataclass(frozen=True)
class Trend:
    """A series, and what can be said of it."""

    series: Series
    steps: tuple[Step, ...]
    """One fewer than there are points."""
    changes: tuple[Change, ...]
    silent: str = ""
    """Why no change of this series could be called; empty where one could."""

    def worse(self, change: Change) -> bool | None:
        """Return whether a change is one to the worse; None where the figure has no better side."""
        upward = self.series.about.gains_upward
        return None if upward is None else (change.value < 0) == upward


def trends(series: Sequence[Series], find: Find = lambda _: None) -> list[Trend]:
    """Return the trend of each series; the chance of any wrong call in all of them together is 5 %.

    What is not estimated, a latency or a peak of memory, says nothing of what it scatters by from run to run:
    it is shown, and no change of it is called. An exact count changes wherever it differs.
    """
    silent = {id(each): _silent(each) for each in series}
    of = sum(comparisons(len(each.points)) for each in series if not silent[id(each)])
    return [_trend(each, find, of, silent[id(each)]) for each in series]


def _silent(series: Series) -> str:
    if series.exact:
        return ""
    measurements = [point.measurement for point in series.points]
    if series.about.test != "quality":
        return "no error is known of what it scatters by from run to run"
    if any(each.standard_error is None for each in measurements):
        return "a standard error is not known"
    if min(map(_independent, measurements)) < FEWEST_PROMPTS:
        repeats = any(each.prompts is not None for each in measurements)
        return f"fewer than {FEWEST_PROMPTS} {'prompts' if repeats else 'images'}"
    return ""


def _independent(measurement: Measurement) -> int:
    """Return how many images are independent of each other: those of one prompt count as one."""
    return measurement.prompts or measurement.n or 0


def _prompts(known: Sequence[tuple[Estimate, Groups | None] | None]) -> list[int]:
    """Return of each evidence how many different prompts its images have."""
    return [count_prompts(found.n, groups) for found, groups in filter(None, known)]


def _trend(series: Series, find: Find, of: int, silent: str) -> Trend:
    values = np.array([point.measurement.value for point in series.points])
    known: list[tuple[Estimate, Groups | None] | None] = [None] * len(values)
    # A single checkpoint is compared with nothing: its evidence need not be read.
    if len(values) > 1 and series.about.test == "quality":
        known = [_evidence(point, find) for point in series.points]
    matrices = _covariances(series, known)
    matrix = matrices[0]
    steps = []
    for i in range(1, len(values)):
        certain = all(_has_error(series, point) for point in series.points[i - 1 : i + 1])
        variance = matrix[i, i] + matrix[i - 1, i - 1] - 2 * matrix[i, i - 1]
        error = float(np.sqrt(max(variance, 0.0))) if certain else None
        paired = known[i] is not None and known[i - 1] is not None
        steps.append(Step(float(values[i] - values[i - 1]), error, paired))
    fewest = min([_independent(point.measurement) for point in series.points] + _prompts(known))
    if silent or (not series.exact and fewest < FEWEST_PROMPTS):
        return Trend(series, tuple(steps), (), silent or f"fewer than {FEWEST_PROMPTS} prompts")
    least, metric = (
        0.0 if series.decimals is None else 10.0**-series.decimals,
        METRICS.get(series.about.metric),
    )
    chance: Chance = chance_of_shares(series) if metric is not None and metric.share else lambda *_: 0.0
    # Exact figures have no error that could be uncertain.
    freedom = math.inf if series.exact else float(fewest - 1)
    found = change_points(values, matrices, of=of, least=least, chance=chance, freedom=freedom)
    return Trend(series, tuple(steps), tuple(found))


def chance_of_shares(series: Series) -> Chance:
    """Return how likely shares of images differ so much by chance, by their exact distribution.

    Of a count over all points of a window those before its border have a binomial part, if rarer ones are
    Poisson's (Przyborowski, Wilenski 1940, Biometrika 31, 313-323), and one that scatters less else.
    """
    measurements = [point.measurement for point in series.points]
    n = series.about.n or 1
    worth = images_per_trial(n, ((each.value, each.standard_error) for each in measurements))
    sums = np.concatenate([[0.0], np.cumsum([each.value * n / worth for each in measurements])])

    def chance(start: int, border: int, end: int) -> float:
        before, whole = float(sums[border] - sums[start]), float(sums[end] - sums[start])
        part = (border - start) / (end - start)
        tails = chance_of_at_most(before, whole, part), chance_of_at_least(before, whole, part)
        return 2 * min(tails)

    return chance


def _has_error(series: Series, point: Point) -> bool:
    return series.exact or point.measurement.standard_error is not None


def _evidence(point: Point, find: Find) -> tuple[Estimate, Groups | None] | None:
    """Return the evidence of a point where it says the figure that was measured, else None."""
    found, said = find(point.measurement), point.measurement
    if found is None or found[0].influence is None:
        return None
    return found if continues(said, replace(said, value=found[0].value)) else None


def _covariances(series: Series, known: Sequence[tuple[Estimate, Groups | None] | None]) -> Array:
    """Return two covariances of the points, [2, K, K], between which the truth lies.

    Of those with evidence they are their own in both. Others of one draw share their noise, to a part that is
    not known: none of it in the first, all in the second. In a comparison within a draw what is shared
    cancels; in one of two draws it does not, however many points there are. The same evidence has the same
    noise, known or not.
    """
    measurements = [point.measurement for point in series.points]
    errors = np.array([0.0 if series.exact else each.standard_error or 0.0 for each in measurements])
    draws: dict[str, list[int]] = {}
    for i, each in enumerate(measurements):
        draws.setdefault(each.draw, []).append(i)
    least = np.diag(errors**2)
    unknown = [i for i, found in enumerate(known) if found is None]
    least[np.ix_(unknown, unknown)] = steadied(least[np.ix_(unknown, unknown)])
    errors = np.sqrt(np.diag(least))
    alike: dict[tuple[str, str], list[int]] = {}
    for i in unknown:
        same = alike.setdefault((measurements[i].checkpoint, measurements[i].draw), [])
        for j in same:
            if continues(measurements[j], measurements[i]):
                least[i, j] = least[j, i] = errors[i] * errors[j]
        same.append(i)
    most = least.copy()
    for places in draws.values():
        here = np.ix_(places, places)
        if any(known[i] is None for i in places):
            most[here] = np.outer(errors[places], errors[places])
        kept = [(i, found) for i in places if (found := known[i]) is not None]
        if kept:
            moves = [each.influence for _, (each, _) in kept if each.influence is not None]
            block = steadied(covariance(moves, kept[0][1][1]))
            for matrix in (least, most):
                matrix[np.ix_([i for i, _ in kept], [i for i, _ in kept])] = block
    return np.stack([least, most])
