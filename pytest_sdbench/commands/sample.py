"""Make the images of cards, as one of any number of processes that share a store.

The processes need not know of each other: each makes the shards of the store that no other is making. One
that a launcher (accelerate, torchrun) started begins at its share of them and takes the device of its rank.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sdbench.base.environment import torch_device
from pytest_sdbench.base.errors import SdbenchError, Unavailable
from pytest_sdbench.base.options import weights_by_card
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.card import own_names
from pytest_sdbench.cards.network import checkpoint_of
from pytest_sdbench.commands.shared import (
    cards_of,
    check_counts,
    named_card,
    own_words,
    share,
    show,
    weights_of,
)

if TYPE_CHECKING:
    from pytest_sdbench.cards.card import Card
    from pytest_sdbench.evaluation.tuning import Tuning
    from pytest_sdbench.protocols.protocol import Protocol


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    command.add_argument("cards", nargs="+", type=Path, metavar="CARD", help="a card, or a folder of cards")
    told = "default: the card's"
    command.add_argument("--protocol", action="append", default=[], metavar="NAME", help=told)
    share(command, "--images", "--store", "--data", "--device", "--weights", "--download", "--keep-images")
    told = "default: the largest that fits, found on the way"
    command.add_argument("--batch-size", type=int, metavar="N", help=told)
    told = "beside each other on a CPU; default: found"
    command.add_argument("--workers", type=int, metavar="N", help=told)


@dataclass(frozen=True)
class World:
    """This process among those that one launcher started."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> World:
        """Read what accelerate and torchrun say of a process; without them it is the only one.

        Raises SdbenchError for what is no number or contradicts itself.
        """
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        found = {name: environment[name] for name in alone if name in environment}
        try:
            world = cls(*map(int, (alone | found).values()))
        except ValueError:
            world = None
        if world is None or not (0 <= world.rank < world.size and world.local_rank >= 0):
            message = "the variables of the launcher contradict each other"
            remedy = "Start it with `accelerate launch -m pytest_sdbench sample`, or unset these variables"
            raise SdbenchError(message, key="environment", found=found, remedy=remedy)
        return world

    def share_cores(self) -> None:
        """Take this process's part of the CPU's cores, unless its number of threads is set."""
        import torch

        if self.local_size > 1 and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // self.local_size))


def protocols_of(card: Card, names: Sequence[str] = ()) -> list[Protocol]:
    """Return the protocols that a run of the card makes images of, or those of these names.

    Raises Unavailable for a card without any.
    """
    from pytest_sdbench.cards.cases import judged_protocols
    from pytest_sdbench.protocols.load import load_protocol

    if names:
        return [load_protocol(name, search=(card.path.parent,)) for name in names]
    found = judged_protocols(card)
    if not found:
        message = "the card claims nothing that can be compared with a protocol as it is today"
        named = ", ".join(card.judged_by) or "no protocol"
        raise Unavailable(message, file=card.path, found=named, remedy="Name one: --protocol NAME")
    return found


def sample_card(
    card: Card,
    workspace: Workspace,
    *,
    names: Sequence[str] = (),
    images: int | None = None,
    weights: Path | None = None,
    tuning: Tuning | None = None,
    world: World | None = None,
) -> list[str]:
    """Make what the store lacks of a card, and return a line for each protocol.

    Raises Unavailable, CheckpointError, DataError and EvidenceError, as an evaluation does.
    """
    from pytest_sdbench.evaluation.evidence import Extras, make_evidence
    from pytest_sdbench.evaluation.fidelity import pairs_of
    from pytest_sdbench.metrics.registry import METRICS

    world = world or World()
    protocols = protocols_of(card, names)
    checkpoint = checkpoint_of(card, weights, download=workspace.download)
    workspace, start_at = replace(workspace, progress=world.rank == 0), world.rank / world.size
    lines = []
    for protocol in protocols:
        wanted = protocol if images is None else protocol.with_samples(min(images, protocol.n))
        pairs = pairs_of(protocol)
        # What compares pictures later needs all of them.
        extras = Extras(keep=wanted.n if pairs else 0)
        made = make_evidence(checkpoint, wanted, workspace, tuning=tuning, start_at=start_at, extras=extras)
        counts = f"{wanted.n:,} images in the store, {made.images_made:,} made here"
        lines.append(f"{card.name}: {protocol.name}: {counts}")
        if pairs:
            labels = ", ".join(METRICS[metric].label for metric in pairs)
            told = f"{labels} are told when the card is judged, and need the reference's pictures, too"
            lines.append(f"{card.name}: {protocol.name}: {told}: sample its card under this protocol")
    return lines


def run(options: argparse.Namespace) -> int:
    """Sample cards one after the other; return 1 where one could not be, having done the others."""
    from pytest_sdbench.evaluation.tuning import Tuning

    check_counts(options, "images", "batch_size", "workers")
    names, world = own_names(cards_of(options.cards)), World.from_environment()
    world.share_cores()
    device = torch_device(options.device, option="--device", index=world.local_rank)
    workspace = Workspace(
        options.store, options.data, device, download=options.download, keep_images=options.keep_images
    )
    weights = weights_of(names, weights_by_card(options.weights))
    # A process of this command makes images and ends: it may keep its memory.
    tuning = Tuning(batch_size=options.batch_size, workers=options.workers, keep_memory=True)
    failed = 0
    for path, name in names.items():
        try:
            lines = sample_card(
                named_card(path, name),
                workspace,
                names=options.protocol,
                images=options.images,
                weights=weights.get(path),
                tuning=tuning,
                world=world,
            )
        except SdbenchError as error:
            failed += 1
            show(f"{name}: not sampled: {own_words(error, options)}", sys.stderr)
            continue
        for line in lines:
            show(line if world.size == 1 else f"[{world.rank}] {line}")
    return int(failed > 0)
