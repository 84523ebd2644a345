"""Turn rows of evidence into the estimates of a protocol's metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pytest_sdbench.base.errors import EvidenceError
from pytest_sdbench.metrics.definition import Sample
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.moments import FeatureStatistics, Rows
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.metrics.standard_error import Groups

if TYPE_CHECKING:
    from pytest_sdbench.protocols.protocol import Protocol

Batch = Mapping[str, Rows]


def estimate(
    protocol: Protocol,
    rows: Iterable[Batch],
    references: Mapping[str, FeatureStatistics],
    groups: Groups | None = None,
) -> dict[str, Estimate | Undefined]:
    """Return the protocol's metrics of the images in `rows`, batches of columns in the order of the images.

    `references` are the reference statistics by metric (`references.load_references`); one that is missing
    leaves its metric undefined. `groups` tell which images share a prompt (`groups_of`): they are
    not independent, and standard errors then count prompts.

    `rows` is read several times where it can be (a list, or an object whose `__iter__` starts anew): rows of
    features are then let go, and an image takes a few numbers. The first time gives all columns of one number
    an image. Of an iterator, which can be read only once, the needed columns are kept. Raises EvidenceError
    for a column that is missing, is not finite or has another width than the reference.
    """
    columns = {name: METRICS[name].column(spec.extractor) for name, spec in protocol.metrics.items()}
    if isinstance(rows, Iterator):
        rows = [
            {column: batch[column] for column in set(columns.values()) if column in batch} for batch in rows
        ]
    n, numbers = _read(rows, columns)
    estimates: dict[str, Estimate | Undefined] = {}
    for metric, column in columns.items():
        try:
            of_column = [numbers[column]] if column in numbers else _Column(rows, column)
            known, sample = METRICS[metric], Sample(of_column, n, groups)
            options = known.options_of(protocol.metrics[metric])
            estimates[metric] = known.estimate(sample, references.get(metric), options)
        except ValueError as problem:
            what = f"{metric} cannot be computed: {problem}"
            remedy = "Delete this evidence from the store and run again"
            raise EvidenceError(what, key=column, remedy=remedy) from problem
    return estimates


@dataclass(frozen=True)
class _Column:
    """One column of rows, as often as it is asked for."""

    rows: Iterable[Batch]
    name: str

    def __iter__(self) -> Iterator[Rows]:
        return (batch[self.name] for batch in self.rows)


def _read(rows: Iterable[Batch], columns: Mapping[str, str]) -> tuple[int, dict[str, Rows]]:
    """Return the number of images, and those of the columns that have one number for each of them, [n]."""
    n, numbers = 0, dict[str, list[Rows]]()
    for batch in rows:
        for metric, column in columns.items():
            if column not in batch:
                what = f"{metric} needs the column {column!r}"
                remedy = "The evidence was made under another protocol: delete it and run again"
                raise EvidenceError(what, key=column, found=sorted(batch), remedy=remedy)
            if not np.isfinite(batch[column]).all():
                what = f"NaN or infinity among images {n} to {n + len(batch[column]) - 1}"
                remedy = "The checkpoint or the extractor overflows: try --sdbench-dtype float32"
                raise EvidenceError(what, key=column, remedy=remedy)
        lengths = {len(batch[column]) for column in columns.values()}
        if len(lengths) > 1:
            raise EvidenceError("columns of different lengths in one batch", found=sorted(lengths))
        n += lengths.pop() if lengths else 0
        for column in set(columns.values()):
            if batch[column].ndim == 1:
                numbers.setdefault(column, []).append(batch[column])
    return n, {column: np.concatenate(parts) for column, parts in numbers.items()}
