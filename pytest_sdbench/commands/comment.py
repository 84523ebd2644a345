"""Write what a run found as a comment on a pull request, in GitHub Markdown."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_sdbench.commands.shared import run_of, share, write_text


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    command.add_argument("results", type=Path, metavar="FILE", help="the results.json of a run")
    told = "the exit status of pytest: what did not end well is no release [that in FILE]"
    command.add_argument("--status", type=int, metavar="N", help=told)
    told = "where the report or the log is; may be repeated"
    command.add_argument("--link", type=_link, action="append", default=[], metavar="NAME=URL", help=told)
    share(command, "--out")


def _link(text: str) -> tuple[str, str]:
    name, sign, url = text.partition("=")
    if not (name and sign) or "://" in name:
        raise argparse.ArgumentTypeError(f"{text!r}: give NAME=URL, such as log=https://ci.example/7")
    return name, url


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from pytest_sdbench.report.cells import link
    from pytest_sdbench.report.summary import COMMENT, summary
    from pytest_sdbench.report.write import printable

    # A run that ended before it wrote anything has no results, and its status says all that is known.
    lacks = options.status and not options.results.exists()
    found, about = ([], {}) if lacks else run_of(options.results, key=None)
    rows, left = printable(found, []), about.get("unasked")
    status = about.get("status", 0) if options.status is None else options.status
    links = [link(name, url) for name, url in options.link if url]  # a job may have none
    ending = [" · ".join(links)] if links else []
    room = COMMENT - 512  # the sign by which a comment is found again stands in it, too
    instead = about.get("instead") or {}
    text = summary(rows, status=status, left=left, instead=instead, ending=ending, room=room)
    write_text(text, options.out)
    return 0
