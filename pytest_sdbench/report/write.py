"""Write the reports of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pytest_sdbench.base.environment import versions
from pytest_sdbench.base.errors import SdbenchError, first_line
from pytest_sdbench.base.files import write_atomically
from pytest_sdbench.cards.card import Card, is_card, read_card
from pytest_sdbench.report.html.run import NO_RUN, Run
from pytest_sdbench.report.results import Row, results_json


def read_cards(rows: Sequence[Row], files: Mapping[str, Path]) -> list[Card]:
    """Return the cards behind a run's rows, named as there; the row of a broken one says what is wrong.

    `files` has the card of each node id.
    """
    cards = []
    for file, name in sorted({(files[row.node_id], row.card) for row in rows}):
        with contextlib.suppress(SdbenchError):
            cards.append(replace(read_card(file), name=name))
    return cards


def cards_beside(cards: Sequence[Card], rows: Sequence[Row]) -> list[Card]:
    """Return the other cards in the folders of these that claim something under a protocol of the run.

    A page compares with what they publish. Broken ones are left out: they are no part of the run.
    """
    own = {card.path.absolute() for card in cards}
    files = {path: None for card in cards for path in sorted(card.path.absolute().parent.glob("*.md"))}
    names = {row.protocol for row in rows if row.protocol}
    found = []
    for path in files:
        with contextlib.suppress(SdbenchError, OSError, UnicodeDecodeError):
            # Reading YAML takes a third of a second a card, and most are of other protocols.
            if path not in own and any(name in path.read_text(encoding="utf-8") for name in names):
                found += [read_card(path)] if is_card(path) else []
    return found


def printable(rows: Sequence[Row], cards: Sequence[Card]) -> list[Row]:
    """Return the rows; in the place of one that no report can show, an error that says what it is."""
    with contextlib.suppress(Exception):  # which row it is, and why, is found out below
        _show(rows, cards)
        return list(rows)
    found = []
    for row in rows:
        try:
            _show([row], [card for card in cards if card.name == row.card])
            found.append(row)
        except Exception as error:  # of whatever a figure, a metric or a file of results can be
            what = f"{type(error).__name__}: {first_line(error)[:200]}"
            reason = f"this result cannot be shown ({what}). It is {str(row)[:1000]}"
            words = {name: str(getattr(row, name)) for name in ("node_id", "card", "test", "name")}
            found.append(Row.from_dict({**words, "reason": reason}))
    return found


def _show(rows: Sequence[Row], cards: Sequence[Card]) -> None:
    """Make every report once, and throw it away."""
    from pytest_sdbench.report.html.page import page_of
    from pytest_sdbench.report.markdown import results_markdown
    from pytest_sdbench.report.summary import summary
    from pytest_sdbench.report.terminal import terminal_tables

    for verbose in (False, True):
        terminal_tables(rows, cards, verbose=verbose)
    results_markdown(cards, rows)
    results_json(rows, {})
    page_of(cards, rows)
    summary(rows, cards)


def write_reports(
    paths: Sequence[Path], rows: Sequence[Row], cards: Sequence[Card], run: Run = NO_RUN
) -> tuple[list[str], bool]:
    """Write each report by its ending; return a line about each, and whether all were written.

    One that cannot be written keeps no other from it.
    """
    from pytest_sdbench.report.html.claims import count_unasked
    from pytest_sdbench.report.html.render import results_html
    from pytest_sdbench.report.markdown import results_markdown

    untested = {card.name: card.explained for card in cards if card.explained}
    lines, whole = [], True
    for path in paths:
        if path.suffix == ".json":
            left = count_unasked(cards, rows)
            about = {"versions": versions(), "status": run.status, "unasked": left}
            about |= {"instead": dict(run.weights)} if run.weights else {}
            text = results_json(rows, about, untested)
        elif path.suffix == ".html":
            text = results_html(cards, rows, run, beside=cards_beside(cards, rows))
        else:
            text = results_markdown(cards, rows, {"versions": versions()}, run.status)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text.encode("utf-8", "backslashreplace"))
            lines.append(f"results written to {path}")
        except OSError as error:
            whole = False
            lines.append(f"results NOT written to {path}: {error.strerror}; give a place that can be written")
    return lines, whole
