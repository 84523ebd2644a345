"""The command line beside pytest: ``python -m pytest_sdbench COMMAND``."""

from __future__ import annotations

import argparse
import io
import os
import stat
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from pytest_sdbench import __version__
from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.base.files import FULL, why_unwritable

COMMANDS = {
    "doctor": "say what this machine lacks for which card, and how to get it",
    "plan": "say what a run will cost before it starts: images, time, disk, downloads",
    "sample": "make the images of cards, as one of any number of processes that share a store",
    "images": "write the pictures of a card as PNG files with their captions",
    "device": "measure what a U-Net call of the cards' networks takes on this device: latency, throughput, "
    "multiply-accumulates a second, peak memory",
    "draft": "write the card of a checkpoint",
    "table": "write the result tables, as GitHub Markdown, LaTeX, HTML or CSV",
    "figure": "draw figures as PNG and SVG: pictures side by side, quality against cost, scores over time",
    "comment": "write what a run found as a comment on a pull request, in GitHub markdown",
    "stats": "compute reference statistics of images, as an npz of mu and sigma",
    "score": "score images that another tool made, under a protocol",
    "import": "take in what another tool says of each image, as a metric that a protocol declares",
    "compare": "score two checkpoints on the same prompts and seeds, and say how sure the difference is",
    "history": "show what runs measured over time, and call the changes",
    "store": "look into an evidence store, or clean it up",
}
"""What each command does. Its module, of the same name, declares its arguments and runs it."""


def _is_file(stream: io.TextIOWrapper) -> bool:
    """Return whether a stream is redirected into a file, and nobody said in which encoding."""
    try:
        return "PYTHONIOENCODING" not in os.environ and stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # one that has no file behind it
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 something lacks, 2 an explained error.

    130: interrupted from the keyboard. 141: nobody reads the output any more.
    """
    words = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without arrows shows their numbers
            if stream is sys.stdout and _is_file(stream):
                stream.reconfigure(encoding="utf-8")  # whatever the machine's terminals show
    # Only the module of the command at hand is loaded: some of them need numpy.
    named = next((word for word in words if word in COMMANDS), "")
    try:
        options = parser(named).parse_args(words)
        from pytest_sdbench.commands.shared import own_words, settle_places

        settle_places(options, words)
        _check_outputs(options)
        status: int = _module(options.command).run(options)
        sys.stdout.flush()
        return status
    except SdbenchError as error:
        print(f"error: {own_words(error, options)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output, `head` say, has seen enough
        _discard_output()
        return 141
    except PermissionError as error:
        if error.filename is None:
            raise
        from pytest_sdbench.models.access import LET_READ

        remedy = f"{LET_READ}. For a file to write, name another place"
        refused = SdbenchError("this user may not read or write it", file=error.filename, remedy=remedy)
        print(f"error: {refused}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in FULL or error.filename is not None:
            raise
        _discard_output()
        told = f"the output cannot be written: {error.strerror}. Make room on its disk"
        print(f"error: {told}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted{_INTERRUPTED.get(named, '')}", file=sys.stderr)
        return 130


def _discard_output() -> None:
    """Let what is still to be written go nowhere: the interpreter would try again as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser(*names: str) -> argparse.ArgumentParser:
    """Return the parser of all commands, with the arguments of those that are named.

    What it parses has the command's name as `command`.
    """
    whole = argparse.ArgumentParser(
        prog="python -m pytest_sdbench",
        description="Model cards as tests: what surrounds `pytest --sdbench`.",
    )
    whole.add_argument("--version", action="version", version=f"pytest-sdbench {__version__}")
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if name in names:
            _module(name).add_arguments(command)
    return whole


def _check_outputs(options: argparse.Namespace) -> None:
    """Raise SdbenchError for a file that could not be written when all is done."""
    from pytest_sdbench.cards.front_matter import is_card

    in_place = options.command != "stats"  # which replaces the file, and makes its folder
    for name in ("out", "json"):
        given = vars(options).get(name)
        for path in given if isinstance(given, list) else [given]:
            reason = why_unwritable(path, in_place=in_place) if isinstance(path, Path) else ""
            remedy = "Name a file in a folder that exists"
            if isinstance(path, Path) and in_place and not os.path.isdir(path.parent):
                reason = f"there is no folder {path.parent}"
            elif isinstance(path, Path) and os.path.isfile(path) and is_card(path):
                reason, remedy = "it is a card", "Name another file: a card is never overwritten"
            if reason:
                raise SdbenchError(f"cannot be written: {reason}", file=path, key=f"--{name}", remedy=remedy)


def _module(name: str) -> Any:
    """Return the module of a command: it has `add_arguments(parser)` and `run(options)`."""
    return import_module(f"pytest_sdbench.commands.{_MODULES.get(name, name)}")


_KEPT = ": what is whole in the store is kept, and the same command goes on"
_INTERRUPTED = {
    **dict.fromkeys(("sample", "images", "compare"), _KEPT),
    "import": ": values may be missing from the store now, and the same command goes on",
}
"""What is left behind by commands that write into a store."""
_MODULES = {"import": "import_scores"}
"""Commands whose names no module can have."""
