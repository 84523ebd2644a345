"""What may stand in a card, and what to say about anything else."""

from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pytest_sdbench.base.errors import CardError
from pytest_sdbench.base.schema import Keys, faults, suggestion
from pytest_sdbench.cards.front_matter import FrontMatter
from pytest_sdbench.metrics.names import METRICS, metric_name

Shape = TypeVar("Shape", bound=BaseModel)

COMPONENTS = ("unet", "text_encoder", "image_decoder", "whole")

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]
Word = Annotated[str, Field(min_length=1)]
DateText = Annotated[
    str, BeforeValidator(lambda date: date.isoformat() if isinstance(date, datetime.date) else date)
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SizePart(_Part):
    """One component's parameters: counted exactly, and as the source prints them."""

    exact: Count | None = None
    published: Positive | None = None


class Size(_Part):
    """The components that are counted."""

    unet: SizePart | None = None
    text_encoder: SizePart | None = None
    image_decoder: SizePart | None = None
    whole: SizePart | None = None


class Compute(_Part):
    """Multiply-accumulates."""

    unet_macs: Positive | None = None


class Ratio(_Part):
    """The largest ratio to the baseline."""

    max: Positive
    source: Word | None = None
    reason: Word | None = None


class Latency(_Part):
    """The largest latency of one call on one device, in seconds."""

    max: Positive
    device: Word
    dtype: Word | None = None
    source: Word | None = None


class Speed(_Part):
    """Latency of one U-Net call."""

    unet_ratio: Ratio | None = None
    unet_seconds: Latency | None = None


class Peak(_Part):
    """The largest peak memory, in bytes."""

    max: Positive
    device: Word | None = None
    source: Word | None = None


class Memory(_Part):
    """Memory of one U-Net call."""

    peak_bytes: Peak | None = None


class RecordEntry(_Part):
    """What this suite measured."""

    protocol: Word
    metric: Word
    value: Annotated[float, Field(allow_inf_nan=False)]
    standard_error: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    n: Count
    protocol_fingerprint: Word | None = None
    checkpoint_fingerprint: Word | None = None
    device: Word | None = None
    versions: dict[str, Word] = Field(default_factory=dict)
    date: DateText | None = None


class DeviceEntry(_Part):
    """What one U-Net call took on one device."""

    device: Word
    dtype: Word
    mode: Literal["eager", "compiled"]
    measures: Literal["latency", "throughput"]
    batch: Count
    seconds: Positive
    samples_per_second: Positive
    macs_per_second: Positive
    peak_bytes: Count | None = None
    versions: dict[str, Word] = Field(default_factory=dict)
    date: DateText | None = None


class Block(_Part):
    """The ``sdbench`` block."""

    checkpoint: Word | dict[str, Word] | None = None
    base: Word | None = None
    baseline: Word | None = None
    architecture: Word | dict[str, Any] | None = None
    size: Size | None = None
    compute: Compute | None = None
    speed: Speed | None = None
    memory: Memory | None = None
    protocols: list[Word] | None = None
    margins: dict[str, Positive | dict[str, Positive]] | None = None
    sources: dict[str, Word] | None = None
    records: list[RecordEntry] | None = None
    devices: list[DeviceEntry] | None = None


class _Loose(BaseModel):
    # The hub allows more keys here than we read.
    model_config = ConfigDict(extra="allow", strict=True)


class ResultMetric(_Loose):
    """One figure of a result."""

    type: Word
    value: Any
    name: str | None = None


class Dataset(_Loose):
    """What a result was measured on."""

    type: Word
    name: Word
    config: str | None = None
    args: dict[str, Any] | None = None


class Task(_Loose):
    """What the model does."""

    type: Word


class ResultSource(_Loose):
    """Where a result is published."""

    name: str | None = None
    url: str | None = None


class Result(_Loose):
    """One result of a model index."""

    task: Task
    dataset: Dataset
    metrics: list[ResultMetric]
    source: ResultSource | None = None


class Model(_Loose):
    """One model of a model index."""

    name: Word
    results: list[Result]


class Index(BaseModel):
    """The hub's ``model-index``."""

    model_config = ConfigDict(strict=True)
    models: list[Model] = Field(alias="model-index")


def read_block(front: FrontMatter) -> Block:
    """Return the validated ``sdbench`` block."""
    return _validate(Block, front.data["sdbench"], front, ("sdbench",))


def read_index(front: FrontMatter) -> list[Model]:
    """Return the validated ``model-index``; none is an empty list."""
    found = front.data.get("model-index")
    return _validate(Index, {"model-index": found}, front, ()).models if found else []


def _validate(shape: type[Shape], values: Any, front: FrontMatter, above: Keys) -> Shape:
    try:
        return shape.model_validate(values)
    except ValidationError as error:
        raise faults(error, shape, values, above=above)[0].error(CardError, front.path) from None


def check_value(path: Path, key: str, metric: str, value: Any, *, recorded: bool = False) -> float:
    """Return a claimed figure, or raise: a placeholder, zero, negative, not finite, or off the scale.

    The unbiased KID of a good model can fall to zero and below; that is recorded, and never published.
    """
    known = METRICS[metric]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CardError(
            f"the {known.label} is no number",
            file=path,
            key=key,
            found=value,
            remedy="Write the published figure as a plain number, or remove the claim: "
            "a placeholder would pass whatever is measured",
        )
    number = float(value)
    if not math.isfinite(number) or (number <= 0 and not (recorded and metric == "kid")):
        what = "not finite" if not math.isfinite(number) else "negative" if number else "zero"
        raise CardError(
            f"the {known.label} is {what}",
            file=path,
            key=key,
            found=value,
            remedy="Write the published figure, or remove the claim: nothing can be compared with this one",
        )
    low, high = known.minimum, known.maximum
    if (low is not None and number < low) or (high is not None and number > high):
        hundredth = number / 100
        meant = f"; write {hundredth:.6g}" if metric == "clip_score" and number <= 100 else ""
        raise CardError(
            f"the {known.label} has the wrong scale",
            file=path,
            key=key,
            found=value,
            remedy=f"{known.scale[:1].upper()}{known.scale[1:]}{meant}",
        )
    return number


def check_size(path: Path, size: Size) -> None:
    """Raise if a published count is off the exact one's scale, or the whole is not the sum of its parts."""
    parts = {name: getattr(size, name) or SizePart() for name in COMPONENTS}
    for name, part in parts.items():
        if part.published is None:
            continue
        wrong = part.published < 1000 or (
            part.exact is not None and not 0.5 < part.published / part.exact < 2
        )
        if wrong:
            near = f"{part.exact / 1e9:.2f}e+9" if part.exact else f"{part.published:g}e+9"
            raise CardError(
                "the published count has the wrong scale",
                file=path,
                key=f"sdbench.size.{name}.published",
                found=part.published,
                remedy=f"Give parameters, not billions: {near}"
                if part.published < 1000
                else f"The exact count is {part.exact:,}: one of the two is wrong",
            )
    exact = [parts[name].exact for name in COMPONENTS[:3]]
    whole = parts["whole"].exact
    if whole is not None and None not in exact:
        total = sum(count for count in exact if count is not None)
        if total != whole:
            raise CardError(
                "the whole is not the sum of U-Net, text encoder and image decoder",
                file=path,
                key="sdbench.size.whole.exact",
                found=whole,
                remedy=f"The three make {total}",
            )


def check_metric(path: Path, key: str, text: str) -> str:
    """Return our name of a metric, or raise with the known ones."""
    name = metric_name(text)
    if name is None:
        raise CardError(
            "unknown metric",
            file=path,
            key=key,
            found=text,
            remedy=f"{suggestion(text, list(METRICS))}Known metrics: {', '.join(METRICS)}",
        )
    return name
