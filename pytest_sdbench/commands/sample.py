"""Make the images of cards, as one of any number of processes that share a store.

A process that a launcher started (accelerate, torchrun, srun, a Slurm array), or that was told which part it
is, begins with its share, takes the device of its rank, and then helps the others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sdbench.base.environment import torch_device
from pytest_sdbench.base.errors import SdbenchError, Unavailable
from pytest_sdbench.base.options import Option, weights_by_card
from pytest_sdbench.base.part import Part
from pytest_sdbench.base.workspace import Pool, Workspace
from pytest_sdbench.cards.card import own_names
from pytest_sdbench.cards.network import checkpoint_of
from pytest_sdbench.commands.shared import (
    cards_of,
    check_counts,
    named_card,
    own_words,
    protocol_of,
    share,
    show,
    weights_of,
)

if TYPE_CHECKING:
    from pytest_sdbench.cards.card import Card
    from pytest_sdbench.evaluation.evidence import CompleteEvidence, Request
    from pytest_sdbench.evaluation.tuning import Tuning
    from pytest_sdbench.protocols.protocol import Protocol


_PART = Option(
    "--part",
    "be the K-th of N processes that share the work; default: what the launcher says",
    metavar="K/N",
    check=Part.from_text,
)


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
    command.add_argument(_PART.flag, **_PART.arguments())
    share(command, "--ray", "--ray-gpus", "--ray-workers", "--ray-mixed")


def protocols_of(card: Card, names: Sequence[str] = ()) -> list[Protocol]:
    """Return the protocols that a run of the card makes images of, or those of these names.

    Raises Unavailable for a card without any.
    """
    from pytest_sdbench.cards.cases import judged_protocols

    if names:
        return [protocol_of(name, card) for name in names]
    found = judged_protocols(card)
    if not found:
        message = "the card claims nothing that can be compared with a protocol as it is today"
        named = ", ".join(card.judged_by) or "no protocol"
        raise Unavailable(message, file=card.path, found=named, remedy="Name one: --protocol NAME")
    return found


def requests_of(
    card: Card,
    workspace: Workspace,
    *,
    names: Sequence[str] = (),
    images: int | None = None,
    weights: Path | None = None,
    tuning: Tuning | None = None,
) -> list[Request]:
    """Return what the store lacks of a card, by protocol.

    Raises Unavailable, CheckpointError, DataError and EvidenceError, as an evaluation does.
    """
    from pytest_sdbench.evaluation.evidence import request
    from pytest_sdbench.evaluation.fidelity import pairs_of
    from pytest_sdbench.evaluation.job import Extras

    found = []
    checkpoint = None
    for protocol in protocols_of(card, names):
        checkpoint = checkpoint or checkpoint_of(card, weights, download=workspace.download)
        wanted = protocol if images is None else protocol.with_samples(min(images, protocol.n))
        # What compares pictures later needs all of them.
        extras = Extras(keep=wanted.n if pairs_of(protocol) else 0)
        found.append(request(checkpoint, wanted, workspace, tuning=tuning, extras=extras))
    return found


def told_of(name: str, found: CompleteEvidence) -> list[str]:
    """Return what to tell of the evidence of a card under one protocol."""
    from pytest_sdbench.evaluation.fidelity import pairs_of
    from pytest_sdbench.metrics.registry import METRICS

    protocol = found.drawn
    beginning = f"{name}: {protocol.name}:"
    lines = [f"{beginning} {protocol.n:,} images in the store, {found.images_made:,} made here"]
    if pairs := pairs_of(protocol):
        labels = ", ".join(METRICS[metric].label for metric in pairs)
        told = f"{labels} are told when the card is judged, and need the reference's pictures, too"
        lines.append(f"{beginning} {told}: sample its card under this protocol")
    return lines


def workspace_of(options: argparse.Namespace) -> Workspace:
    """Return where the images are made, and by whom; raises SdbenchError for options at odds."""
    part = options.part or Part.from_environment()
    pool = None
    if options.ray is not None:
        from pytest_sdbench.evaluation.executors.ray import cluster_of

        if part.size > 1 or options.workers is not None:
            what = "the workers of the cluster share the work"
            remedy = "Leave out --part, --workers and launchers, or --ray. How many workers: --ray-workers"
            raise SdbenchError(what, key="--ray", remedy=remedy)
        pool = Pool(options.ray, options.ray_gpus, options.ray_workers, options.ray_mixed)
        device = cluster_of(pool).device(options.device)
    else:
        part.share_cores()
        device = torch_device(options.device, option="--device", part=part)
    return Workspace(
        options.store,
        options.data,
        device,
        download=options.download,
        progress=part.rank == 0,
        keep_images=options.keep_images,
        part=part,
        pool=pool,
    )


def run(options: argparse.Namespace) -> int:
    """Sample cards one after the other; return 1 where one could not be, having done the others."""
    from pytest_sdbench.evaluation.evidence import fulfil
    from pytest_sdbench.evaluation.tuning import Tuning

    check_counts(options, "images", "batch_size", "workers")
    names = own_names(cards_of(options.cards))
    workspace = workspace_of(options)
    part = workspace.part
    weights = weights_of(names, weights_by_card(options.weights))
    # A process of this command makes images and ends: it may keep its memory.
    tuning = Tuning(batch_size=options.batch_size, workers=options.workers, keep_memory=True)
    asked: list[tuple[str, Request]] = []
    failed = 0

    def fail(name: str, error: SdbenchError) -> None:
        nonlocal failed
        failed += 1
        show(f"{name}: not sampled: {own_words(error, options)}", sys.stderr)

    for path, name in names.items():
        try:
            found = requests_of(
                named_card(path, name),
                workspace,
                names=options.protocol,
                images=options.images,
                weights=weights.get(path),
                tuning=tuning,
            )
        except SdbenchError as error:
            fail(name, error)
            continue
        asked += [(name, each) for each in found]
    try:
        for number, outcome in fulfil([each for _, each in asked]):
            name = asked[number][0]
            if isinstance(outcome, SdbenchError):
                fail(name, outcome)
                continue
            for line in told_of(name, outcome):
                show(line if part.size == 1 else f"[{part.rank}] {line}")
    finally:
        if workspace.pool is not None:
            from pytest_sdbench.evaluation.executors import ray

            ray.close()
    return int(failed > 0)
