"""Turn rows of evidence into the estimates of a protocol's metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from pytest_sdbench.base.errors import EvidenceError
from pytest_sdbench.features.extractors import CLIP_COLUMN, feature_column, logits_column
from pytest_sdbench.metrics.estimates import clip_score
from pytest_sdbench.metrics.inception_score import InceptionScore
from pytest_sdbench.metrics.kid import kid_influence
from pytest_sdbench.metrics.moments import FeatureStatistics, Rows
from pytest_sdbench.metrics.standard_error import Groups, standard_error

if TYPE_CHECKING:
    from pytest_sdbench.protocols.protocol import InceptionScoreSpec, Protocol
from pytest_sdbench.metrics.estimates import Batch, Estimate, Undefined, _inception_estimate, fid_estimate


def estimate(
    protocol: Protocol,
    rows: Iterable[Batch],
    references: Mapping[str, FeatureStatistics],
    groups: Groups | None = None,
) -> dict[str, Estimate | Undefined]:
    """Return the protocol's metrics of the images in `rows`, batches of columns in the order of the images.

    `references` are the reference statistics by metric (`statistics.load_references`); one that is missing
    leaves its metric undefined. `groups` tell which images share a prompt (`spread.groups_of`): they are
    not independent, and standard errors then count prompts.

    `rows` is read several times where it can be (a list, or an object whose `__iter__` starts anew): memory
    then grows with neither FID nor the Inception score. Of an iterator, which can be read only once, the
    needed columns are kept. Raises EvidenceError for a column that is missing, is not finite or has another
    width than the reference.
    """
    columns = {name: _column(name, protocol) for name in protocol.metrics}
    if isinstance(rows, Iterator):
        rows = [
            {column: batch[column] for column in set(columns.values()) if column in batch} for batch in rows
        ]
    n = _count(rows, columns)
    estimates: dict[str, Estimate | Undefined] = {}
    for metric, column in columns.items():
        try:
            estimates[metric] = _estimate(metric, protocol, rows, column, n, references.get(metric), groups)
        except ValueError as problem:
            raise EvidenceError(
                f"{metric} cannot be computed: {problem}",
                key=column,
                remedy="Delete this evidence from the store and run again",
            ) from problem
    return estimates


def _estimate(
    metric: str,
    protocol: Protocol,
    rows: Iterable[Batch],
    column: str,
    n: int,
    reference: FeatureStatistics | None,
    groups: Groups | None,
) -> Estimate | Undefined:
    if metric == "clip_score":
        if not n:
            return Undefined(metric, "no images", n)
        cosines = np.concatenate([batch[column] for batch in rows])
        value, error = clip_score(cosines, groups)
        return Estimate(metric, value, error, n, value, influence=cosines.astype(np.float64) - value)
    if metric == "inception_score":
        spec = cast("InceptionScoreSpec", protocol.metrics[metric])
        if n < spec.splits:
            return Undefined(metric, f"{n} images cannot be split in {spec.splits}", n)
        score = InceptionScore(n, splits=spec.splits, shuffle_seed=spec.shuffle_seed)
        return _inception_estimate(_Column(rows, column), score, groups)
    if reference is None:
        return Undefined(metric, "there are no reference statistics", n)
    if metric == "fid":
        return fid_estimate(_Column(rows, column), reference, groups)
    if reference.features is None:
        return Undefined(metric, "the reference statistics hold moments only; KID needs features", n)
    if n < 2:
        return Undefined(metric, "KID needs at least 2 images", n)
    found = kid_influence(np.concatenate([batch[column] for batch in rows]), reference.features, groups)
    if found.uncertain:
        return Estimate(metric, found.value, None, n, found.corrected)
    return Estimate(
        metric,
        found.value,
        standard_error(found.influence, groups, degenerate=found.degenerate, unbiased=found.unbiased),
        n,
        found.corrected,
        (found.value - found.corrected) * n,
        found.influence,
        found.degenerate,
    )


@dataclass(frozen=True)
class _Column:
    """One column of rows, as often as it is asked for."""

    rows: Iterable[Batch]
    name: str

    def __iter__(self) -> Iterator[Rows]:
        return (batch[self.name] for batch in self.rows)


def _column(metric: str, protocol: Protocol) -> str:
    spec = protocol.metrics[metric]
    if spec.metric == "clip_score":
        return CLIP_COLUMN
    return (
        logits_column(spec.extractor) if spec.metric == "inception_score" else feature_column(spec.extractor)
    )


def _count(rows: Iterable[Batch], columns: Mapping[str, str]) -> int:
    n = 0
    for batch in rows:
        for metric, column in columns.items():
            if column not in batch:
                raise EvidenceError(
                    f"{metric} needs the column {column!r}",
                    key=column,
                    found=sorted(batch),
                    remedy="The evidence was made under another protocol: delete it and run again",
                )
            if not np.isfinite(batch[column]).all():
                raise EvidenceError(
                    f"NaN or infinity among images {n} to {n + len(batch[column]) - 1}",
                    key=column,
                    remedy="The checkpoint or the extractor overflows: try --sdbench-dtype float32",
                )
        lengths = {len(batch[column]) for column in columns.values()}
        if len(lengths) > 1:
            raise EvidenceError("columns of different lengths in one batch", found=sorted(lengths))
        n += lengths.pop() if lengths else 0
    return n
