"""What was published: a table for each source, to the digit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from pytest_sdbench.cards.card import Card, Claim, Source
from pytest_sdbench.cards.claims import UNSTATED
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.report.cells import COMPONENTS, NONE, billions, in_order, markdown, titles
from pytest_sdbench.report.grids import Grid, cells, github


@dataclass(frozen=True)
class Column:
    """What the figures of one column are of."""

    metric: str
    protocol: str
    n: int | None
    dataset: str
    """Of an unstated protocol; a stated one says it."""
    apart: str
    """What else tells it from another column."""
    label: str
    """What the card calls it, of an unstated protocol: CLIP scores of two networks are two scores."""

    @classmethod
    def of(cls, claim: Claim) -> Column:
        """Return the column of a claim."""
        dataset, label = (claim.dataset, claim.label) if claim.protocol == UNSTATED else ("", "")
        return cls(
            claim.metric, claim.protocol, claim.n, dataset, claim.apart, " ".join(label.lower().split())
        )


Pairs = Sequence[tuple[Card, Claim]]
Place = tuple[str, str | None]
"""The name of a source, and its link."""


def published_tables(cards: Sequence[Card]) -> str:
    """Return the tables of `published_grids` as GitHub Markdown; entries that are no claims stand below."""
    shown = titles(cards)
    unread = [
        f"- {markdown(shown[card.name])}: {markdown(str(each))}" for card in cards for each in card.problems
    ]
    text = github(published_grids(cards)) or "No figures are published in these cards.\n"
    return text + ("\n### Entries that are no claims\n\n" + "\n".join(unread) + "\n" if unread else "")


def published_grids(cards: Sequence[Card]) -> list[Grid]:
    """Return one table per source of published figures, to the digit: scores, then sizes.

    A card belongs to the table of each source that its claims (or ``sdbench.sources.size``) name; each
    teacher stands before its students, larger networks before smaller ones. Figures of two datasets never
    share a row that does not say so, and a source that calls figures of two protocols by one name gets a
    table for each protocol.
    """
    groups: dict[Place, dict[str, Card]] = {}
    place_of = _places(cards)
    for card in in_order(cards):
        sources = [claim.source or Source() for claim in card.claims if claim.kind == "published"]
        if "size" in card.sources:
            sources.append(Source(card.sources["size"]))
        for source in sources:
            groups.setdefault(place_of(source), {})[card.name] = card
    grids, shown = [], titles(cards)
    for (name, url), group in groups.items():
        grid = partial(_grid, name or "Published without a source", url if name else None, shown)
        pairs = [
            (card, claim)
            for card in group.values()
            for claim in card.claims
            if claim.kind == "published" and place_of(claim.source or Source()) == (name, url)
        ]
        some = _by([(claim.origin.get("type", ""), (card, claim)) for card, claim in pairs])
        for kind, same in some.items():
            words = [(claim.protocol, (card, claim)) for card, claim in same]
            for protocol, few in (_by(words) if _repeats(same) else {"": same}).items():
                # What a table is of where a source has several; unstated is no name of a protocol.
                of = protocol if protocol not in ("", UNSTATED) else few[0][1].dataset or kind
                whole = list(group.values()) if not protocol and len(some) == 1 else [card for card, _ in few]
                grids.append(grid(of if protocol or len(some) > 1 else "", whole, few))
        if not pairs:
            grids.append(grid("", list(group.values()), []))
    return grids


def _by(items: Iterable[tuple[str, tuple[Card, Claim]]]) -> dict[str, list[tuple[Card, Claim]]]:
    found: dict[str, list[tuple[Card, Claim]]] = {}
    for key, pair in items:
        found.setdefault(key, []).append(pair)
    return found


def _places(cards: Sequence[Card]) -> Callable[[Source], Place]:
    """Return what tells the name and the link of a source; without a link it has that of its namesake."""
    urls: dict[str, set[str]] = {}
    for source in (claim.source for card in cards for claim in card.claims):
        if source is not None and source.url:
            urls.setdefault(source.name, set()).add(source.url)

    def place_of(source: Source) -> Place:
        known = urls.get(source.name, set())
        return source.name, source.url or (next(iter(known)) if len(known) == 1 else None)

    return place_of


def _repeats(pairs: Pairs) -> bool:
    """Return whether figures of two protocols have one name."""
    labels = {(claim.protocol, claim.label) for _, claim in pairs}
    return len({label for _, label in labels}) < len(labels)


def _grid(
    title: str, url: str | None, shown: dict[str, str], of: str, cards: Sequence[Card], pairs: Pairs
) -> Grid:
    columns: dict[Column, str] = {}
    figures: dict[tuple[str, str], dict[Column, str]] = {}
    sized = dict.fromkeys((card.name, "") for card in cards)
    for card, claim in pairs:
        columns.setdefault(Column.of(claim), f"{claim.label} {METRICS[claim.metric].arrow}")
        # A card of several models has a row for each.
        row = (card.name, claim.origin.get("model", "") if claim.doubt else "")
        figures.setdefault(row, {})[Column.of(claim)] = claim.text
    by_name = {card.name: card for card in cards}
    sizes = [name for name in COMPONENTS if any(_size(card, name) for card in by_name.values())]
    rows = []
    for name, model in dict.fromkeys([*figures, *sized]):
        if not model and (name, "") not in figures and any(card == name for card, _ in figures) and not sizes:
            continue
        scores = [figures.get((name, model), {}).get(column, NONE) for column in columns]
        counted = [NONE if model else _size(by_name[name], part) or NONE for part in sizes]
        rows.append(cells([f"{model} ({shown[name]})" if model else shown[name], *scores, *counted]))
    heading = ("Model", *_headings(columns), *(COMPONENTS[name] for name in sizes))
    return Grid(title, heading, tuple(rows), of=of, url=url)


def _headings(columns: dict[Column, str]) -> list[str]:
    """Return a heading for each column: its label, and whatever else two of them need to be told apart."""
    found = list(columns.values())
    metrics, datasets = ({getattr(column, name) for column in columns} for name in ("metric", "dataset"))
    mixed = len(metrics) > 1 and len(datasets) > 1
    for name, form in (("dataset", "{}"), ("n", "{:,} images"), ("apart", "{}")):
        if mixed or max(Counter(found).values(), default=1) > 1:
            said = [value and form.format(value) for value in (getattr(column, name) for column in columns)]
            found = [f"{text}, {word}" if word else text for text, word in zip(found, said, strict=True)]
        mixed = False
    return found


def _size(card: Card, component: str) -> str:
    size = card.size.get(component)
    return billions(size.published_text) if size and size.published_text else ""
