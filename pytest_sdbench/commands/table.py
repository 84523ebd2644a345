"""Write the result tables as GitHub markdown."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.commands.shared import named_cards, share, write_text


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    share(command, "cards", "--out")
    told = "a results.json: show what was measured beside what is claimed"
    command.add_argument("--results", type=Path, metavar="FILE", help=told)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from pytest_sdbench.report.cells import titles
    from pytest_sdbench.report.devices import device_tables
    from pytest_sdbench.report.markdown import results_markdown
    from pytest_sdbench.report.published import published_tables
    from pytest_sdbench.report.results import Row, read_results
    from pytest_sdbench.report.write import printable

    cards = named_cards(options.cards)
    text, shown = published_tables(cards), titles(cards)
    if any(card.devices for card in cards):
        text += "\n" + device_tables([(shown[card.name], card.devices) for card in cards])
    rows: list[Row] = []
    shown_rows = rows
    if options.results is not None:
        try:
            rows, _ = read_results(options.results.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            message, file = f"not the results of a run: {error}", options.results
            remedy = "`pytest --sdbench --sdbench-report results.json` writes them"
            raise SdbenchError(message, file=file, key="--results", remedy=remedy) from None
        shown_rows = printable(rows, cards)
        text += "\n" + results_markdown(cards, shown_rows)
    write_text(text, options.out)
    return int(rows != shown_rows)
