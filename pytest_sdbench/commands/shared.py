"""What several commands share: arguments, the cards that were named, where a text goes."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pytest_sdbench.base.errors import CardError, SdbenchError
from pytest_sdbench.base.files import FULL, write_atomically
from pytest_sdbench.base.options import OPTIONS, weights_by_card
from pytest_sdbench.base.paths import reference
from pytest_sdbench.base.text import plain
from pytest_sdbench.cards.card import Card, find_card, means, own_names, read_card
from pytest_sdbench.cards.front_matter import is_card, says_card
from pytest_sdbench.commands.project import place_in_project
from pytest_sdbench.protocols.protocol import Protocol

if TYPE_CHECKING:
    from pytest_sdbench.report.results import Row


def colour(text: str) -> str:
    """Return a colour as it was named; raises ArgumentTypeError for none, and for one that is transparent."""
    from PIL import ImageColor

    try:
        opaque = len(ImageColor.getrgb(text)) == 3
    except ValueError:
        opaque = False
    if not opaque:
        raise argparse.ArgumentTypeError(f"no colour: {text!r}; give a name such as white, or #rrggbb")
    return text


_SHARED: dict[str, dict[str, Any]] = {
    "cards": {"nargs": "*", "type": Path, "metavar": "CARD", "help": "default: the packaged cards"},
    "--out": {"type": Path, "metavar": "FILE", "help": "where to write it; default: the terminal"},
    "--protocol": {"required": True, "metavar": "NAME", "help": "a protocol's name or file"},
    "--images": {"type": int, "metavar": "N", "help": "the first N images alone"},
    "--background": {
        "type": colour,
        "metavar": "COLOUR",
        "help": "lay transparent images over it; default: they are refused",
    },
    "--json": {"type": Path, "metavar": "FILE", "help": "write the figures there as well"},
}
"""Arguments that more than one command has, beside the options that pytest has too."""


def share(command: argparse.ArgumentParser, *names: str) -> None:
    """Declare arguments that other commands or pytest have too."""
    for name in names:
        if name in _SHARED:
            told, short = _SHARED[name], ["-o"] if name == "--out" else []
        else:
            option, short = OPTIONS[name.replace("--", "--sdbench-", 1)], []
            told = option.arguments(option.default) | ({"type": Path} if name == "--data" else {})
            if name in ("--store", "--data"):  # whoever runs commands beside pytest means the same places
                told["default"] = place_in_project(option.dest)
        command.add_argument(*short, name, **told)


def settle_places(options: argparse.Namespace, words: Sequence[str]) -> None:
    """Put store and data root, where no word gives them, where the project of the named cards has them."""
    told = vars(options)
    one = told.get("card") or []
    named = [*(told.get("cards") or []), *(one if isinstance(one, list) else [one])]
    cards = [path.absolute() for path in map(Path, named) if os.path.exists(path)]
    typed = [word.partition("=")[0] for word in words if word.startswith("--")]
    for name in ("store", "data") if cards else ():
        if name in told and not any(f"--{name}".startswith(word) for word in typed):
            place = place_in_project(f"sdbench_{name}", cards)
            told[name] = Path(place) if place and name == "data" else place


_PASSED_OVER = ("*.egg", ".*", "_darcs", "build", "CVS", "dist", "node_modules", "venv", "{arch}")
"""Folders in which pytest looks for no tests."""


def cards_of(named: Sequence[Path]) -> list[Path]:
    """Return the files of the cards that were named, or of the packaged ones.

    A card is named by its file or its name. A folder stands for the cards in it and in its folders, as it
    does for pytest. Raises CardError for a folder without any, and for a name that no card has.
    """
    cards: list[Path] = []
    for path in named or [reference() / "cards"]:
        is_name = path.name == str(path) and not os.path.lexists(path)
        found = sorted(_cards_in(path)) if path.is_dir() else [find_card_of(path.name) if is_name else path]
        if not found:
            remedy = "Name a card, or write one: python -m pytest_sdbench draft FOLDER"
            raise CardError("there is no card in this folder", file=path, remedy=remedy)
        cards += found
    return list({path.absolute(): path for path in cards}.values())  # a card is its file


def _cards_in(folder: Path) -> Iterator[Path]:
    seen = {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [
            each
            for each in folders
            if not any(fnmatch(each, pattern) for pattern in _PASSED_OVER)
            and not Path(place, each, "pyvenv.cfg").is_file()
            and os.path.realpath(Path(place, each)) not in seen
        ]
        seen.update(os.path.realpath(Path(place, each)) for each in folders)
        yield from filter(says_card, (Path(place, each) for each in files))


def protocol_of(name: str | Path, card: Card | None = None, *, beside: Sequence[Path] = ()) -> Protocol:
    """Return the protocol that a command names; raises ProtocolError.

    It is a file, or the name of one: packaged, beside the card, in other folders, here or in cards/.
    """
    from pytest_sdbench.protocols.load import load_protocol

    beside = (*(() if card is None else (card.path.parent,)), *beside)
    return load_protocol(name, search=(*beside, Path.cwd(), Path.cwd() / "cards"))


def named_card(path: Path, name: str) -> Card:
    """Return the card in a file under the name that `own_names` gives it among others of a command."""
    return replace(read_card(path), name=name)


def named_cards(named: Sequence[Path]) -> list[Card]:
    """Return the cards of `cards_of` under their own names; raises CardError for one that cannot be read."""
    return [named_card(path, name) for path, name in own_names(cards_of(named)).items()]


def weights_of(names: Mapping[Path, str], weights: Mapping[str, Path]) -> dict[Path, Path]:
    """Return the folders of `weights` by the card that each key means; raises CardError for other keys.

    `names` are those of `own_names`.
    """
    found: dict[Path, Path] = {}
    for key, folder in weights.items():
        meant = [path for path, name in names.items() if means(key, path, name, Path.cwd())]
        if not meant:
            remedy = f"Name {', '.join(names.values())}"
            raise CardError("no card of this run has that name", key="--weights", found=key, remedy=remedy)
        if len(meant) > 1:
            message = f"the name of {len(meant)} cards: {', '.join(map(str, meant))}"
            raise CardError(message, key="--weights", found=key, remedy="Give the file of one")
        found.setdefault(meant[0], folder)
    return found


def find_card_of(text: str) -> Path:
    """Return the file of a card that is named by its file or its name: here, in cards/, or a packaged one."""
    path = Path(text)
    if path.is_file() and is_card(path):
        return path
    return find_card(text, Path.cwd(), search=(Path.cwd() / "cards",))


def card_and_weights(text: str, pairs: Sequence[tuple[str, str]]) -> tuple[Card, Path | None]:
    """Return the card that a command names, and what is given in its checkpoint's place; raises CardError."""
    path = find_card_of(text)
    names = own_names([path])
    return named_card(path, names[path]), weights_of(names, weights_by_card(pairs)).get(path)


def own_words(error: SdbenchError, options: argparse.Namespace) -> str:
    """Return what an error says, with options called as this command calls them, and not as pytest does."""

    def own(found: re.Match[str]) -> str:
        return f"--{found[1]}" if found[1].replace("-", "_") in options else found[0]

    return re.sub(r"--sdbench-(\w+(?:-\w+)*)", own, str(error))


def check_counts(options: argparse.Namespace, *names: str) -> None:
    """Raise SdbenchError for an option that is given, and below 1."""
    for name in names:
        value = vars(options)[name]
        if value is not None and value < 1:
            raise SdbenchError("give 1 or more", key=f"--{name.replace('_', '-')}", found=value)


def first_images(protocol: Protocol, n: int) -> Protocol:
    """Return the protocol with its first n images; raises SdbenchError where it has no such number."""
    if not 2 <= n <= protocol.n:
        message, remedy = f"{protocol.name} has {protocol.n:,} images", "Give at least 2 and at most so many"
        raise SdbenchError(message, key="--images", found=n, remedy=remedy)
    return protocol.with_samples(n)


def results_of(path: Path, key: str | None = "--results") -> list[Row]:
    """Return the rows of a file of results; raises SdbenchError where it is none."""
    return run_of(path, key)[0]


def run_of(path: Path, key: str | None = "--results") -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of a file of results, and what it says of its run; raises as `results_of`."""
    from pytest_sdbench.report.results import read_results

    try:
        return read_results(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        message, remedy = (
            "not the results of a run",
            "`pytest --sdbench --sdbench-report results.json` writes them",
        )
        raise SdbenchError(f"{message}: {error}", file=path, key=key, remedy=remedy) from None


def show(text: str, file: TextIO | None = None) -> None:
    """Print lines as `plain` shows them: no name in them moves the cursor, colours or turns the writing."""
    print("\n".join(map(plain, text.split("\n"))), file=file, flush=True)


def write_text(text: str, out: Path | None) -> None:
    """Print a text, or write it into a file: whole, or the file stays as it was."""
    if out is None:
        print(text, end="" if text.endswith("\n") else "\n")
        return
    content, folder = text.encode(), os.path.dirname(os.path.realpath(out))
    try:
        if os.path.exists(out) and not (out.is_file() and os.access(folder, os.W_OK | os.X_OK)):
            out.write_bytes(content)  # a device, or a file in a folder that takes no other
        else:
            write_atomically(out, content)
    except OSError as error:
        found, remedy = error.strerror, "Name a file in a folder that exists"
        if error.errno in FULL:
            remedy = "Make room on its disk, or name a file on another one"
        raise SdbenchError("cannot be written", file=out, found=found, remedy=remedy) from None
    print(f"written to {out}", file=sys.stderr)


def write_figures(figures: Mapping[str, Any], out: Path | None) -> None:
    """Write figures as JSON where a file for them was named."""
    if out is not None:
        write_text(json.dumps(figures, indent=2) + "\n", out)
