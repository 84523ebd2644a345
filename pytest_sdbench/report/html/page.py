"""What the page of a run says, in words and numbers; `render` sets it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_sdbench.base.environment import versions
from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.cards.card import Card, Claim
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.report.cells import titles
from pytest_sdbench.report.html.claims import ClaimLine, claim_lines, labels_of, share_rows, unasked
from pytest_sdbench.report.html.cost import Panel, cost_panels
from pytest_sdbench.report.html.headline import (
    Count,
    Gap,
    Headline,
    counts,
    gaps,
    verdict_of,
)
from pytest_sdbench.report.html.multiples import History, history_of
from pytest_sdbench.report.html.pictures import MOST, Pair, PairGroup, pair_groups, room_text
from pytest_sdbench.report.html.run import NO_RUN, Run
from pytest_sdbench.report.results import Row

_LINES = 12
"""Of one fact of the set-up."""
_FELL = 4
"""Claims that fell which the top of the page names; the others stand in the list."""


@dataclass(frozen=True)
class Fact:
    """One line of the set-up."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """In what the checkpoint of a card differs from the recorded one."""

    card: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Choices:
    """What the list of claims can be filtered by."""

    cards: tuple[str, ...]
    metrics: tuple[str, ...]
    verdicts: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """The page of a run."""

    title: str
    headline: Headline
    counts: tuple[Count, ...]
    unasked: int
    """Scores that the cards claim, and this run was not asked for."""
    fell: tuple[ClaimLine, ...]
    """The first of those that fell or cannot be told."""
    more: int
    """Of these, how many are not named at the top."""
    lead: Pair | None
    """The pair that shows it best."""
    claims: tuple[ClaimLine, ...]
    choices: Choices
    gaps: tuple[Gap, ...]
    changes: tuple[Change, ...]
    groups: tuple[PairGroup, ...]
    room: str
    panels: tuple[Panel, ...]
    history: History | None
    """None where the run keeps no history."""
    facts: tuple[Fact, ...]
    notes: tuple[str, ...]
    untested: tuple[Change, ...]
    shared: int
    """Records that share the line of the published figure which they agree with."""
    command: str


def page_of(
    cards: Sequence[Card],
    rows: Sequence[Row],
    run: Run = NO_RUN,
    *,
    beside: Sequence[Card] = (),
    room: int = MOST,
) -> Page:
    """Return the page of a run's rows; with what the cards `beside` publish its own are compared.

    `room` is how many characters its pictures take at most.
    """
    claims = {(card.name, claim.id): claim for card in cards for claim in card.claims}
    rows = [_with_claim(row, claims.get((row.card, row.name))) for row in rows]
    everything = rows
    rows, twins = share_rows(rows)
    lines = claim_lines(rows, twins, labels_of(cards))
    left = unasked(cards, everything)
    state = verdict_of(rows, run.status, unasked=sum(map(len, left.values())))
    open_ones = [line for line in lines if line.is_open]
    groups = pair_groups(rows, cards, run, room)
    pairs = [pair for group in groups for pair in group.pairs if pair.compares]
    names = list(dict.fromkeys(row.card for row in rows))
    shown = titles(cards)
    whole = shown.get(names[0], names[0]) if len(names) == 1 else f"{len(names)} model cards"
    return Page(
        title=whole,
        headline=state,
        counts=counts(rows),
        unasked=sum(map(len, left.values())),
        fell=tuple(open_ones[:_FELL]),
        more=max(0, len(open_ones) - _FELL),
        lead=pairs[0] if pairs and open_ones else None,
        claims=lines,
        choices=_choices(lines),
        gaps=gaps(rows),
        changes=tuple(_changes(rows)),
        groups=groups,
        room=room_text(),
        panels=cost_panels(rows, cards, beside),
        history=history_of(everything, run.history),
        facts=tuple(map(_first, (*_facts(cards, rows, run), *_unasked_facts(left)))),
        notes=tuple(dict.fromkeys(str(note) for row in rows for note in row.extra.get("notes", ()))),
        untested=tuple(Change(card.name, card.explained) for card in cards if card.explained),
        shared=len(everything) - len(rows),
        command=run.command,
    )


def _with_claim(row: Row, claim: Claim | None) -> Row:
    """Return a row with what its card claims: a check that never ran could not file it."""
    if claim is None or row.claimed is not None or row.test != "quality":
        return row
    return replace(
        row,
        metric=claim.metric,
        protocol=claim.gate_protocol or claim.protocol,
        claimed=claim.value,
        claimed_text=claim.text,
        kind=claim.kind,
    )


def _choices(lines: Sequence[ClaimLine]) -> Choices:
    return Choices(
        tuple(dict.fromkeys(line.card for line in lines)),
        tuple(dict.fromkeys(line.metric for line in lines)),
        tuple(dict.fromkeys(line.verdict for line in lines)),
    )


def _changes(rows: Sequence[Row]) -> Sequence[Change]:
    found = {row.card: row.extra["changes"] for row in rows if row.extra.get("changes")}
    return [Change(card, tuple(map(str, lines))) for card, lines in found.items()]


def _facts(cards: Sequence[Card], rows: Sequence[Row], run: Run) -> Sequence[Fact]:
    """Return what a reader needs to know of the run to have the same figures again."""

    def told(key: str) -> tuple[str, ...]:
        found = (row.extra.get(key) for row in rows)
        return tuple(dict.fromkeys(str(each) for each in found if each not in (None, "")))

    weights = tuple(f"{card}: {place}" for card, place in run.weights.items())
    prints = {
        f"{row.card}: {row.extra['checkpoint_fingerprint']}": None
        for row in rows
        if row.extra.get("checkpoint_fingerprint")
    }
    libraries = {
        ", ".join(f"{name} {number}" for name, number in row.extra["versions"].items()): None
        for row in rows
        if isinstance(row.extra.get("versions"), dict)
    }
    here = ", ".join(f"{name} {number}" for name, number in versions().items())
    facts = [
        Fact("Judged in place of the card's own", weights),
        Fact("Fingerprint", tuple(prints) if len(prints) <= _FELL else ()),
        Fact("Compared with", told("reference")),
        Fact("Device", told("device")),
        Fact("Protocol", tuple(_protocols(cards, rows))),
        Fact("Libraries", tuple(libraries) or (here,)),
        Fact("Date", told("date")),
    ]
    return [fact for fact in facts if fact.values]


def _first(fact: Fact) -> Fact:
    """Return a fact of so many lines at most that the claims below are found."""
    more = len(fact.values) - _LINES
    return fact if more <= 1 else Fact(fact.name, (*fact.values[:_LINES], f"and {more} more"))


def _unasked_facts(unasked: Mapping[tuple[str, str], Sequence[str]]) -> Iterator[Fact]:
    cards = {card for card, _ in unasked}
    lines = [
        f"{f'{card}, ' if len(cards) > 1 else ''}{protocol}: "
        + ", ".join(METRICS[metric].label if metric in METRICS else metric for metric in metrics)
        for (card, protocol), metrics in unasked.items()
    ]
    if lines:
        yield Fact("Claimed, and not part of this run", tuple(lines))


def _protocols(cards: Sequence[Card], rows: Sequence[Row]) -> Sequence[str]:
    folders = {card.name: card.path.parent for card in cards}
    found: dict[str, str] = {}
    for row in rows:
        if row.protocol and row.protocol != "unstated" and row.protocol not in found:
            folder = folders.get(row.card)
            try:
                protocol = load_protocol(row.protocol, search=() if folder is None else (folder,))
                found[row.protocol] = f"{row.protocol}: {protocol.title}"
            except (SdbenchError, OSError, ValueError):  # its rows say what is wrong with it
                found[row.protocol] = row.protocol
    return list(found.values())
