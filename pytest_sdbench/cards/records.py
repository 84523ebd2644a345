"""What was measured of a checkpoint, as a card keeps it."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, ConfigDict

from pytest_sdbench.base.schema import Count, Finite, Positive, Word, one_of
from pytest_sdbench.metrics.registry import METRICS

Date = Annotated[
    str, BeforeValidator(lambda date: date.isoformat() if isinstance(date, datetime.date) else date)
]
"""ISO 8601; YAML reads it as a date unless it is quoted."""


class Part:
    """A part of the ``sdbench`` block: pydantic validates it as it is read and refuses unknown keys."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")


class Entry(Part):
    """One entry of a list of records."""

    place: ClassVar[str]
    """The list's key in the block."""
    names: ClassVar[tuple[str, ...]]
    """What a new entry replaces an old one by."""
    figures: ClassVar[tuple[str, ...]]
    """What has to be finite."""

    @property
    def key(self) -> tuple[str, ...]:
        """Return the values of `names`."""
        return tuple(getattr(self, name) for name in self.names)

    def rounded(self, name: str, figure: float) -> float | None:
        """Return a figure with as many digits as a card keeps."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as a card holds it: rounded, in reading order, without what is unknown."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}  # type: ignore[arg-type]
        for name in self.figures:
            if values[name] is not None:
                values[name] = self.rounded(name, float(values[name]))
        values["versions"] = dict(values["versions"]) or None
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Record(Entry):
    """A score that this suite measured, as a card's ``sdbench.records`` keeps it."""

    place = "records"
    names = ("protocol", "metric")
    figures = ("value", "standard_error")

    protocol: Word
    metric: Word
    value: Finite
    standard_error: Positive | None = None
    n: Count
    protocol_fingerprint: Word | None = None
    checkpoint_fingerprint: Word | None = None
    reference_fingerprint: Word | None = None
    """Of the checkpoint that pairs of pictures were compared with."""
    device: Word | None = None
    versions: Mapping[str, Word] = field(default_factory=dict)
    date: Date | None = None

    def rounded(self, name: str, figure: float) -> float | None:
        """Return a figure with the metric's decimals; an error that rounds to nothing is unknown."""
        decimals = METRICS[self.metric].recorded_decimals if self.metric in METRICS else 6
        digits = round(figure, decimals)
        return None if name == "standard_error" and not digits else digits


@dataclass(frozen=True, kw_only=True)
class DeviceRecord(Entry):
    """What one U-Net call took on one device, as a card's ``sdbench.devices`` keeps it."""

    place = "devices"
    names = ("device", "dtype", "mode", "measures")
    figures = ("seconds", "samples_per_second", "macs_per_second")

    device: Word
    """As `environment.timed_on` names it."""
    dtype: Word
    mode: Annotated[str, one_of("eager", "compiled")]
    measures: Annotated[str, one_of("latency", "throughput")]
    """The latency of a single sample, or the throughput in the batch with most samples a second."""
    batch: Count
    """Samples of the call."""
    seconds: Positive
    """Of the call; the median of its rounds."""
    samples_per_second: Positive
    macs_per_second: Positive
    peak_bytes: Count | None = None
    """The most memory during the call, weights included; None where no allocator tells."""
    versions: Mapping[str, Word] = field(default_factory=dict)
    date: Date | None = None

    def rounded(self, name: str, figure: float) -> float | None:
        """Return a figure to four digits."""
        return float(f"{figure:.4g}")


EAGER_LATENCY = ("eager", "latency")
"""Mode and measure of what a run of the suite times."""


def nearly(known: float, new: float) -> bool:
    """Return whether two values of one score differ in the last digits alone, as batches and threads move."""
    return math.isclose(known, new, rel_tol=5e-4)
