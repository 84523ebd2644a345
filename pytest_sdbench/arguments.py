"""Declare the commands beside pytest and their options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_sdbench import __version__
from pytest_sdbench.base.errors import SdbenchError

_DTYPES = ("float32", "float16", "bfloat16")

_SHARED: dict[str, dict[str, Any]] = {
    "cards": {"nargs": "*", "type": Path, "metavar": "CARD", "help": "default: the packaged cards"},
    "--store": {"default": ".sdbench", "metavar": "DIR|URL", "help": "[%(default)s]"},
    "--data": {"type": Path, "metavar": "DIR", "help": "data root, as --sdbench-data"},
    "--device": {"default": "auto", "metavar": "DEVICE", "help": "torch device [%(default)s]"},
    "--download": {"action": "store_true", "help": "fetch weights that are missing"},
    "--weights": {
        "action": "append",
        "default": [],
        "metavar": "CARD=PATH",
        "help": "another checkpoint than the card's, as --sdbench-weights; may be repeated",
    },
    "--out": {"type": Path, "metavar": "FILE", "help": "where to write it; default: the terminal"},
    "--json": {"type": Path, "metavar": "FILE", "help": "write the figures there as well"},
}
"""Options that more than one command has."""


def parser() -> argparse.ArgumentParser:
    """Return the parser; what it parses has the command's name as `command`."""
    whole = argparse.ArgumentParser(
        prog="python -m pytest_sdbench",
        description="Model cards as tests: what surrounds `pytest --sdbench`.",
    )
    whole.add_argument("--version", action="version", version=f"pytest-sdbench {__version__}")
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")

    doctor = commands.add_parser(
        "doctor", help="say what this machine lacks for which card, and how to get it"
    )
    _share(doctor, "cards", "--data")

    plan = commands.add_parser(
        "plan", help="say what a run will cost before it starts: images, time, disk, downloads"
    )
    _share(plan, "cards", "--store", "--data", "--device", "--weights", "--json")
    plan.add_argument("--dtype", choices=_DTYPES, help="another precision than the protocol's")
    plan.add_argument("--images", type=int, metavar="N", help="the first N images of each protocol alone")
    plan.add_argument(
        "--protocol",
        action="append",
        default=[],
        metavar="NAME",
        help="plan for this protocol, in place of those that the cards are judged by; may be repeated",
    )
    plan.add_argument(
        "--no-timing", action="store_true", help="time no network: only what the store knows of times"
    )

    _sample(
        commands.add_parser(
            "sample", help="make the images of cards, as one of any number of processes that share a store"
        )
    )

    device = commands.add_parser(
        "device",
        help="measure what a U-Net call of the cards' networks takes on this device: latency, throughput, "
        "multiply-accumulates a second, peak memory",
    )
    _share(device, "cards", "--device")
    device.add_argument(
        "--dtype",
        action="append",
        default=[],
        choices=_DTYPES,
        help="may be repeated; default: float16 and bfloat16, on a CPU float32",
    )
    device.add_argument(
        "--mode",
        action="append",
        default=[],
        choices=("eager", "compiled"),
        help="may be repeated; default: both on CUDA, elsewhere eager",
    )
    device.add_argument(
        "--largest-batch",
        type=int,
        default=64,
        metavar="N",
        help="that is tried for throughput [%(default)s]",
    )
    device.add_argument(
        "--seconds", type=float, default=3.0, metavar="S", help="of timing for each figure [%(default)s]"
    )
    device.add_argument("--update", action="store_true", help="record the figures in the cards")

    draft = commands.add_parser("draft", help="write the card of a checkpoint")
    draft.add_argument("folder", type=Path, metavar="FOLDER", help="a checkpoint in diffusers layout")
    _share(draft, "--out")

    table = commands.add_parser("table", help="write the result tables as GitHub markdown")
    _share(table, "cards", "--out")
    table.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="a results.json: show what was measured beside what is claimed",
    )

    _stats(
        commands.add_parser("stats", help="compute reference statistics of images, as an npz of mu and sigma")
    )
    _score(commands.add_parser("score", help="score images that another tool made, under a protocol"))

    compare = commands.add_parser(
        "compare",
        help="score two checkpoints on the same prompts and seeds, and say how sure the difference is",
    )
    what = "a card (name or file), a folder in diffusers layout, or embedded:NAME"
    compare.add_argument("first", metavar="A", help=what)
    compare.add_argument("second", metavar="B", help=f"{what}; a U-Net's folder alone is joined to B's base")
    compare.add_argument("--protocol", required=True, metavar="NAME", help="a protocol's name or file")
    compare.add_argument("--images", type=int, metavar="N", help="the first N images alone")
    _share(compare, "--store", "--data", "--device", "--download", "--json", device="cpu")

    _store(commands.add_parser("store", help="look into an evidence store, or clean it up"))
    return whole


def weights_by_card(pairs: Sequence[str]) -> dict[str, Path]:
    """Return the checkpoint of each card that --weights names; raises SdbenchError for another form."""
    weights: dict[str, Path] = {}
    for pair in pairs:
        card, _, folder = pair.partition("=")
        if not (card and folder):
            raise SdbenchError("no card and checkpoint", key="--weights", found=pair, remedy="Give CARD=PATH")
        if card in weights:
            raise SdbenchError("a card is given twice", key="--weights", found=card, remedy="Give it once")
        weights[card] = Path(folder)
    return weights


def _share(command: argparse.ArgumentParser, *names: str, device: str | None = None) -> None:
    """Declare options that other commands have too; `device` is another default for that one."""
    for name in names:
        short = ["-o"] if name == "--out" else []
        command.add_argument(*short, name, **_SHARED[name])
    if device is not None:
        command.set_defaults(device=device)


def _sample(command: argparse.ArgumentParser) -> None:
    command.add_argument("cards", nargs="+", type=Path, metavar="CARD", help="a card, or a folder of cards")
    command.add_argument(
        "--protocol", action="append", default=[], metavar="NAME", help="default: the card's"
    )
    command.add_argument("--images", type=int, metavar="N", help="the first N images alone")
    _share(command, "--store", "--data", "--device", "--weights", "--download")
    command.add_argument(
        "--batch-size", type=int, metavar="N", help="default: the largest that fits, found on the way"
    )
    command.add_argument(
        "--workers", type=int, metavar="N", help="beside each other on a CPU; default: found"
    )


def _stats(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="a folder or archive (.zip, .tar) of images, shards (data-{000..012}.tar), or a range of "
        "embedded scenes (scenes:FIRST-LAST)",
    )
    command.add_argument(
        "-o", "--out", type=Path, metavar="FILE.npz", required=True, help="where to write it"
    )
    command.add_argument(
        "--extractor",
        default="inception-pytorch-fid",
        metavar="NAME",
        help="inception-pytorch-fid, inception-torch-fidelity or scenes-classifier [%(default)s]",
    )
    command.add_argument(
        "--resize",
        type=int,
        metavar="PIXELS",
        help="squash every image to a square first (Pillow, bicubic); the COCO statistics are of 256",
    )
    command.add_argument(
        "--features", type=int, default=0, metavar="N", help="keep the features of N images, for KID [0]"
    )
    command.add_argument(
        "--layouts",
        nargs="+",
        default=[],
        metavar="NAME",
        help="of a range of scenes, those of these layouts",
    )
    _share(command, "--data", "--device", "--download", device="cpu")


def _score(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="a folder or archive (.zip, .tar) of images, or shards (data-{000..012}.tar)",
    )
    command.add_argument("--protocol", required=True, metavar="NAME", help="a protocol's name or file")
    command.add_argument(
        "--images", type=int, dest="n", metavar="N", help="those of the first N prompts alone"
    )
    command.add_argument(
        "--stage",
        choices=("sampled", "final"),
        help="whether the images are as the sampler made them, or have been through the protocol's codec and "
        "resize already; default: told from their size",
    )
    command.add_argument(
        "--match",
        choices=("caption", "name", "index", "order"),
        help="how the prompt of an image is found: by the caption that comes with it, by its name in the "
        "file of prompts, by the number at the end of its name, or by the order of names; default: the first "
        "of these that the images have",
    )
    command.add_argument("--card", metavar="CARD", help="show what this card (name or file) claims beside it")
    _share(command, "--data", "--device", "--download", "--json", device="cpu")


def _store(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(title="actions", required=True, metavar="ACTION", dest="action")
    ls = actions.add_parser("ls", help="list what it holds of which checkpoint and draw")
    ls.add_argument("--json", action="store_true", help="as JSON, sizes in bytes")
    gc = actions.add_parser(
        "gc",
        help="remove what nothing needs: damaged and unfinished files, leases that nobody renews, shards "
        "that a longer one covers",
    )
    gc.add_argument(
        "--older-than",
        type=float,
        metavar="DAYS",
        help="and evidence that was not written to for so long",
    )
    gc.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    for action in (ls, gc):
        _share(action, "--store")
