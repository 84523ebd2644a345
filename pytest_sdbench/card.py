"""Read a model card: what it claims, of which checkpoint, under which protocol, and how to verify it.

``model-index`` holds the published figures, in the hub's own form; one ``sdbench`` block says how to verify them
and keeps what this suite measured. A hub card without that block can be read too: `Card.explained` then lists what
cannot be tested, and how to make it testable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from pytest_sdbench.architectures import ARCHITECTURES
from pytest_sdbench.card_schema import (
    COMPONENTS,
    Block,
    Model,
    Ratio,
    Result,
    ResultMetric,
    Size,
    check_metric,
    check_size,
    check_value,
    read_block,
    read_index,
    suggestion,
)
from pytest_sdbench.errors import CardError
from pytest_sdbench.front_matter import FrontMatter, check_yaml_1_1, dotted, is_card, parse, read_text
from pytest_sdbench.metric_names import METRICS, metric_name
from pytest_sdbench.paths import reference
from pytest_sdbench.records import Record, write_records

__all__ = [
    "UNSTATED",
    "Card",
    "Claim",
    "ComponentSize",
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

UNSTATED = "unstated"
"""The protocol of a figure whose source does not say how it was measured."""

_DRAFT = "`python -m pytest_sdbench draft FOLDER` writes a complete card"


@dataclass(frozen=True)
class Source:
    """Where a figure was published."""

    name: str
    url: str | None = None


@dataclass(frozen=True)
class Claim:
    """One published or recorded figure of a card."""

    metric: str
    """A name of `metric_names.METRICS`."""
    value: float
    text: str
    """The figure as the card prints it: its digits are its precision."""
    protocol: str
    """A protocol's name, or ``unstated``."""
    assumed: str | None = None
    """The protocol under which an unstated claim is gated; None: shown, never gated."""
    n: int | None = None
    """The number of images that the card states beside the claim (``dataset.args.num_samples``)."""
    margin: float | None = None
    """From ``sdbench.margins``; None: the protocol's own."""
    source: Source | None = None
    kind: str = "published"
    """``published`` (in ``model-index``) or ``recorded`` (in ``sdbench.records``)."""
    record: Record | None = None
    label: str = ""
    """The metric's name as the card prints it."""
    dataset: str = ""
    suffix: str = ""
    """What tells the claim from another of the same protocol and metric, where a hub card has such."""

    @property
    def id(self) -> str:
        """Return the claim's name in a test id: ``coco30k-bksdm-fid``, ``unstated-5k-fid``."""
        parts = [self.protocol]
        if self.protocol == UNSTATED and self.n:
            parts.append(images(self.n))
        parts += [self.metric, self.suffix, "recorded" if self.kind == "recorded" else ""]
        return "-".join(part for part in parts if part)

    @property
    def gate_protocol(self) -> str | None:
        """Return the protocol under which the claim is gated, or None: it is shown only."""
        return self.assumed if self.protocol == UNSTATED else self.protocol


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
    memory: MemoryClaim | None = None
    protocols: tuple[str, ...] = ()
    """Protocols to measure even where nothing is claimed yet."""
    claims: tuple[Claim, ...] = ()
    """Published, then recorded."""
    margins: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By protocol (``""``: any), then metric."""
    records: tuple[Record, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    explained: tuple[str, ...] = ()
    """What cannot be tested, why, and what to do about it."""
    has_sdbench: bool = False
    body: str = ""

    def margin(self, protocol: str, metric: str) -> float | None:
        """Return the card's margin for a metric under a protocol, or None: the protocol's own."""
        return self.margins.get(protocol, {}).get(metric, self.margins.get("", {}).get(metric))


def images(n: int) -> str:
    """Return a number of images as the field writes it: 30k, 512."""
    return f"{n // 1000}k" if n % 1000 == 0 else str(n)


def read_card(path: str | Path, *, search: Sequence[Path] = ()) -> Card:
    """Return the card in a file.

    `search` holds further folders with protocols (``*.yaml``, ``protocols/*.yaml``). Raises CardError, naming file,
    key, what was found and what to do, for anything that is wrong with the card itself; `check_lineage` looks at the
    cards it refers to.
    """
    path = Path(path)
    front = parse(path, read_text(path))
    _check_keys(front)
    check_yaml_1_1(front, "model-index", "sdbench")
    models = read_index(front)
    if "sdbench" not in front.data:
        return _hub_card(front, models, _protocols(path, search))
    block = read_block(front)
    known = _protocols(path, search)
    for position, name in enumerate(block.protocols or []):
        _check_protocol(front, ("sdbench", "protocols", position), name, known)
    _check_architecture(front, block)
    check_size(path, block.size or Size())
    margins = _margins(front, block, known)
    sources = dict(block.sources or {})
    claims, explained = _published(front, models, known, margins, sources)
    records = _records(front, block, known)
    for record in records:
        claims.append(_recorded(front, record, len(claims), margins, block))
    _check_duplicates(front, claims)
    _check_margins(front, claims)
    _check_sources(front, sources, claims)
    explained += _unexplained(block, claims)
    return Card(
        path=path,
        name=_name(path),
        title=_title(front, models),
        license=_text(front.data.get("license")),
        checkpoint=block.checkpoint,
        base=block.base,
        baseline=block.baseline,
        architecture=block.architecture,
        size=_sizes(front, block),
        unet_macs=_macs(front, block),
        speed=_speed(front, block),
        memory=_memory(block),
        protocols=tuple(block.protocols or ()),
        claims=tuple(claims),
        margins=margins,
        records=records,
        sources=sources,
        explained=tuple(explained),
        has_sdbench=True,
        body=front.body,
    )


def find_card(name: str, near: str | Path, *, search: Sequence[Path] = ()) -> Path:
    """Return the file of a card by its name: beside `near` (a card or a folder), in `search`, or a packaged one.

    Raises CardError, with the names there are, if no such card exists.
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


# --- the parts of a card ----------------------------------------------------------------------------------------


def _name(path: Path) -> str:
    return path.resolve().parent.name if path.name.lower() == "readme.md" else path.stem


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _title(front: FrontMatter, models: Sequence[Model]) -> str:
    if models:
        return models[0].name
    heading = re.search(r"^#[ \t]+(.+?)[ \t]*#*[ \t]*\r?$", front.body, re.MULTILINE)
    return heading.group(1) if heading else _name(front.path)


def _protocols(path: Path, search: Sequence[Path]) -> tuple[str, ...]:
    """Return the names of the protocols that a card can refer to."""
    folders = [reference() / "protocols", path.parent / "protocols"]
    folders += [part for folder in search for part in (folder, folder / "protocols")]
    return tuple(sorted({file.stem for folder in folders for file in folder.glob("*.yaml")}))


def _check_keys(front: FrontMatter) -> None:
    """Raise for a top-level key that means one of ours; any other is the hub's business."""
    ours = {"sdbench": "sdbench", "modelindex": "model-index"}
    for key in front.data:
        meant = ours.get(re.sub(r"[^a-z]", "", str(key).lower()))
        if not meant:
            near = suggestion(str(key), ["sdbench", "model-index"])
            meant = (
                re.findall(r"'(.*)'", near)[0] if near and str(key).startswith(("sd", "model-i")) else None
            )
        if meant and key != meant:
            raise CardError(
                "unknown key", file=front.path, key=str(key), found=key, remedy=f"Did you mean {meant!r}?"
            )


def _check_protocol(
    front: FrontMatter, key: tuple[str | int, ...], name: str, known: Sequence[str], *more: str
) -> None:
    if name in known or name in more:
        return
    raise CardError(
        "unknown protocol",
        file=front.path,
        key=dotted(key),
        found=name,
        remedy=f"{suggestion(name, [*known, *more])}Known protocols: {', '.join([*known, *more])}; "
        "one of your own is a YAML file in `protocols/` beside the card",
    )


def _check_architecture(front: FrontMatter, block: Block) -> None:
    found = block.architecture
    if isinstance(found, str) and found not in ARCHITECTURES:
        raise CardError(
            "unknown architecture",
            file=front.path,
            key="sdbench.architecture",
            found=found,
            remedy=f"{suggestion(found, list(ARCHITECTURES))}Known architectures: {', '.join(ARCHITECTURES)}; "
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
    for part in ("speed", "baseline"):
        if block.speed is None or block.speed.unet_ratio is None or block.baseline is not None:
            break
        raise CardError(
            "a speed ratio needs a card to be relative to",
            file=front.path,
            key="sdbench.baseline",
            found=None,
            remedy=f"Name the baseline card, or remove sdbench.{part}",
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
    ratio: Ratio | None = block.speed.unet_ratio if block.speed else None
    return SpeedClaim(ratio.max, ratio.source or "", ratio.reason or "") if ratio else None


def _memory(block: Block) -> MemoryClaim | None:
    peak = block.memory.peak_bytes if block.memory else None
    return MemoryClaim(peak.max, peak.device or "", peak.source or "") if peak else None


def _margins(front: FrontMatter, block: Block, known: Sequence[str]) -> dict[str, dict[str, float]]:
    margins: dict[str, dict[str, float]] = {}
    for name, value in (block.margins or {}).items():
        if isinstance(value, dict):
            _check_protocol(front, ("sdbench", "margins", name), name, known, UNSTATED)
            for metric, margin in value.items():
                key = check_metric(front.path, f"sdbench.margins.{name}.{metric}", metric)
                margins.setdefault(name, {})[key] = margin
        else:
            key = check_metric(front.path, f"sdbench.margins.{name}", name)
            margins.setdefault("", {})[key] = value
    return margins


def _margin(margins: Mapping[str, Mapping[str, float]], protocol: str | None, metric: str) -> float | None:
    return margins.get(protocol or "", {}).get(metric, margins.get("", {}).get(metric))


# --- claims -----------------------------------------------------------------------------------------------------


def _published(
    front: FrontMatter,
    models: Sequence[Model],
    known: Sequence[str],
    margins: Mapping[str, Mapping[str, float]],
    sources: Mapping[str, str],
    *,
    hub: bool = False,
) -> tuple[list[Claim], list[str]]:
    """Return the claims of the model index, and what of it is no claim of ours."""
    claims: list[Claim] = []
    explained: list[str] = []
    for m, model in enumerate(models):
        for r, result in enumerate(model.results):
            at: tuple[str | int, ...] = ("model-index", m, "results", r)
            protocol = _protocol_of(front, at, result, known, hub=hub)
            assumed, n = _arguments(front, at, result, protocol, known)
            for k, figure in enumerate(result.metrics):
                key = (*at, "metrics", k, "value")
                metric = metric_name(figure.type)
                if metric is None and hub:
                    explained.append(f"{figure.type}: not a metric of this suite ({', '.join(METRICS)})")
                    continue
                metric = metric or check_metric(front.path, dotted((*at, "metrics", k, "type")), figure.type)
                if hub and isinstance(figure.value, str) and re.match(r"\s*\d", figure.value):
                    explained.append(
                        f"{figure.type}: {figure.value!r} is text; write a plain number to test it"
                    )
                    continue
                value = check_value(front.path, dotted(key), metric, figure.value)
                claims.append(
                    Claim(
                        metric=metric,
                        value=value,
                        text=front.scalar(*key) or repr(figure.value),
                        protocol=protocol,
                        assumed=assumed,
                        n=n,
                        margin=_margin(margins, assumed if protocol == UNSTATED else protocol, metric),
                        source=_source(result, protocol, metric, n, sources),
                        label=_label(figure, metric),
                        dataset=result.dataset.name,
                    )
                )
    return claims, explained


def _label(figure: ResultMetric, metric: str) -> str:
    return figure.name or METRICS[metric].label


def _protocol_of(
    front: FrontMatter, at: tuple[str | int, ...], result: Result, known: Sequence[str], *, hub: bool
) -> str:
    config, key = result.dataset.config, (*at, "dataset", "config")
    if hub:
        return config if config in known else UNSTATED
    if config is None:
        raise CardError(
            "the result does not say under which protocol it was measured",
            file=front.path,
            key=dotted(key),
            remedy=f"Name the protocol ({', '.join(known)}), or write `config: {UNSTATED}`",
        )
    _check_protocol(front, key, config, known, UNSTATED)
    return config


def _arguments(
    front: FrontMatter, at: tuple[str | int, ...], result: Result, protocol: str, known: Sequence[str]
) -> tuple[str | None, int | None]:
    """Return the assumed protocol and the number of images that stand beside a result."""
    values = result.dataset.args or {}
    n, assumed, key = values.get("num_samples"), values.get("assumed"), (*at, "dataset", "args")
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n <= 0):
        raise CardError(
            "the number of images is no count",
            file=front.path,
            key=dotted((*key, "num_samples")),
            found=n,
            remedy="Write a whole number such as 30000, or leave the key out",
        )
    if assumed is not None:
        _check_protocol(front, (*key, "assumed"), str(assumed), known)
        if protocol != UNSTATED:
            raise CardError(
                "a protocol that is stated need not be assumed",
                file=front.path,
                key=dotted((*key, "assumed")),
                found=assumed,
                remedy=f"Remove it, or write `config: {UNSTATED}`",
            )
    return assumed, n


def _source(
    result: Result, protocol: str, metric: str, n: int | None, sources: Mapping[str, str]
) -> Source | None:
    if result.source is not None and (result.source.name or result.source.url):
        return Source(result.source.name or result.source.url or "", result.source.url)
    claim = Claim(metric, 1.0, "", protocol, n=n)
    name = next((sources[key] for key in (claim.id, metric, protocol) if key in sources), None)
    return Source(name) if name else None


def _records(front: FrontMatter, block: Block, known: Sequence[str]) -> tuple[Record, ...]:
    records = []
    for position, entry in enumerate(block.records or []):
        at = ("sdbench", "records", position)
        _check_protocol(front, (*at, "protocol"), entry.protocol, known)
        metric = check_metric(front.path, dotted((*at, "metric")), entry.metric)
        # The unbiased KID of a good model can fall below zero.
        check_value(front.path, dotted((*at, "value")), metric, entry.value, claim=metric != "kid")
        records.append(Record(**{**entry.model_dump(), "metric": metric}))
    return tuple(records)


def _recorded(
    front: FrontMatter, record: Record, _: int, margins: Mapping[str, Mapping[str, float]], block: Block
) -> Claim:
    position = next(
        i
        for i, entry in enumerate(block.records or [])
        if (entry.protocol, metric_name(entry.metric)) == record.key
    )
    return Claim(
        metric=record.metric,
        value=record.value,
        text=front.scalar("sdbench", "records", position, "value") or repr(record.value),
        protocol=record.protocol,
        n=record.n,
        margin=_margin(margins, record.protocol, record.metric),
        kind="recorded",
        record=record,
        label=METRICS[record.metric].label,
    )


def _check_duplicates(front: FrontMatter, claims: Sequence[Claim]) -> None:
    seen: dict[str, Claim] = {}
    for claim in claims:
        if claim.id in seen:
            first = seen[claim.id]
            raise CardError(
                "the same figure is claimed twice",
                file=front.path,
                key="sdbench.records" if claim.kind == "recorded" else f"model-index: {claim.id}",
                found=f"{first.text} and {claim.text}",
                remedy="Keep one; two numbers of images are told apart by `dataset.args.num_samples`, "
                "two ways of measuring by `dataset.config`",
            )
        seen[claim.id] = claim


def _check_margins(front: FrontMatter, claims: Sequence[Claim]) -> None:
    for claim in claims:
        if claim.margin is not None and claim.kind == "published" and claim.margin >= claim.value:
            raise CardError(
                "the margin is as large as the claim, which would pass nearly anything",
                file=front.path,
                key=f"sdbench.margins.{claim.metric}",
                found=claim.margin,
                remedy=f"Give the margin in the metric's own unit, well below {claim.text}",
            )


def _check_sources(front: FrontMatter, sources: Mapping[str, str], claims: Sequence[Claim]) -> None:
    known = [
        "size",
        *dict.fromkeys(key for claim in claims for key in (claim.id, claim.metric, claim.protocol)),
    ]
    for key in sources:
        if key not in known:
            raise CardError(
                "the source belongs to no figure of this card",
                file=front.path,
                key=f"sdbench.sources.{key}",
                found=sources[key],
                remedy=f"{suggestion(key, known)}Give it under one of: {', '.join(known)}",
            )


def _unexplained(block: Block, claims: Sequence[Claim]) -> list[str]:
    """Return what a card with an ``sdbench`` block leaves untested, with what to add."""
    notes = []
    if block.checkpoint is None:
        notes.append(
            "quality: the card names no checkpoint; give the weights with --sdbench-weights CARD=FOLDER"
        )
    if block.architecture is None and block.checkpoint is None:
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
    claims, explained = _published(front, models, known, {}, {}, hub=True)
    claims = _told_apart(claims)
    _check_duplicates(front, claims)
    explained = [
        f"checkpoint, size, compute, speed, memory: the card has no `sdbench` block; {_DRAFT} to take it from",
        *explained,
    ]
    explained += [
        f"{claim.id}: the card does not say under which protocol it was measured, so it is shown and not gated; "
        f"name one in `dataset.config`: {', '.join(known)}"
        for claim in claims
        if claim.protocol == UNSTATED
    ]
    if not claims:
        explained.append(f"quality: `model-index` has no figure of {', '.join(METRICS)}")
    return Card(
        path=front.path,
        name=_name(front.path),
        title=_title(front, models),
        license=_text(front.data.get("license")),
        claims=tuple(claims),
        explained=tuple(explained),
        body=front.body,
    )


def _told_apart(claims: Sequence[Claim]) -> list[Claim]:
    """Give unstated claims of several datasets ids of their own."""
    several = len({claim.dataset for claim in claims}) > 1
    return [
        Claim(**{**vars(claim), "suffix": re.sub(r"[^a-z0-9]+", "-", claim.dataset.lower()).strip("-")})
        if several and claim.protocol == UNSTATED
        else claim
        for claim in claims
    ]


def human_count(figure: str | float) -> str:
    """Return a number of parameters as papers print it, keeping the digits of a text: 0.860e+9 becomes 0.860B."""
    number = Decimal(figure) if isinstance(figure, str) else Decimal(f"{figure:.3g}")
    if number >= Decimal("1e7") or isinstance(figure, str):
        return f"{number.scaleb(-9):f}B"
    return f"{number.scaleb(-6):f}M"
