"""Write the result tables, as GitHub's Markdown, LaTeX, HTML or CSV."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.cards.card import Card
from pytest_sdbench.commands.shared import named_cards, results_of, share, write_text
from pytest_sdbench.metrics.difference import Difference
from pytest_sdbench.report.grids import FORMATS

_BY_ENDING = {".tex": "latex", ".html": "html", ".htm": "html", ".csv": "csv"}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    share(command, "cards", "--out")
    told = "a results.json: show what was measured beside what is claimed"
    command.add_argument("--results", type=Path, metavar="FILE", help=told)
    told = (
        "github (Markdown), latex (booktabs), html (tables for a page) or csv (a line a figure); "
        "default: by the ending of FILE, else github"
    )
    command.add_argument("--format", choices=tuple(FORMATS), help=told)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from pytest_sdbench.report.cells import titles
    from pytest_sdbench.report.devices import device_grids
    from pytest_sdbench.report.markdown import results_markdown
    from pytest_sdbench.report.measured import measured_grids, measured_scores, recorded_scores
    from pytest_sdbench.report.published import published_grids, published_tables
    from pytest_sdbench.report.write import printable

    cards = named_cards(options.cards)
    rows = [] if options.results is None else results_of(options.results)
    ending = "" if options.out is None else options.out.suffix.lower()
    form = options.format or _BY_ENDING.get(ending, "github")
    shown_rows, shown, github = printable(rows, cards), titles(cards), form == "github"
    # The Markdown of a run has tables of its own of what it measured.
    scores = measured_scores(shown_rows) if rows else recorded_scores(cards)
    compare = RecordedImages({card.name: card for card in cards})
    grids = [] if rows and github else measured_grids(cards, scores, compare)
    grids += device_grids([(shown[card.name], card.devices) for card in cards])
    written = FORMATS[form](grids if github else [*published_grids(cards), *grids])
    if github:
        parts = [published_tables(cards), written, results_markdown(cards, shown_rows) if rows else ""]
        written = "\n".join(part for part in parts if part)
    # Excel takes a file without this mark for one of another encoding.
    write_text(f"\ufeff{written}" if form == "csv" and options.out is not None else written, options.out)
    return int(rows != shown_rows)


class RecordedImages:
    """Compares cards by their recorded images."""

    def __init__(self, cards: dict[str, Card]) -> None:
        self.cards = cards

    def __call__(self, first: str, second: str, protocol: str, metric: str) -> Difference | None:
        """Return the first card's score less the second's; None where the images of one are not recorded."""
        from pytest_sdbench.gate.recorded import evidence_path, read_recorded
        from pytest_sdbench.metrics.difference import difference
        from pytest_sdbench.metrics.registry import METRICS
        from pytest_sdbench.metrics.standard_error import groups_of
        from pytest_sdbench.protocols.load import load_protocol
        from pytest_sdbench.protocols.prompts import load_prompts

        if not {first, second} <= set(self.cards):
            return None
        cards = [self.cards[name] for name in (first, second)]
        found = [read_recorded(evidence_path(card.path, protocol)) for card in cards]
        beside = {None if each is None else each.reference_fingerprint for each in found}
        if METRICS[metric].reads == "pair" and len(beside) > 1:
            return None
        drawn = load_protocol(protocol, search=(cards[0].path.parent,))
        scores = [
            each.estimate(drawn.n, metric)
            for each in found
            if each is not None and drawn.covers(each.protocol_fingerprint, metric)
        ]
        if len(scores) < 2 or scores[0] is None or scores[1] is None:
            return None
        try:
            groups = groups_of(load_prompts(drawn, None)[: drawn.n])
        except SdbenchError:  # prompts of a data root, which this command does not read
            return None
        return difference(scores[0], scores[1], groups=groups)
