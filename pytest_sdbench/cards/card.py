"""Read a model card: what it claims, of which checkpoint, under which protocol, and how to verify it.

``model-index`` holds the published figures, in the hub's own form; one ``sdbench`` block says how to verify
them and keeps what this suite measured. A hub card without that block can be read too: `Card.explained` then
lists what cannot be tested, and how to make it testable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pytest_sdbench.base.errors import CardError
from pytest_sdbench.base.paths import reference
from pytest_sdbench.base.schema import suggestion
from pytest_sdbench.cards.claims import (
    UNSTATED,
    Claim,
    Margins,
    Source,
    check_duplicates,
    check_margins,
    check_protocol,
    check_sources,
    published,
    read_margins,
    recorded,
    told_apart,
)
from pytest_sdbench.cards.edit import write_records
from pytest_sdbench.cards.front_matter import FrontMatter, check_yaml_1_1, is_card, parse, read_text
from pytest_sdbench.cards.records import EAGER_LATENCY, DeviceRecord, Record
from pytest_sdbench.cards.schema import COMPONENTS, Block, Model, Size, check_size, read_block, read_index
from pytest_sdbench.metrics.names import METRICS
from pytest_sdbench.models.architectures import ARCHITECTURES
from pytest_sdbench.protocols.load import protocol_names

__all__ = [
    "UNSTATED",
    "Card",
    "Claim",
    "ComponentSize",
    "LatencyClaim",
    "MemoryClaim",
    "Record",
    "Source",
    "SpeedClaim",
    "check_lineage",
    "find_card",
    "is_card",
    "read_card",
    "write_records",
]


@dataclass(frozen=True)
class ComponentSize:
    """A component's parameters: counted exactly, and as its source prints them."""

    exact: int | None = None
    published: float | None = None
    published_text: str = ""


@dataclass(frozen=True)
class SpeedClaim:
    """The largest latency of one U-Net call, relative to the baseline's."""

    max: float
    source: str = ""
    reason: str = ""


@dataclass(frozen=True)
class LatencyClaim:
    """The largest latency of one U-Net call on one device, in seconds: it says nothing on any other."""

    max: float
    device: str
    dtype: str = ""
    source: str = ""


@dataclass(frozen=True)
class MemoryClaim:
    """The largest peak memory of one U-Net call, in bytes."""

    max: float
    device: str = ""
    source: str = ""


@dataclass(frozen=True)
class Card:
    """A model card, read and checked."""

    path: Path
    name: str
    """The file's stem; of a ``README.md``, its folder's name."""
    title: str
    license: str | None = None
    checkpoint: str | Mapping[str, str] | None = None
    """Where the weights are; a mapping ``{base, unet}`` joins a base checkpoint and another U-Net."""
    base: str | None = None
    """The card of the model it was built from."""
    baseline: str | None = None
    """The card it is compared with."""
    architecture: str | Mapping[str, Any] | None = None
    size: Mapping[str, ComponentSize] = field(default_factory=dict)
    """By component: ``unet``, ``text_encoder``, ``image_decoder``, ``whole``; only what the card has."""
    unet_macs: float | None = None
    speed: SpeedClaim | None = None
    latency: LatencyClaim | None = None
    memory: MemoryClaim | None = None
    protocols: tuple[str, ...] = ()
    """Protocols to measure even where nothing is claimed yet."""
    claims: tuple[Claim, ...] = ()
    """Published, then recorded."""
    margins: Margins = field(default_factory=dict)
    records: tuple[Record, ...] = ()
    devices: tuple[DeviceRecord, ...] = ()
    """What its U-Net took on the devices that it was measured on."""
    sources: Mapping[str, str] = field(default_factory=dict)
    explained: tuple[str, ...] = ()
    """What cannot be tested, why, and what to do about it."""

    def recorded_on(self, device: str, dtype: str) -> DeviceRecord | None:
        """Return the latency of an eager U-Net call that the card has of a device."""
        wanted = (device, dtype, *EAGER_LATENCY)
        return next((record for record in self.devices if record.key == wanted), None)

    @property
    def judged_by(self) -> tuple[str, ...]:
        """Names of the protocols that its scores are judged under."""
        gated = [claim.gate_protocol for claim in self.claims if claim.gate_protocol is not None]
        return tuple(dict.fromkeys([*gated, *self.protocols]))


def read_card(path: str | Path, *, search: Sequence[Path] = ()) -> Card:
    """Return the card in a file.

    `search` holds further folders with protocols (``*.yaml``, ``protocols/*.yaml``). Raises CardError, naming
    file, key, what was found and what to do, for anything that is wrong with the card itself; `check_lineage`
    looks at the cards it refers to.
    """
    path = Path(path)
    front = parse(path, read_text(path))
    _check_keys(front)
    check_yaml_1_1(front)
    models, known = read_index(front), protocol_names((path.parent, *search))
    if "sdbench" not in front.data:
        return _hub_card(front, models, known)
    block = read_block(front)
    for position, name in enumerate(block.protocols or []):
        check_protocol(front, ("sdbench", "protocols", position), name, known)
    _check_checkpoint(front, block)
    check_size(path, block.size or Size())
    margins, sources = read_margins(front, block, known), block.sources or {}
    claims = published(front, models, known, margins, sources)[0] + recorded(front, block, known, margins)
    check_duplicates(front, claims)
    check_margins(front, claims)
    check_sources(front, sources, claims)
    checkpoint = block.checkpoint or _own_folder(path)
    return Card(
        path=path,
        name=card_name(path),
        title=_title(front, models),
        license=_text(front.data.get("license")),
        checkpoint=checkpoint,
        base=block.base,
        baseline=block.baseline,
        architecture=block.architecture,
        size=_sizes(front, block),
        unet_macs=_macs(front, block),
        speed=_speed(front, block),
        latency=_latency(block),
        memory=_memory(block),
        protocols=tuple(block.protocols or ()),
        claims=tuple(claims),
        margins=margins,
        records=tuple(claim.record for claim in claims if claim.record is not None),
        devices=_devices(front, block),
        sources=sources,
        explained=tuple(_explain(block, checkpoint is not None, claims)),
    )


def find_card(name: str, near: str | Path, *, search: Sequence[Path] = ()) -> Path:
    """Return the file of a card by its name.

    It is looked for beside `near` (a card or a folder), in `search`, and among the packaged ones. Raises
    CardError, with the names there are, if no such card exists.
    """
    near = Path(near)
    here = near if near.is_dir() else near.parent
    folders = [here, *([here.parent] if near.name == "README.md" else []), *search, reference() / "cards"]
    for folder in folders:
        for path in (folder / f"{name}.md", folder / name / "README.md"):
            if path.is_file():
                return path
    names = sorted({path.stem for folder in folders for path in folder.glob("*.md") if is_card(path)})
    raise CardError(
        "there is no such card",
        file=near,
        found=name,
        remedy=f"{suggestion(name, names)}Put {name}.md beside this card, or name one of: {', '.join(names)}",
    )


def check_lineage(card: Card, *, search: Sequence[Path] = ()) -> None:
    """Raise CardError if ``base`` or ``baseline`` names no card, a broken one, or leads back to the card."""
    for key in ("base", "baseline"):
        chain, current = [card.name], card
        while (name := getattr(current, key)) is not None:
            try:
                path = find_card(name, current.path, search=search)
            except CardError as error:
                raise CardError(
                    f"the {key} names no card",
                    file=current.path,
                    key=f"sdbench.{key}",
                    found=name,
                    remedy=error.remedy,
                ) from None
            chain.append(name)
            if name in chain[:-1]:
                raise CardError(
                    f"the {key} leads back to the card itself",
                    file=card.path,
                    key=f"sdbench.{key}",
                    found=" -> ".join(chain),
                    remedy=f"Remove the {key} from one of these cards",
                )
            current = read_card(path, search=search)


def card_name(path: Path) -> str:
    """Return the name of a card's file: its stem, of a ``README.md`` that of its folder."""
    return path.resolve().parent.name if path.name.lower() == "readme.md" else path.stem


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _title(front: FrontMatter, models: Sequence[Model]) -> str:
    if models:
        return models[0].name
    heading = re.search(r"^#[ \t]+(.+?)[ \t]*#*[ \t]*\r?$", front.body, re.MULTILINE)
    return heading.group(1) if heading else card_name(front.path)


def _check_keys(front: FrontMatter) -> None:
    """Raise for a top-level key that means one of ours; any other is the hub's business."""
    for key in map(str, front.data):
        meant = {"sdbench": "sdbench", "modelindex": "model-index"}.get(re.sub(r"[^a-z]", "", key.lower()))
        if not meant and (near := get_close_matches(key, ["sdbench", "model-index"], n=1, cutoff=0.8)):
            meant = near[0]
        if meant and key != meant:
            raise CardError(
                "unknown key", file=front.path, key=key, found=key, remedy=f"Did you mean {meant!r}?"
            )


def _check_checkpoint(front: FrontMatter, block: Block) -> None:
    """Raise for an architecture, a joined checkpoint or a speed claim that means nothing."""
    found = block.architecture
    if isinstance(found, str) and found not in ARCHITECTURES:
        raise CardError(
            "unknown architecture",
            file=front.path,
            key="sdbench.architecture",
            found=found,
            remedy=f"{suggestion(found, list(ARCHITECTURES))}Known: {', '.join(ARCHITECTURES)}; "
            "or write the U-Net's config.json here as a mapping",
        )
    if isinstance(found, dict) and "block_out_channels" not in found:
        raise CardError(
            "the architecture is no U-Net configuration",
            file=front.path,
            key="sdbench.architecture",
            found=", ".join(found),
            remedy="Give the keys of the U-Net's config.json, `block_out_channels` among them",
        )
    if isinstance(block.checkpoint, dict) and set(block.checkpoint) != {"base", "unet"}:
        raise CardError(
            "a joined checkpoint has two parts",
            file=front.path,
            key="sdbench.checkpoint",
            found=", ".join(block.checkpoint),
            remedy="Write {base: CHECKPOINT, unet: FOLDER}",
        )
    if block.speed and block.speed.unet_ratio and not block.baseline:
        raise CardError(
            "a speed ratio needs a card to be relative to",
            file=front.path,
            key="sdbench.baseline",
            remedy="Name the baseline's card, or remove sdbench.speed",
        )


def _sizes(front: FrontMatter, block: Block) -> dict[str, ComponentSize]:
    sizes = {}
    for name in COMPONENTS:
        part = getattr(block.size, name) if block.size else None
        if part is not None:
            text = front.scalar("sdbench", "size", name, "published") or ""
            sizes[name] = ComponentSize(part.exact, part.published, text)
    return sizes


def _macs(front: FrontMatter, block: Block) -> float | None:
    macs = block.compute.unet_macs if block.compute else None
    if macs is not None and macs < 1e6:
        raise CardError(
            "the multiply-accumulates have the wrong scale",
            file=front.path,
            key="sdbench.compute.unet_macs",
            found=macs,
            remedy=f"Give operations, not billions: {macs:g}e+9",
        )
    return macs


def _speed(front: FrontMatter, block: Block) -> SpeedClaim | None:
    ratio = block.speed.unet_ratio if block.speed else None
    return SpeedClaim(ratio.max, ratio.source or "", ratio.reason or "") if ratio else None


def _latency(block: Block) -> LatencyClaim | None:
    latency = block.speed.unet_seconds if block.speed else None
    if latency is None:
        return None
    return LatencyClaim(latency.max, latency.device, latency.dtype or "", latency.source or "")


def _memory(block: Block) -> MemoryClaim | None:
    peak = block.memory.peak_bytes if block.memory else None
    return MemoryClaim(peak.max, peak.device or "", peak.source or "") if peak else None


def _devices(front: FrontMatter, block: Block) -> tuple[DeviceRecord, ...]:
    records = [DeviceRecord(**entry.model_dump()) for entry in block.devices or ()]
    for number, record in enumerate(records):
        if record.key in [earlier.key for earlier in records[:number]]:
            raise CardError(
                "the same call is recorded twice",
                file=front.path,
                key=f"sdbench.devices[{number}]",
                found=" ".join(record.key),
                remedy="Keep one",
            )
    return tuple(records)


def _own_folder(path: Path) -> str | None:
    """Return the checkpoint that a card lies in: a README.md of a diffusers folder speaks of that folder."""
    return "./" if (path.parent / "model_index.json").is_file() else None


def _explain(block: Block, has_checkpoint: bool, claims: Sequence[Claim]) -> list[str]:
    """Return what a card with an ``sdbench`` block leaves untested, with what to add."""
    notes = []
    if not has_checkpoint:
        notes.append("quality: the card names no checkpoint; give one with --sdbench-weights CARD=FOLDER")
    if block.architecture is None and not has_checkpoint:
        notes.append("size, compute, speed: add `sdbench.architecture` (a name, or the U-Net's config.json)")
    if block.baseline is None and block.base is not None:
        notes.append("speed: add `sdbench.baseline`, the card to compare with")
    notes += [
        f"{claim.id}: its source does not say how it was measured, so it is shown and not gated; "
        "`dataset.args.assumed` gates it under a protocol of your choice"
        for claim in claims
        if claim.gate_protocol is None
    ]
    return notes


def _hub_card(front: FrontMatter, models: Sequence[Model], known: Sequence[str]) -> Card:
    """Return what can be derived from a hub card that has no ``sdbench`` block."""
    claims, ignored = published(front, models, known, {}, {}, hub=True)
    claims = told_apart(claims)
    check_duplicates(front, claims)
    checkpoint = _own_folder(front.path)
    lacking = "size, compute, speed, memory" if checkpoint else "checkpoint, size, compute, speed, memory"
    explained = [
        f"{lacking}: the card has no `sdbench` block; `python -m pytest_sdbench draft FOLDER` writes one",
        *ignored,
    ]
    explained += [
        f"{claim.id}: the card does not say under which protocol it was measured, so it is shown and not "
        f"gated; name one in `dataset.config`: {', '.join(known)}"
        for claim in claims
        if claim.protocol == UNSTATED
    ]
    if not claims:
        explained.append(f"quality: `model-index` has no figure of {', '.join(METRICS)}")
    return Card(
        path=front.path,
        name=card_name(front.path),
        title=_title(front, models),
        license=_text(front.data.get("license")),
        checkpoint=checkpoint,
        claims=tuple(claims),
        explained=tuple(explained),
    )
