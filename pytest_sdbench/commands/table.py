"""Write the result tables as GitHub markdown."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.commands.shared import cards_of, share, write_text


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    share(command, "cards", "--out")
    told = "a results.json: show what was measured beside what is claimed"
    command.add_argument("--results", type=Path, metavar="FILE", help=told)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from pytest_sdbench.cards.card import read_card
    from pytest_sdbench.report.devices import device_tables
    from pytest_sdbench.report.markdown import results_markdown
    from pytest_sdbench.report.published import published_tables
    from pytest_sdbench.report.results import read_results

    cards = [read_card(path) for path in cards_of(options.cards)]
    text = published_tables(cards)
    if any(card.devices for card in cards):
        text += "\n" + device_tables([(card.title, card.devices) for card in cards])
    if options.results is not None:
        try:
            rows, _ = read_results(options.results.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            message, file = f"not the results of a run: {error}", options.results
            remedy = "`pytest --sdbench --sdbench-report results.json` writes them"
            raise SdbenchError(message, file=file, key="--results", remedy=remedy) from None
        text += "\n" + results_markdown(cards, rows)
    write_text(text, options.out)
    return 0
