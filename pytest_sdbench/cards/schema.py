"""What may stand in a card: the ``sdbench`` block, the hub's ``model-index``, and figures that can be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pytest_sdbench.base.errors import CardError
from pytest_sdbench.base.schema import (
    Count,
    Keys,
    OrDefault,
    Positive,
    Word,
    dotted,
    faults,
    one_of,
    suggestion,
)
from pytest_sdbench.cards.front_matter import FrontMatter, spelled
from pytest_sdbench.cards.records import DeviceRecord, Part, Record
from pytest_sdbench.metrics.definition import Metric
from pytest_sdbench.metrics.registry import METRICS, metric_name
from pytest_sdbench.models.architectures import ARCHITECTURES
from pytest_sdbench.models.layout import JOINED

COMPONENTS = ("unet", "text_encoder", "image_decoder", "whole")
Component = Annotated[str, one_of(*COMPONENTS)]


_PERCENT = (10.0, 1000.0)
"""A ratio of latencies between these is percent; one above is none, and holds whatever is measured."""


@dataclass(frozen=True)
class Parameters(Part):
    """A component's parameters: counted exactly, and as its source prints them."""

    exact: Count | None = None
    published: Positive | None = None


@dataclass(frozen=True)
class Compute(Part):
    """Multiply-accumulates of one U-Net call."""

    unet_macs: Positive | None = None


@dataclass(frozen=True)
class SpeedClaim(Part):
    """The largest latency of one U-Net call, relative to the baseline's."""

    max: Positive
    source: OrDefault[Word] = ""
    reason: OrDefault[Word] = ""


@dataclass(frozen=True)
class LatencyClaim(Part):
    """The largest latency of one U-Net call on one device, in seconds: it says nothing on any other."""

    max: Positive
    device: Word
    dtype: OrDefault[Word] = ""
    source: OrDefault[Word] = ""


@dataclass(frozen=True)
class Speed(Part):
    """Latency of one U-Net call."""

    unet_ratio: SpeedClaim | None = None
    unet_seconds: LatencyClaim | None = None


@dataclass(frozen=True)
class MemoryClaim(Part):
    """The largest peak memory of one U-Net call, in bytes."""

    max: Positive
    device: OrDefault[Word] = ""
    dtype: OrDefault[Word] = ""
    source: OrDefault[Word] = ""


@dataclass(frozen=True)
class Memory(Part):
    """Memory of one U-Net call."""

    peak_bytes: MemoryClaim | None = None


@dataclass(frozen=True, kw_only=True)
class Block(Part):
    """The ``sdbench`` block."""

    checkpoint: Word | dict[str, Word] | None = None
    base: Word | None = None
    baseline: Word | None = None
    architecture: Word | dict[str, Any] | None = None
    size: OrDefault[Mapping[Component, Parameters | None]] = field(default_factory=dict)
    compute: OrDefault[Compute] = Compute()
    speed: OrDefault[Speed] = Speed()
    memory: OrDefault[Memory] = Memory()
    protocols: OrDefault[tuple[Word, ...]] = ()
    margins: OrDefault[Mapping[str, Positive | Mapping[str, Positive]]] = field(default_factory=dict)
    sources: OrDefault[Mapping[str, Word]] = field(default_factory=dict)
    records: OrDefault[tuple[Record, ...]] = ()
    devices: OrDefault[tuple[DeviceRecord, ...]] = ()


@dataclass(frozen=True)
class Figure:
    """One figure of a result."""

    type: Word
    value: Any = None
    name: str | None = None
    verified: bool | None = None


@dataclass(frozen=True)
class Dataset:
    """What a result was measured on."""

    type: Word
    name: Word
    config: str | int | float | None = None
    split: str | None = None
    args: OrDefault[Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What the model does."""

    type: Word


@dataclass(frozen=True)
class Source:
    """Where a figure was published."""

    name: OrDefault[str] = ""
    url: str | None = None


@dataclass(frozen=True)
class Result:
    """One result of a model index."""

    task: Task
    dataset: Dataset
    source: Source | None = None


@dataclass(frozen=True)
class Figures:
    """What a result of a model index holds, each unread."""

    metrics: tuple[Any, ...]


@dataclass(frozen=True)
class Results:
    """What a model of a model index holds, each unread."""

    results: tuple[Any, ...]


Shape = TypeVar("Shape")


def read_block(front: FrontMatter) -> Block:
    """Return the validated ``sdbench`` block."""
    block = validate(Block, front, ("sdbench",))
    _check_network(front, block)
    _check_size(front, block)
    _check_devices(front, block)
    return block


_VALIDATORS: dict[type, TypeAdapter[Any]] = {}
"""By shape: making one takes longer than reading a card."""


def validate(shape: type[Shape], front: FrontMatter, above: Keys) -> Shape:
    """Return what stands at a path of keys, or raise CardError for the first thing that is wrong with it."""
    values: Any = front.data
    for key in above:
        values = values[key]
    if shape not in _VALIDATORS:
        _VALIDATORS[shape] = TypeAdapter(shape)
    try:
        found: Shape = _VALIDATORS[shape].validate_python(values)
    except ValidationError as error:
        raise faults(error, shape, values, above=above)[0].error(CardError, front.path) from None
    return found


def _check_network(front: FrontMatter, block: Block) -> None:
    """Raise for an architecture, a joined checkpoint, an amount of work or a speed that means nothing."""
    found, checkpoint, macs = block.architecture, block.checkpoint, block.compute.unet_macs
    at: Keys = ("sdbench", "architecture")
    if isinstance(found, str) and found not in ARCHITECTURES:
        remedy = f"{suggestion(found, list(ARCHITECTURES))}Known: {', '.join(ARCHITECTURES)}; "
        remedy += "or write the U-Net's config.json here as a mapping"
        raise front.error(at, "unknown architecture", found, remedy)
    if isinstance(found, dict) and "block_out_channels" not in found:
        remedy = "Give the keys of the U-Net's config.json, `block_out_channels` among them"
        raise front.error(at, "not the configuration of a U-Net", ", ".join(found), remedy)
    if isinstance(checkpoint, dict) and set(checkpoint) not in ({"base", kind} for kind in JOINED):
        at, remedy = ("sdbench", "checkpoint"), "Write {base: CHECKPOINT, unet: FOLDER}, or lora or file"
        raise front.error(at, "a joined checkpoint has two parts", ", ".join(checkpoint), remedy)
    if block.speed.unet_ratio and not block.baseline:
        at, remedy = ("sdbench", "baseline"), "Name the baseline's card, or remove sdbench.speed"
        raise front.error(at, "a speed ratio needs a card to be relative to", None, remedy)
    if block.speed.unet_ratio and _PERCENT[0] < block.speed.unet_ratio.max <= _PERCENT[1]:
        at, most = ("sdbench", "speed", "unet_ratio", "max"), block.speed.unet_ratio.max
        remedy = f"Give a ratio, not percent: {most / 100:g}"
        raise front.error(at, "the ratio has the wrong scale", most, remedy)
    if block.memory.peak_bytes and block.memory.peak_bytes.max < 1e6:
        at, most = ("sdbench", "memory", "peak_bytes", "max"), block.memory.peak_bytes.max
        remedy = f"Give bytes, not GB: {spelled(f'{most:g}e+9')}"
        raise front.error(at, "the peak memory has the wrong scale", most, remedy)
    if macs is not None and macs < 1e6:
        at = ("sdbench", "compute", "unet_macs")
        remedy = f"Give operations, not billions: {spelled(f'{macs:g}e+9')}"
        raise front.error(at, "the multiply-accumulates have the wrong scale", macs, remedy)


def _check_size(front: FrontMatter, block: Block) -> None:
    """Raise if a published count is off the exact one's scale, or the whole is not the sum of its parts."""
    exact = {name: part.exact for name, part in block.size.items() if part and part.exact}
    printed = {name: part.published for name, part in block.size.items() if part and part.published}
    for name, count in printed.items():
        if count < 1000:
            near = float(f"{exact[name] / 1e9:.2f}") if name in exact else count
            remedy = f"Give parameters, not billions: {spelled(f'{near:g}e+9')}"
            if name not in exact and count >= 1:
                remedy += f"; of millions: {spelled(f'{count:g}e+6')}"
        elif name in exact and not 0.5 < count / exact[name] < 2:
            remedy = f"The exact count is {exact[name]:,}: one of the two is wrong"
        else:
            continue
        at = ("sdbench", "size", name, "published")
        raise front.error(at, "the published count has the wrong scale", count, remedy)
    *parts, whole = COMPONENTS
    total = sum(exact.get(name, 0) for name in parts)
    if len(exact) == len(COMPONENTS) and total != exact[whole]:
        at, message = ("sdbench", "size", whole, "exact"), f"the whole is not the sum of {', '.join(parts)}"
        raise front.error(at, message, exact[whole], f"The three make {total}")


def _check_devices(front: FrontMatter, block: Block) -> None:
    """Raise if one call is recorded twice."""
    keys = [record.key for record in block.devices]
    for number, key in enumerate(keys):
        if key in keys[:number]:
            at = ("sdbench", "devices", number)
            raise front.error(at, "the same call is recorded twice", " ".join(key), "Keep one")


def check_value(path: Path, keys: Keys, metric: str, value: Any, *, recorded: bool = False) -> float:
    """Return a claimed figure, or raise: a placeholder, zero, negative, not finite, or off the scale.

    An unbiased estimate, such as the KID of a good model, can fall to zero and below, and so can what pairs
    of pictures have; that is recorded, and never published. What another tool gives has declared bounds.
    """
    known = METRICS[metric]
    low = -math.inf if known.minimum is None else known.minimum
    high = math.inf if known.maximum is None else known.maximum
    remedy = "Write the published figure as a plain number, or remove the claim: "
    remedy += "nothing can be compared with this one, and a placeholder would pass whatever is measured"
    if isinstance(value, bool) or not isinstance(value, int | float):
        wrong = "is null" if value is None else "is no number"
    elif not math.isfinite(value):
        wrong = "is not finite"
    elif value <= 0 and not _may_fall_to_zero(known, recorded=recorded):
        wrong = "is negative" if value else "is zero"
        if recorded:
            remedy = "Zero is no reference, as a placeholder is. Write no such record; measure more images"
    elif not low <= value <= high or not (recorded or value <= known.largest_published):
        wrong, remedy = "has the wrong scale", known.scale[:1].upper() + known.scale[1:]
        if (meant := known.rescaled(value)) is not None:
            remedy += f"; write {meant:.6g}"
    else:
        return float(value)
    message = f"the {known.label} {wrong}"
    raise CardError(message, file=path, key=dotted(keys), found=value, remedy=remedy)


def _may_fall_to_zero(known: Metric, *, recorded: bool) -> bool:
    """Return whether zero and below are figures of a metric, and no placeholder.

    Of another tool's metric its declared bounds say so: where lower is better, nothing is stricter than zero.
    """
    if recorded and (known.signed or known.perfect is not None):
        return True
    below = known.minimum is None or known.minimum < 0
    return known.reads == "imported" and (below or not known.higher_is_better)


def check_metric(path: Path, keys: Keys, text: str) -> str:
    """Return our name of a metric, or raise with the known ones."""
    name = metric_name(text)
    if name is None:
        remedy = f"{suggestion(text, list(METRICS))}Known metrics: {', '.join(METRICS)}. "
        remedy += "One of a conftest.py is known to pytest alone: commands learn of it by an entry point"
        raise CardError("unknown metric", file=path, key=dotted(keys), found=text, remedy=remedy)
    return name
