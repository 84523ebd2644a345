"""What a protocol's scores scatter by when only the seeds change, as measured or as published.

A file ``calibration/PROTOCOL.json`` beside the folder of protocols holds one figure a run and metric.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pytest_sdbench.errors import DataError
from pytest_sdbench.files import write_atomically
from pytest_sdbench.metric_names import METRICS
from pytest_sdbench.protocol import Protocol

FOLDER = "calibration"


@dataclass(frozen=True)
class Calibration:
    """Runs of one checkpoint under one protocol that differ in the draw alone."""

    protocol: str
    protocol_fingerprint: str
    checkpoint: str
    """What was run, in words."""
    values: Mapping[str, Sequence[float]]
    """By metric: the score of each run."""
    seeds: Sequence[int] = ()
    standard_errors: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By metric: what each run said that its standard error is."""
    false_alarms: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By metric: how many pairs of runs passed, failed and were inconclusive when one was judged by the
    other."""
    source: str = "pytest-sdbench"
    date: str | None = None

    def spread(self, metric: str) -> float | None:
        """Return the standard deviation of a metric over the runs, or None where two are not known."""
        values = self.values.get(metric, ())
        return statistics.stdev(values) if len(values) > 1 else None


def calibration_path(protocol: Protocol) -> Path:
    """Return where a protocol's calibration lies, or would."""
    folder = protocol.path.parent
    return (folder.parent if folder.name == "protocols" else folder) / FOLDER / f"{protocol.name}.json"


def read_calibration(protocol: Protocol) -> Calibration | None:
    """Return the calibration of a protocol, or None where there is none or the protocol has changed since.

    Raises DataError for a file that is none.
    """
    path = calibration_path(protocol)
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = Calibration(**content)
        for metric, values in found.values.items():
            if metric not in METRICS:
                raise ValueError(f"unknown metric {metric!r}")
            statistics.fmean(values)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"not a calibration: {error}",
            file=path,
            remedy="Delete it, and measure it again with --sdbench-calibrate",
        ) from None
    return found if found.protocol_fingerprint == protocol.fingerprint else None


def write_calibration(protocol: Protocol, calibration: Calibration) -> Path:
    """Write a calibration into its place and return that."""
    path = calibration_path(protocol)
    text = json.dumps(asdict(calibration), indent=2, ensure_ascii=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode("utf-8"))
    except OSError as error:
        raise DataError(
            f"the calibration cannot be written: {error.strerror or error}",
            file=path,
            remedy="Make the folder writable, or calibrate a protocol of your own beside your card",
        ) from error
    return path
