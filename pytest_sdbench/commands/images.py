"""Write the pictures of a card as PNG files with their captions: for people, other tools, and `score`."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sdbench.base.environment import torch_device
from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.base.files import is_of_desktop, json_mapping, why_unwritable, write_atomically
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.network import checkpoint_of
from pytest_sdbench.commands.sample import protocols_of
from pytest_sdbench.commands.shared import card_and_weights, check_counts, share, show

if TYPE_CHECKING:
    from pytest_sdbench.cards.card import Card
    from pytest_sdbench.protocols.protocol import Protocol
    from pytest_sdbench.store.pictures import Pictures

TABLE = "metadata.jsonl"
"""What the hub's ImageFolder, and our own `score`, read the captions from."""
MARK = ".sdbench-images.json"
"""Says whose images a folder holds. Readers of images pass over what is hidden."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    command.add_argument("card", metavar="CARD", help="a card, by its file or its name")
    told = "a folder that is new, empty, or of these very images"
    command.add_argument("folder", type=Path, metavar="OUT", help=told)
    told = "default: the card's, where it has one alone"
    command.add_argument("--protocol", metavar="NAME", help=told)
    share(command, "--images", "--store", "--data", "--device", "--weights", "--download")


@dataclass(frozen=True)
class Export:
    """A folder of images, and what is in it."""

    folder: Path
    protocol: Protocol
    drawn: int
    """By this call; the others were kept in the store."""


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    check_counts(options, "images")
    card, weights = card_and_weights(options.card, options.weights)
    made = export(
        card,
        options.folder,
        Workspace(
            options.store,
            options.data,
            torch_device(options.device, option="--device"),
            download=options.download,
        ),
        name=options.protocol,
        images=options.images,
        weights=weights,
    )
    name, n = made.protocol.name, made.protocol.n
    show(f"{made.folder}: {n:,} images of {name}, {made.drawn:,} of them drawn now")
    from pytest_sdbench.protocols.load import protocol_names

    packaged = name in protocol_names()
    words = [str(made.folder), "--protocol", name if packaged else str(made.protocol.path)]
    words += ["--data", str(options.data)] if options.data else []
    show(f"To score them: python -m pytest_sdbench score {shlex.join(words)}")
    return 0


def export(
    card: Card,
    out: Path,
    workspace: Workspace,
    *,
    name: str | None = None,
    images: int | None = None,
    weights: Path | None = None,
) -> Export:
    """Write the pictures of a card under one of its protocols into a folder, drawing those that are not kept.

    They are the sampler's pixels, before the image steps of the protocol. What is drawn is kept in the store;
    no extractor is asked. Raises SdbenchError for a folder that holds anything else, and for a card of
    several protocols without a `name`; else as `make_evidence`.
    """
    from pytest_sdbench.evaluation.evidence import as_drawn
    from pytest_sdbench.evaluation.job import Extras
    from pytest_sdbench.evaluation.kept_pictures import Album
    from pytest_sdbench.store.shard_folder import in_grid

    protocol = _protocol(card, name)
    checkpoint = checkpoint_of(card, weights, download=workspace.download)
    wanted = protocol if images is None else protocol.with_samples(min(images, protocol.n))
    drawn = as_drawn(checkpoint, wanted, workspace, Extras(columns={}, keep=wanted.n))
    _prepare(out, {"of": f"{checkpoint.fingerprint}-{drawn.draw_fingerprint}", "images": wanted.n})

    album, lines = Album(checkpoint, wanted, workspace), list[str]()
    for shard in in_grid(wanted.n):
        pictures = album.read(shard)
        with _explained(out):
            lines += [*_write(pictures, out)]
    with _explained(out):
        write_atomically(out / TABLE, "".join(lines).encode())
    return Export(out, wanted, album.drawn)


def _protocol(card: Card, name: str | None) -> Protocol:
    found = protocols_of(card, () if name is None else [name])
    if len(found) > 1:
        names = ", ".join(protocol.name for protocol in found)
        message, remedy = "the card is judged by several protocols", "Name one: --protocol NAME"
        raise SdbenchError(message, file=card.path, key="--protocol", found=names, remedy=remedy)
    return found[0]


def _prepare(out: Path, about: dict[str, Any]) -> None:
    """Make a folder this command's own; raise SdbenchError for one that holds anything else."""
    remedy = "Name a folder that is new or empty"
    if reason := why_unwritable(out / MARK):
        raise SdbenchError(f"cannot be written: {reason}", file=out, key="OUT", remedy=remedy)
    with _explained(out):
        out.mkdir(parents=True, exist_ok=True)
        there = {path.name for path in out.iterdir() if not is_of_desktop(path.name)}
        of, most = _read_mark(out) if MARK in there else ("", 0)
        if there and of != about["of"]:
            what = "it holds images of another draw or checkpoint" if of else "it is not empty"
            raise SdbenchError(what, file=out, key="OUT", found=min(there), remedy=remedy)
        if most > about["images"] and len(there) > 1:  # else it was interrupted before a picture was there
            # Readers of the folder would find pictures that its table does not know.
            what, remedy = "it holds more images of this draw", f"{remedy}, or ask for {most:,} images"
            raise SdbenchError(what, file=out, key="OUT", remedy=remedy)
        write_atomically(out / MARK, (json.dumps(about, sort_keys=True) + "\n").encode())


def _read_mark(out: Path) -> tuple[str, int]:
    """Return whose images a folder holds, and how many; nobody's where its mark says nothing."""
    with contextlib.suppress(ValueError):
        mark = json_mapping((out / MARK).read_bytes())
        if isinstance(mark.get("of"), str) and isinstance(mark.get("images"), int):
            return mark["of"], mark["images"]
    return "", 0


def _write(pictures: Pictures, out: Path) -> Iterator[str]:
    """Write a PNG each, and yield their lines of the table."""
    from pytest_sdbench.store.pictures import format_picture

    of_each = zip(pictures.indices, pictures.seeds, pictures.prompts, pictures.images, strict=True)
    for index, seed, prompt, image in of_each:
        file = f"{index:08d}.png"
        (out / file).write_bytes(format_picture(image))
        row = {"file_name": file, "text": prompt, "index": int(index), "seed": int(seed)}
        yield json.dumps(row, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def _explained(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "Make room or name another folder; the store keeps what was drawn"
        reason = error.strerror or type(error).__name__
        raise SdbenchError(f"cannot be written: {reason}", file=out, key="OUT", remedy=remedy) from error
