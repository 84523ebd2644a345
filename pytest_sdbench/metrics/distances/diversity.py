"""Measure how much the pictures of one prompt differ, which distillation costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pytest_sdbench.metrics.definition import Metric, Sample
from pytest_sdbench.metrics.difference import FEWEST_PROMPTS
from pytest_sdbench.metrics.distances.rows import BLOCK, Mask, unit
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.moments import Array, FeatureStatistics, Rows
from pytest_sdbench.metrics.standard_error import Groups, standard_error

_MOST = 1 << 16
"""Pictures whose features are kept at a time, but for those of one prompt."""


@dataclass(frozen=True)
class Distance:
    """What a protocol may set of the diversity."""

    distance: Literal["cosine", "euclidean"] = "cosine"
    """1 - cosine of two rows of features, or their Euclidean distance."""


def diversity_estimate(sample: Sample, groups: Groups, distance: str = "cosine") -> Estimate | Undefined:
    """Return the mean distance of two pictures of one prompt, averaged over the prompts; features are [n, D].

    Over pairs of different pictures, so there is no bias, however few a prompt has; prompts with one picture
    say nothing. The part of a picture is its mean distance from the others of its prompt, and the standard
    error that of a mean over prompts. Undefined where no prompt has two pictures. Raises ValueError for
    features of length 0.

    The features are read once for each 65,536 pictures, and so many are kept, with those of one more prompt.
    """
    n, sizes = len(groups), np.bincount(groups)
    sizes[sizes == 1] = 0
    of_each = sizes[groups]
    some = of_each > 0
    if not some.any():
        return Undefined("diversity", "no prompt has two pictures among these", n)
    parts = np.full(n, np.nan)
    turns = ((np.cumsum(sizes) - sizes) // _MOST)[groups]
    for turn in np.unique(turns[some]):
        (at,) = np.nonzero(some & (turns == turn))
        features = Sample(_chosen(sample, some & (turns == turn)), len(at)).rows()
        order, borders = _order(groups[at])
        for members in np.split(order, borders):
            parts[at[members]] = _mean_distances(features[members], distance)
    # Each prompt counts once, whatever its number of pictures.
    weights = np.divide(1.0, of_each, out=np.zeros(n), where=some)
    prompts = round(float(weights.sum()))
    value = float((weights[some] * parts[some]).sum()) / prompts
    influence = np.where(some, weights * (parts - value), 0.0) * n / prompts
    if prompts < FEWEST_PROMPTS:  # those of one picture say nothing of the others
        return Estimate("diversity", value, None, n, value)
    return Estimate("diversity", value, standard_error(influence, groups), n, value, influence=influence)


def _chosen(batches: Iterable[Rows], chosen: Mask) -> Iterator[Rows]:
    """Yield the chosen ones of all rows, batch by batch."""
    seen = 0
    for batch in batches:
        yield batch[chosen[seen : seen + len(batch)]]
        seen += len(batch)


def _order(groups: Groups) -> tuple[Groups, Groups]:
    """Return the pictures prompt by prompt, and where the next prompt begins."""
    order = np.argsort(groups, kind="stable")
    return order, np.flatnonzero(np.diff(groups[order])) + 1


def _mean_distances(rows: Rows, distance: str) -> Array:
    """Return the mean distance of each row from the others, [k, D] -> [k]."""
    if distance == "cosine":
        directions, sums = unit(rows), np.empty(len(rows))
        for start in range(0, len(rows), BLOCK):
            distances = 1.0 - directions[start : start + BLOCK] @ directions.T
            np.fill_diagonal(distances[:, start:], 0.0)
            sums[start : start + BLOCK] = distances.sum(axis=1)
    else:
        wide = np.asarray(rows, np.float64)
        sums = np.array([np.linalg.norm(wide - row, axis=1).sum() for row in wide])
    return sums / (len(rows) - 1)


def estimate(sample: Sample, _: FeatureStatistics | None, options: Distance) -> Estimate | Undefined:
    """Return the diversity of features, [n, D]; undefined where no prompt repeats."""
    if sample.groups is None:
        reason = "no prompt has two pictures; a protocol whose prompts repeat tells how much they differ"
        return Undefined("diversity", reason, sample.n)
    try:
        return diversity_estimate(sample, sample.groups, options.distance)
    except ValueError as reason:
        return Undefined("diversity", str(reason), sample.n)


DIVERSITY = Metric(
    name="diversity",
    label="Diversity",
    decimals=4,
    recorded_decimals=6,
    higher_is_better=True,
    estimate=estimate,
    output="features",
    options=Distance,
    aliases=("pairwise_distance", "mean_pairwise_distance", "intra_prompt_diversity"),
    minimum=0.0,
    scale="the diversity is a mean distance: 1 - cosine, not the cosine itself, which is a similarity",
)
