"""What several commands share: arguments, the cards that were named, where a text goes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.base.paths import reference
from pytest_sdbench.cards.front_matter import is_card

DTYPES = ("float32", "float16", "bfloat16")

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


def share(command: argparse.ArgumentParser, *names: str, device: str | None = None) -> None:
    """Declare options that other commands have too; `device` is another default for that one."""
    for name in names:
        short = ["-o"] if name == "--out" else []
        command.add_argument(*short, name, **_SHARED[name])
    if device is not None:
        command.set_defaults(device=device)


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


def cards_of(named: Sequence[Path]) -> list[Path]:
    """Return the files of the cards that were named: those of a folder, or the packaged ones."""
    cards: list[Path] = []
    for path in named or [reference() / "cards"]:
        cards += sorted(file for file in path.glob("*.md") if is_card(file)) if path.is_dir() else [path]
    return cards


def write_text(text: str, out: Path | None) -> None:
    """Print a text, or write it into a file."""
    if out is None:
        print(text, end="" if text.endswith("\n") else "\n")
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SdbenchError(
            "cannot be written", file=out, found=error.strerror, remedy="Name a file in a folder that exists"
        ) from None
    print(f"written to {out}", file=sys.stderr)
