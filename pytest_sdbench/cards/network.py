"""The network of a card: its checkpoint's where that is at hand, else the architecture's that it names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sdbench.base.errors import SdbenchError, Unavailable
from pytest_sdbench.cards.cases import is_beside_baseline
from pytest_sdbench.models.architectures import Config

if TYPE_CHECKING:
    from pytest_sdbench.cards.card import Card
    from pytest_sdbench.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class Network:
    """What size, compute, speed and memory are measured on."""

    unet: str | Config
    """Name or configuration of the U-Net."""
    checkpoint: Checkpoint | None
    """None: a skeleton of the architecture."""
    unlike: Unavailable | None = None
    """Why that skeleton says nothing of how fast the checkpoint is, which this machine cannot load."""

    @property
    def timed(self) -> str | Config:
        """The U-Net that speed and memory are measured on; raises Unavailable for a quantised one."""
        if self.unlike is not None:
            raise self.unlike
        how = self.checkpoint.quantised("unet") if self.checkpoint is not None else None
        if how is None:
            return self.unet
        what = f"speed and memory of a quantised U-Net ({how}) are not measured (yet)"
        remedy = "They are measured on random weights in full precision, which would say nothing of it"
        raise Unavailable(what, remedy=remedy)

    @property
    def notes(self) -> tuple[str, ...]:
        """Which files it is of where there is a choice, and what was not looked at."""
        return () if self.checkpoint is None else self.checkpoint.choices


def checkpoint_of(card: Card, weights: Path | None = None, *, download: bool = False) -> Checkpoint:
    """Return a card's verified checkpoint, or `weights` in its place; raises as `resolve` and `verify`."""
    from pytest_sdbench.models.checkpoint import resolve
    from pytest_sdbench.models.integrity import verify

    near = card.path.parent
    try:
        checkpoint = resolve(card.checkpoint, card=card.name, near=near, weights=weights, download=download)
    except SdbenchError as error:
        raise (error if error.file else error.at(card.path)) from None
    verify(checkpoint)
    return checkpoint


def candidate_remedy(card: Card, protocol: str) -> str:
    """Say how a checkpoint is compared without a baseline; empty where the card claims figures beside one."""
    if is_beside_baseline(card, protocol):
        return ""
    return f"compare another checkpoint with the card's own: --sdbench-weights {card.name}=FOLDER"


def baseline_checkpoint(
    card: Card, baseline: Card | None, protocol: str, *, download: bool = False
) -> Checkpoint:
    """Return the checkpoint of a card's baseline, whose pictures the card's own are compared with.

    Raises Unavailable where there is no baseline, else as `checkpoint_of`.
    """
    if baseline is None:
        raise Unavailable(
            "fidelity compares with a reference's pictures, and the card names no baseline",
            file=card.path,
            key="sdbench.baseline",
            remedy=", or ".join(["Name one", *filter(None, [candidate_remedy(card, protocol)])]),
        )
    return checkpoint_of(baseline, download=download)


def network_of(card: Card, checkpoint: Checkpoint | None, why: Unavailable | None = None) -> Network:
    """Return the network of a checkpoint, or of the card's architecture where there is no checkpoint.

    `why` says what keeps it from being one. Raises Unavailable if the card names no architecture either.
    """
    from pytest_sdbench.models.hub import HUB_ID
    from pytest_sdbench.models.specs import split_pair

    if checkpoint is not None:
        return Network(checkpoint.unet_config, checkpoint)
    if card.architecture is None:
        message = "the checkpoint is not on this machine, and the card does not name its architecture"
        pair = split_pair(card.checkpoint) if card.checkpoint is not None else None
        named = (pair[0], pair[2]) if pair else (str(card.checkpoint or ""),)
        fetch = "Fetch the checkpoint: --sdbench-download. Or "
        remedy = fetch if any(re.fullmatch(HUB_ID, spec) for spec in named) else ""
        remedy += "add the architecture (`python -m pytest_sdbench draft FOLDER` finds it), or give "
        remedy += f"--sdbench-weights {card.name}=FOLDER"
        remedy = remedy[0].upper() + remedy[1:]
        raise Unavailable(message, file=card.path, key="sdbench.architecture", remedy=remedy)
    quantised = why is not None and why.key == "quantization_config"
    return Network(card.architecture, None, why if quantised else None)


def named_network(card: Card, *, download: bool = False) -> Network:
    """Return the network of the architecture that a card names, else of its checkpoint on this machine.

    Raises what `network_of` and `checkpoint.resolve` raise.
    """
    from pytest_sdbench.models.checkpoint import resolve
    from pytest_sdbench.models.specs import split_pair

    pair = split_pair(card.checkpoint) if card.checkpoint is not None else None
    made = pair is not None and pair[1] != "unet"  # fused or converted: never quantised, and dear to make
    if card.checkpoint is None or (made and card.architecture is not None):
        return network_of(card, None)
    try:
        checkpoint = resolve(card.checkpoint, card=card.name, near=card.path.parent, download=download)
    except Unavailable:
        if card.architecture is None:
            raise
        return network_of(card, None)
    # An architecture is what the card claims figures of, and its checkpoint may hold a quantised one.
    quantised = checkpoint.quantised("unet") is not None
    return network_of(card, checkpoint if quantised or card.architecture is None else None)
