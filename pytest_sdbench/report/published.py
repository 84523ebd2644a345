"""GitHub markdown of what was published: a table for each source, to the digit."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_sdbench.cards.card import Card, Claim, Source
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.report.cells import COMPONENTS, NONE, billions, in_order, table


def published_tables(cards: Sequence[Card]) -> str:
    """Return one table per source of published figures, to the digit: scores, then sizes.

    A card belongs to the table of each source that its claims (or ``sdbench.sources.size``) name; each
    teacher stands before its students, larger networks before smaller ones. A source that calls figures of
    two protocols by one name gets a table for each protocol.
    """
    groups: dict[str, dict[str, Card]] = {}
    links: dict[str, str] = {}
    for card in in_order(cards):
        sources = [claim.source or Source() for claim in card.claims if claim.kind == "published"]
        if "size" in card.sources:
            sources.append(Source(card.sources["size"]))
        for source in sources:
            groups.setdefault(source.name, {})[card.name] = card
            if source.url:
                links[source.name] = source.url
    parts = []
    for name, group in groups.items():
        heading = f"[{name}]({links[name]})" if name in links else name or "Published without a source"
        pairs = [(card, claim) for card in group.values() for claim in _claims_of(card, name)]
        labels = {_column(claim): claim.label for _, claim in pairs}
        if len(set(labels.values())) == len(labels):
            parts.append(f"### {heading}\n\n{_table(list(group.values()), pairs)}\n")
            continue
        for protocol in dict.fromkeys(claim.protocol for _, claim in pairs):
            some = [(card, claim) for card, claim in pairs if claim.protocol == protocol]
            named = {card.name: card for card, _ in some}
            parts.append(f"### {heading}: {protocol}\n\n{_table(list(named.values()), some)}\n")
    return "\n".join(parts) or "No figures are published in these cards.\n"


def _claims_of(card: Card, source: str) -> list[Claim]:
    published = [claim for claim in card.claims if claim.kind == "published"]
    return [claim for claim in published if (claim.source or Source()).name == source]


def _column(claim: Claim) -> tuple[str, str, int | None]:
    return claim.metric, claim.protocol, claim.n


def _table(cards: Sequence[Card], claims: Sequence[tuple[Card, Claim]]) -> str:
    columns: dict[tuple[str, str, int | None], str] = {}
    figures = {(card.name, _column(claim)): claim.text for card, claim in claims}
    for _, claim in claims:
        columns.setdefault(_column(claim), f"{claim.label} {METRICS[claim.metric].arrow}")
    sizes = [name for name in COMPONENTS if any(_size(card, name) for card in cards)]
    rows = []
    for card in cards:
        scores = [figures.get((card.name, column), NONE) for column in columns]
        rows.append([card.title, *scores, *(_size(card, name) or NONE for name in sizes)])
    return table(["Model", *columns.values(), *(COMPONENTS[name] for name in sizes)], rows)


def _size(card: Card, component: str) -> str:
    size = card.size.get(component)
    return billions(size.published_text) if size and size.published_text else ""
