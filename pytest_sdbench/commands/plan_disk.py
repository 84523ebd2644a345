"""Reckon the disk that evidence takes before it is made."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from pytest_sdbench.features.extractors import column_widths
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.store.gap import Gap
from pytest_sdbench.store.pictures import pictures_range
from pytest_sdbench.store.shard_format import Rows
from pytest_sdbench.store.shards import Evidence, Store

MEASURED, ESTIMATED = "measured", "estimated"


def evidence_bytes(protocol: Protocol, gaps: Iterable[Gap], manifest: Mapping[str, object]) -> int:
    """Return the bytes that the evidence of missing shards takes: one of each length and set is tried out.

    It is written by the store itself, to a temporary folder. Raises ProtocolError for an extractor that does
    not exist.
    """
    sizes: dict[tuple[int, frozenset[str]], int] = {}
    total = beside = 0
    for gap in gaps:
        if not (gap.rows or gap.columns):
            continue
        which = len(gap.images), gap.columns
        if which not in sizes:
            with tempfile.TemporaryDirectory() as folder:
                Store(Path(folder)).open("0" * 16, "0" * 16, manifest).write(0, _zeros(protocol, gap))
                files = [file for file in Path(folder).rglob("*") if file.is_file()]
                sizes[which] = sum(file.stat().st_size for file in files if file.suffix == ".safetensors")
                beside = sum(file.stat().st_size for file in files) - sizes[which]
        total += sizes[which]
    return total + beside


def picture_bytes(protocol: Protocol, count: int, evidence: Evidence | None) -> tuple[int, str]:
    """Return the bytes that so many kept pictures take, and whether that was measured or estimated.

    Measured is what the kept ones of this draw take; else no picture takes more than its pixels do.
    """
    if not count:
        return 0, ""
    files = evidence.storage.files() if evidence is not None else {}
    kept = {name: images for name in files if (images := pictures_range(name)) is not None}
    if number := sum(map(len, kept.values())):
        return math.ceil(count * sum(files[name].size for name in kept) / number), MEASURED
    # Five blocks of a tar: three headers, a prompt and a seed.
    return count * (3 * protocol.sampling.resolution**2 + 5 * 512), ESTIMATED


def _zeros(protocol: Protocol, gap: Gap) -> Rows:
    """Return rows of the form that the engine writes."""
    count = len(gap.images)
    rows: Rows = {name: np.zeros(count, np.bool_) for name in ("blacked_out", "truncated")}
    rows["seed"] = np.zeros(count, np.int64)
    for column, width in column_widths(protocol).items():
        if column in gap.columns:
            rows[column] = np.zeros(count if width == 1 else (count, width), np.float32)
    return rows
