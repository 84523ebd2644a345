"""Read a model card: what it claims, of which checkpoint, under which protocol, and how to verify it.

``model-index`` holds the published figures, in the hub's own form; one ``sdbench`` block says how to verify
them and keeps what this suite measured. A hub card without that block can be read too: `Card.explained` then
lists what cannot be tested, and how to make it testable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pytest_sdbench.base.errors import CardError, first_line
from pytest_sdbench.base.paths import real, reference, told
from pytest_sdbench.base.schema import suggestion
from pytest_sdbench.cards.claims import (
    Claim,
    Margins,
    check_claims,
    check_protocol,
    read_margins,
    recorded,
)
from pytest_sdbench.cards.edit import write_records
from pytest_sdbench.cards.front_matter import FrontMatter, check_yaml_1_1, is_card, parse, read_text
from pytest_sdbench.cards.index import Problem, published
from pytest_sdbench.cards.records import EAGER_LATENCY, DeviceRecord, Record
from pytest_sdbench.cards.schema import (
    COMPONENTS,
    Block,
    LatencyClaim,
    MemoryClaim,
    Parameters,
    Source,
    SpeedClaim,
    read_block,
)
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.models.access import LET_READ
from pytest_sdbench.models.layout import LORA
from pytest_sdbench.models.specs import is_spec
from pytest_sdbench.protocols.load import declare_imported, protocol_names

__all__ = [
    "Card",
    "Claim",
    "DeviceRecord",
    "MemoryClaim",
    "Record",
    "Source",
    "is_card",
    "read_card",
    "write_records",
]


_NOT_STATED = (
    "its source does not say how it was measured, so it is shown and not gated; `dataset.args.assumed` gates "
    "it under a protocol of your choice"
)
_UNSAID = (
    "the card does not say under which protocol it was measured, so it is shown and not gated; name one in "
    "`dataset.config`"
)


@dataclass(frozen=True)
class ComponentSize(Parameters):
    """A component's parameters: counted exactly, and as its source prints them."""

    published_text: str = ""


@dataclass(frozen=True)
class Card:
    """A model card, read and checked."""

    path: Path
    name: str
    """The file's stem; of a ``README.md``, its folder's name."""
    title: str
    license: str | None = None
    checkpoint: str | Mapping[str, str] | None = None
    """Where the weights are; a mapping joins a base checkpoint and what stands on it, as ``{base, unet}``."""
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
    problems: tuple[Problem, ...] = ()
    """Entries that are no claims: each is an item of its own."""
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
    try:
        return read_card_text(path, read_text(path), search=search)
    except CardError:
        raise
    except Exception as error:  # of one card: the others are read
        message = f"the card cannot be read: {type(error).__name__}: {first_line(error)}"
        raise CardError(message, file=path, remedy="Correct its front matter") from error


def read_card_text(path: Path, text: str, *, search: Sequence[Path] = ()) -> Card:
    """Return the card of a text, as if a file had it; raises as `read_card` does."""
    front = parse(path, text)
    _check_keys(front)
    check_yaml_1_1(front, ("sdbench",))
    known = protocol_names((path.parent, *search))
    declare_imported((path.parent, *search))
    hub = "sdbench" not in front.data
    block = Block() if hub else read_block(front)
    for position, name in enumerate(block.protocols):
        check_protocol(front, ("sdbench", "protocols", position), name, known)
    margins = read_margins(front, block, known)
    claims, problems = published(front, known, margins, block.sources, hub=hub)
    claims += recorded(front, block, known, margins)
    unread = [problem.claim for problem in problems if problem.claim is not None]
    # An entry that nobody can read may be the one that a source is of.
    check_claims(front, claims, unread, block.sources if len(unread) == len(problems) else {})
    if front.hidden is not None:
        problems.insert(0, Problem(front.hidden, True))
    checkpoint = block.checkpoint or _own_folder(path, front)
    lacks = _hub_notes(checkpoint, claims, unread, known) if hub else _notes(block, checkpoint, claims)
    return Card(
        path=path,
        name=card_name(path),
        title=_title(front),
        license=licence if isinstance(licence := front.data.get("license"), str) else None,
        checkpoint=checkpoint,
        base=block.base,
        baseline=block.baseline,
        architecture=block.architecture,
        size={
            name: ComponentSize(
                part.exact, part.published, front.scalar("sdbench", "size", name, "published") or ""
            )
            for name in COMPONENTS
            if (part := block.size.get(name)) is not None
        },
        unet_macs=block.compute.unet_macs,
        speed=block.speed.unet_ratio,
        latency=block.speed.unet_seconds,
        memory=block.memory.peak_bytes,
        protocols=block.protocols,
        claims=tuple(claims),
        margins=margins,
        records=tuple(claim.record for claim in claims if claim.record is not None),
        devices=block.devices,
        sources=block.sources,
        problems=tuple(problems),
        explained=tuple(lacks),
    )


def find_card(name: str, near: str | Path, *, search: Sequence[Path] = ()) -> Path:
    """Return the file of a card by its name.

    It is looked for beside `near` (a card or a folder), in `search`, and among the packaged ones. Raises
    CardError, with the names there are, if no such card exists, and with the files of several.
    """
    near = Path(near).absolute()
    here = near if near.is_dir() else near.parent
    folders = [here, *([here.parent] if near.name == "README.md" else []), *search, reference() / "cards"]
    for folder in folders:
        try:
            files = [path for path in (folder / f"{name}.md", folder / name / "README.md") if path.is_file()]
        except PermissionError as error:
            raise CardError("this user may not look there", file=error.filename, remedy=LET_READ) from None
        # A README.md beside weights may be no card, or a link to the other one.
        cards = {real(path): path for path in reversed(files) if is_card(path)}
        if len(cards) > 1:
            message = f"the name of {len(cards)} cards: {', '.join(map(str, files))}"
            raise CardError(message, file=near, found=name, remedy="Rename one, or give the file of one")
        if files:
            return next(iter(cards.values()), files[0])
    if name.lower().endswith(".md") and (here / name).is_file():
        return here / name
    if name.lower().endswith(".md"):
        remedy = f"Correct the path, or give the name of a card: {name[:-3]}"
        raise CardError("there is no such file", file=name, remedy=remedy)
    names = sorted({path.stem for folder in folders for path in folder.glob("*.md") if is_card(path)})
    remedy = f"{suggestion(name, names)}Put {name}.md beside this card, or name one of: {', '.join(names)}"
    raise CardError("there is no such card", file=near, found=name, remedy=remedy)


def baseline_of(card: Card) -> Card | None:
    """Return the card that a card is compared with; None where it names none. Raises as `find_card`."""
    return None if card.baseline is None else read_card(find_card(card.baseline, card.path))


def check_lineage(card: Card, *, search: Sequence[Path] = ()) -> None:
    """Raise CardError if ``base`` or ``baseline`` names no card, a broken one, or leads back to the card."""
    for key in ("base", "baseline"):
        chain, current, place = [card.name], card, f"sdbench.{key}"
        while (name := getattr(current, key)) is not None:
            try:
                path = find_card(name, current.path, search=search)
            except CardError as error:
                where, remedy = current.path, error.remedy
                raise CardError(error.message, file=where, key=place, found=name, remedy=remedy) from None
            chain.append(name)
            if name in chain[:-1]:
                message, remedy = (
                    f"the {key} leads back to a card before it",
                    f"Remove the {key} from one of these cards",
                )
                found = " -> ".join(chain)
                raise CardError(message, file=card.path, key=place, found=found, remedy=remedy)
            current = read_card(path, search=search)


def card_name(path: Path) -> str:
    """Return the name of a card's file: its stem, of a ``README.md`` that of its folder."""
    return Path(os.path.abspath(path)).parent.name if path.name.lower() == "readme.md" else path.stem


def means(key: str, path: Path, name: str | None, *folders: Path) -> bool:
    """Return whether a key names a card: by its name, alone or as `own_names` has it, or by its path.

    The path is one from any of the folders on.
    """
    own = os.path.normpath(path.absolute())
    return key in (card_name(path), name) or any(os.path.normpath(each / key) == own for each in folders)


def own_names(paths: Iterable[Path]) -> dict[Path, str]:
    """Return what each of some cards is called: its name, behind the folders that tell it from namesakes.

    A card is its file; names are for people, and `v1/README.md` in two folders has one.
    """
    places = {path: (*_place(path).parts[:-1], card_name(path)) for path in paths}
    found = {}
    for path, parts in places.items():
        others = [other for each, other in places.items() if each != path]
        ends = (parts[-depth:] for depth in range(1, len(parts) + 1))
        own = (end for end in ends if not any(other[-len(end) :] == end for other in others))
        # A file and a folder of one name, side by side, have nothing but their whole paths.
        found[path] = "/".join(next(own, ())) or told(path)
    return found


def _place(path: Path) -> Path:
    path = path.absolute()
    return path.parent if path.name.lower() == "readme.md" else path


_NO_HEADING = re.compile(r"^ {0,3}(```+|~~~+).*?(?:^ {0,3}\1|\Z)|<!--.*?(?:-->|\Z)", re.MULTILINE | re.DOTALL)
"""Blocks of code, in which ``#`` begins a comment, and what nobody sees."""


def _title(front: FrontMatter) -> str:
    models = front.data.get("model-index")
    # Of several models nothing says which one the card is of.
    if isinstance(models, list) and len(models) == 1 and (name := front.scalar("model-index", 0, "name")):
        return name
    heading = re.search(r"^#[ \t]+(.+?)[ \t]*#*[ \t]*\r?$", _NO_HEADING.sub("", front.body), re.MULTILINE)
    return heading.group(1) if heading else card_name(front.path)


def _check_keys(front: FrontMatter) -> None:
    """Raise for a top-level key that means one of ours; any other is the hub's business."""
    for key in map(str, front.data):
        meant = {"sdbench": "sdbench", "modelindex": "model-index"}.get(re.sub(r"[^a-z]", "", key.lower()))
        if not meant and (near := get_close_matches(key, ["sdbench", "model-index"], n=1, cutoff=0.9)):
            meant = near[0]
        if meant and key != meant:
            raise front.error((key,), "unknown key", key, f"Did you mean {meant!r}?")


def _own_folder(path: Path, front: FrontMatter) -> str | Mapping[str, str] | None:
    """Return the checkpoint that a card lies in: a README.md of a diffusers folder speaks of that folder.

    That of a LoRA speaks of it on its base, the hub's `base_model`.
    """
    if (path.parent / "model_index.json").is_file():
        return "./"
    base = front.data.get("base_model")
    if isinstance(base, list) and len(base) == 1:  # the hub's form for several
        base = base[0]
    lora = any((path.parent / f"{LORA}{suffix}").is_file() for suffix in (".safetensors", ".bin"))
    if not lora or not isinstance(base, str) or not is_spec(base):  # some write a title there
        return None
    return {"base": base, "lora": "./"}


def _notes(block: Block, checkpoint: object, claims: Sequence[Claim]) -> list[str]:
    """Return what a card with an ``sdbench`` block leaves untested, with what to add."""
    notes = []
    if checkpoint is None:
        notes.append("quality: the card names no checkpoint; give one with --sdbench-weights CARD=FOLDER")
    if block.architecture is None and checkpoint is None:
        notes.append("size, compute, speed: add `sdbench.architecture` (a name, or the U-Net's config.json)")
    if block.baseline is None and block.base is not None:
        notes.append("speed: add `sdbench.baseline`, the card to compare with")
    return notes + [
        f"{claim.id}: {claim.ungated or _NOT_STATED}" for claim in claims if claim.gate_protocol is None
    ]


def _hub_notes(
    checkpoint: object, claims: Sequence[Claim], unread: Sequence[Claim], known: Sequence[str]
) -> list[str]:
    """Return what a hub card without an ``sdbench`` block leaves untested, with what to add."""
    names = ", ".join(known)
    lacks = f"{'' if checkpoint else 'checkpoint, '}size, compute, speed, memory"
    return [
        f"{lacks}: the card has no `sdbench` block; `python -m pytest_sdbench draft FOLDER` writes one",
        *(
            f"{claim.id}: {claim.ungated or f'{_UNSAID}: {names}'}"
            for claim in claims
            if claim.gate_protocol is None
        ),
        *([] if claims or unread else [f"quality: `model-index` has no figure of {', '.join(METRICS)}"]),
    ]
