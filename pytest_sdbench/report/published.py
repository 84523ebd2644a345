"""GitHub markdown of what was published: a table for each source, to the digit."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_sdbench.cards.card import Card, Claim
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.report.cells import COMPONENTS, NONE, billions, in_order, table


def published_tables(cards: Sequence[Card]) -> str:
    """Return one table per source of published figures, to the digit: scores, then sizes.

    A card belongs to the table of each source that its claims (or ``sdbench.sources.size``) name; each
    teacher stands before its students, larger networks before smaller ones. A source that calls figures of
    two protocols by one name gets a table for each protocol.
    """
    groups: dict[str, list[Card]] = {}
    links: dict[str, str] = {}
    for card in in_order(cards):
        for name, url in _sources(card):
            group = groups.setdefault(name, [])
            if card not in group:
                group.append(card)
            if url:
                links[name] = url
    parts = []
    for name, group in groups.items():
        heading = f"[{name}]({links[name]})" if name in links else name or "Published without a source"
        for protocol in _kept_apart(name, group):
            some = [card for card in group if protocol is None or _claims_of(name, card, protocol)]
            title = heading if protocol is None else f"{heading}: {protocol}"
            parts.append(f"### {title}\n\n{_published_table(name, some, protocol)}\n")
    return "\n".join(parts) or "No figures are published in these cards.\n"


def _sources(card: Card) -> list[tuple[str, str | None]]:
    found = [
        (claim.source.name, claim.source.url) if claim.source else ("", None) for claim in _published(card)
    ]
    if "size" in card.sources:
        found.append((card.sources["size"], None))
    return found


def _published(card: Card) -> list[Claim]:
    return [claim for claim in card.claims if claim.kind == "published"]


def _claims_of(source: str, card: Card, protocol: str | None = None) -> list[Claim]:
    return [
        claim
        for claim in _published(card)
        if (claim.source.name if claim.source else "") == source and protocol in (None, claim.protocol)
    ]


def _kept_apart(source: str, cards: Sequence[Card]) -> list[str | None]:
    """Return the protocols that need a table of their own, or None for one table."""
    claims = [claim for card in cards for claim in _claims_of(source, card)]
    columns = {(claim.metric, claim.protocol, claim.n): claim.label for claim in claims}
    if len(set(columns.values())) == len(columns):
        return [None]
    return list(dict.fromkeys(claim.protocol for claim in claims))


def _published_table(source: str, cards: Sequence[Card], protocol: str | None) -> str:
    columns: dict[tuple[str, str, int | None], str] = {}
    figures: dict[tuple[str, tuple[str, str, int | None]], str] = {}
    for card in cards:
        for claim in _claims_of(source, card, protocol):
            column = (claim.metric, claim.protocol, claim.n)
            columns.setdefault(column, f"{claim.label} {METRICS[claim.metric].arrow}")
            figures[card.name, column] = claim.text
    sizes = [name for name in COMPONENTS if any(_published_size(card, name) for card in cards)]
    rows = [
        [
            card.title,
            *(figures.get((card.name, column), NONE) for column in columns),
            *(_published_size(card, name) or NONE for name in sizes),
        ]
        for card in cards
    ]
    return table(["Model", *columns.values(), *(COMPONENTS[name] for name in sizes)], rows)


def _published_size(card: Card, component: str) -> str:
    size = card.size.get(component)
    return billions(size.published_text) if size and size.published_text else ""
