"""Write the card of a checkpoint."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.commands.shared import share, show, write_text


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    command.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="a checkpoint in diffusers layout, or a U-Net or a LoRA alone",
    )
    share(command, "--out")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from pytest_sdbench.cards.card import read_card_text
    from pytest_sdbench.cards.draft import draft

    own = options.folder / "README.md"
    # Of the README.md of the folder the card keeps all: it alone may be replaced.
    is_taken = options.out is not None and options.out.exists()
    if is_taken and not (own.exists() and own.samefile(options.out)):
        message = "there is a file already, and a card is never overwritten"
        raise SdbenchError(message, file=options.out, remedy="Name another --out")
    text, place = draft(options.folder, options.out), options.out or options.folder / "README.md"
    write_text(text, options.out)
    for problem in read_card_text(place, text).problems:
        show(f"note: {problem}", sys.stderr)
    return 0
