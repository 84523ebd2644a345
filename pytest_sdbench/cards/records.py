"""What was measured of a checkpoint, as a card keeps it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pytest_sdbench.metrics.names import METRICS


@dataclass(frozen=True)
class Record:
    """A score that this suite measured, as a card's ``sdbench.records`` keeps it."""

    place: ClassVar = "records"
    names: ClassVar = ("protocol", "metric")
    """Of its key."""

    metric: str
    value: float
    n: int
    protocol: str
    standard_error: float | None = None
    protocol_fingerprint: str | None = None
    checkpoint_fingerprint: str | None = None
    device: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str | None = None
    """ISO 8601."""

    @property
    def key(self) -> tuple[str, str]:
        """Return what a new record replaces an old one by."""
        return self.protocol, self.metric

    def figures(self) -> tuple[float, ...]:
        """Return what has to be finite."""
        return self.value, self.standard_error or 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a card holds it: rounded, in reading order, without what is unknown."""
        decimals = METRICS[self.metric].recorded_decimals if self.metric in METRICS else 6
        error = self.standard_error
        values = {
            "protocol": self.protocol,
            "metric": self.metric,
            "value": round(float(self.value), decimals),
            # An error that rounds to nothing is not known to be nothing.
            "standard_error": None if error is None else round(float(error), decimals) or None,
            "n": int(self.n),
            "protocol_fingerprint": self.protocol_fingerprint,
            "checkpoint_fingerprint": self.checkpoint_fingerprint,
            "device": self.device,
            "versions": dict(self.versions) or None,
            "date": self.date,
        }
        return {key: value for key, value in values.items() if value is not None}


@dataclass(frozen=True)
class DeviceRecord:
    """What one U-Net call took on one device, as a card's ``sdbench.devices`` keeps it."""

    place: ClassVar = "devices"
    names: ClassVar = ("device", "dtype", "mode", "measures")

    device: str
    """As `environment.timed_on` names it."""
    dtype: str
    mode: str
    """``eager`` or ``compiled``."""
    measures: str
    """``latency``, of a single sample, or ``throughput``, in the batch with most samples a second."""
    batch: int
    """Samples of the call."""
    seconds: float
    """Of the call; the median of its rounds."""
    samples_per_second: float
    macs_per_second: float
    peak_bytes: int | None = None
    """The most that the call held, weights included; None where no allocator tells."""
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str | None = None
    """ISO 8601."""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Return what a new record replaces an old one by."""
        return self.device, self.dtype, self.mode, self.measures

    def figures(self) -> tuple[float, ...]:
        """Return what has to be finite."""
        return self.seconds, self.samples_per_second, self.macs_per_second

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a card holds it: to four digits, without what is unknown."""
        values = {
            "device": self.device,
            "dtype": self.dtype,
            "mode": self.mode,
            "measures": self.measures,
            "batch": self.batch,
            **{
                name: float(f"{getattr(self, name):.4g}")
                for name in ("seconds", "samples_per_second", "macs_per_second")
            },
            "peak_bytes": self.peak_bytes,
            "versions": dict(self.versions) or None,
            "date": self.date,
        }
        return {key: value for key, value in values.items() if value is not None}


EAGER_LATENCY = ("eager", "latency")
"""Mode and measure of what a run of the suite times."""


AnyRecord = Record | DeviceRecord


def nearly(known: float, new: float) -> bool:
    """Return whether two values of one score differ in the last digits alone, as batches and threads move."""
    return math.isclose(known, new, rel_tol=5e-4)
