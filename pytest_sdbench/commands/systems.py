"""Find what a command compares or shows by its name: a card, a folder, an embedded checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sdbench.base.errors import CardError, SdbenchError
from pytest_sdbench.base.paths import real, reference
from pytest_sdbench.cards.card import Card, is_card, own_names, read_card
from pytest_sdbench.cards.network import checkpoint_of
from pytest_sdbench.commands.shared import find_card_of
from pytest_sdbench.models.layout import holds_unet, no_checkpoint, replaces
from pytest_sdbench.models.specs import EMBEDDED, embedded_folder

if TYPE_CHECKING:
    from pytest_sdbench.models.checkpoint import Checkpoint

KINDS = "a card (name or file), a folder in diffusers layout, or embedded:NAME"
"""What a system can be."""


@dataclass(frozen=True)
class System:
    """A checkpoint that was named on the command line, and verified."""

    name: str
    checkpoint: Checkpoint
    card: Card | None = None


def apart(systems: Sequence[System]) -> list[System]:
    """Return systems whose cards, where they are namesakes, have the names that tell them apart."""
    names = own_names({each.card.path: None for each in systems if each.card is not None})
    return [each if each.card is None else replace(each, name=names[each.card.path]) for each in systems]


def lone(text: str) -> Path | None:
    """Return the path of what stands on a base: a U-Net alone, a LoRA, a single file; None for others."""
    embedded = text.startswith(EMBEDDED)
    path = embedded_folder(text) if embedded else Path(text)
    if path.is_dir() and holds_unet(path):
        return path
    return path if path.exists() and replaces(path) in ("lora", "file") else None


def _card_of_folder(text: str) -> Card | None:
    """Return the card here that a folder shares its name with; raises SdbenchError for another one's."""
    folder = Path(text)
    if folder.name != text or not folder.is_dir():
        return None
    try:
        path = find_card_of(text)
    except CardError:
        return None
    if path.is_relative_to(reference()):
        return None
    card = read_card(path)
    if card.checkpoint is None:
        return None
    parts = card.checkpoint.values() if isinstance(card.checkpoint, Mapping) else [card.checkpoint]
    if real(folder) not in [real(path.parent / Path(part).expanduser()) for part in parts]:
        remedy = f"Give ./{text} for the folder, or {path.relative_to(Path.cwd())} for the card"
        raise SdbenchError("a folder and a card have this name", found=text, remedy=remedy)
    return card


def system_of(text: str, base: Checkpoint | None, *, download: bool = False) -> System:
    """Return a system by its name; what is `lone` stands on the base.

    A name that a folder and a card here have is the card's, if that is the folder's card. Raises SdbenchError
    for another card's, for what is not there and for what is alone without a base; else as `resolve`.
    """
    from pytest_sdbench.models.checkpoint import resolve
    from pytest_sdbench.models.integrity import verify

    path = Path(text)
    is_name = ":" not in text and not path.exists()
    if is_name and len(path.parts) > 1:
        raise SdbenchError("there is no such file or folder", file=text, remedy="Check the path")
    if is_name or (path.is_file() and is_card(path)):
        card = read_card(find_card_of(text))
        return System(card.name, checkpoint_of(card, download=download), card)
    if (own := _card_of_folder(text)) is not None:
        return System(own.name, checkpoint_of(own, download=download), own)
    alone = lone(text)
    if path.is_file() and alone is None:
        raise no_checkpoint(path)
    weights = path if path.is_dir() else None
    if alone is not None:
        if base is None:
            remedy = "Compare it with a whole checkpoint, which lends the other parts, or give its card"
            kind = {"lora": "LoRA", "file": "single file"}.get(replaces(alone) or "", "U-Net")
            raise SdbenchError(f"this is a {kind} alone", file=text, remedy=remedy)
        checkpoint = resolve(base, card=text, weights=alone, download=download)
    else:
        checkpoint = resolve(None if weights else text, card=text, weights=weights, download=download)
    verify(checkpoint)
    return System(text, checkpoint)
