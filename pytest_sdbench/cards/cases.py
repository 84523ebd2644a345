"""Spread a card into the scores that a run measures, and tell with which claims they can be compared."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pytest_sdbench.cards.card import Card, Claim
from pytest_sdbench.cards.claims import margin_of
from pytest_sdbench.cards.index import Problem
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.protocol import Protocol


@dataclass(frozen=True)
class Case:
    """One score to be measured, and what the card claims of it, if anything."""

    id: str
    metric: str = ""
    protocol: str | None = None
    """None: the source does not state it, so nothing can be compared."""
    claim: Claim | None = None
    problem: Problem | None = None
    """What is wrong with the entry that stands in the claim's place."""


def quality_cases(card: Card) -> list[Case]:
    """Return a card's claims and problems, then each metric of its protocols that nothing is claimed of yet.

    A metric that is recorded only is measured again once its protocol has changed: nothing else would renew
    the record.
    """
    cases = [Case(claim.id, claim.metric, claim.gate_protocol, claim) for claim in card.claims]
    for problem in card.problems:
        cases.append(Case(problem.id, problem.claim.metric if problem.claim else "", problem=problem))
    for name in card.judged_by:
        claims = [claim for claim in card.claims if claim.gate_protocol == name]
        if name not in card.protocols and all(claim.record is None for claim in claims):
            continue
        protocol = load_protocol(name, search=(card.path.parent,))
        lasting = {
            claim.metric for claim in claims if claim.record is None or not other_protocol(claim, protocol)
        }
        unread = [case.problem.claim for case in cases if case.problem and case.problem.claim]
        lasting |= {claim.metric for claim in unread if claim.gate_protocol == name}
        recorded = {claim.metric for claim in claims}
        for metric in protocol.metrics:
            if metric not in lasting and (metric in recorded or name in card.protocols):
                cases.append(Case(f"{name}-{metric}", metric, name))
    return cases or [Case("nothing-claimed")]


def as_candidate(card: Card) -> Card:
    """Return a card as a checkpoint in its place is judged, where that is compared with the card's own.

    That is so under protocols of pairs of which the card itself claims nothing: what such metrics come to is
    claimed to be what equal pictures have, within the margin. What it claims of pairs stays.
    """
    pairs = {
        (name, metric): METRICS[metric]
        for name in card.judged_by
        if not is_beside_baseline(card, name)
        for metric in load_protocol(name, search=(card.path.parent,)).metrics
        if METRICS[metric].perfect is not None
    }
    known_ids = {claim.id for claim in card.claims}
    same = [
        Claim(
            metric=metric,
            value=float(known.perfect or 0),
            text=f"{known.perfect:g}",
            protocol=name,
            margin=margin_of(card.margins, name, metric),
            kind="identity",
            label=known.label,
            # A published figure of other images keeps its name.
            suffix="candidate" if f"{name}-{metric}" in known_ids else "",
        )
        for (name, metric), known in pairs.items()
    ]
    return replace(card, claims=(*card.claims, *same))


def is_beside_baseline(card: Card, protocol: str) -> bool:
    """Tell whether a card claims how close its pictures come to those of its baseline under a protocol.

    What it claimed before the protocol changed is compared with nothing, and does not count.
    """
    claims = [claim for claim in card.claims if claim.gate_protocol == protocol and claim.kind != "identity"]
    pairs = [claim for claim in claims if METRICS[claim.metric].reads == "pair"]
    today = load_protocol(protocol, search=(card.path.parent,)) if pairs else None
    return today is not None and any(not other_protocol(claim, today) for claim in pairs)


def other_protocol(claim: Claim, protocol: Protocol) -> str:
    """Say why a claim is not one of this protocol as it is today; empty if it is."""
    renew = "; --sdbench-update records it anew" if claim.record else ""
    if claim.n not in (None, protocol.n):
        return f"the claim is of {claim.n:,} images, and {protocol.name} has {protocol.n:,}{renew}"
    made = claim.record.protocol_fingerprint if claim.record else None
    if made is not None and not protocol.covers(made, claim.metric):
        now = protocol.fingerprint
        return f"{protocol.name} has changed since this was recorded ({made}, now {now}){renew}"
    return ""


def judged_protocols(card: Card) -> list[Protocol]:
    """Return the protocols under which a run of the card makes images.

    A protocol that has changed since every claim under it was made is left out. Raises what `load_protocol`
    raises.
    """
    found: dict[str, Protocol] = {}
    for case in quality_cases(card):
        if case.protocol is not None and case.protocol not in found:
            protocol = load_protocol(case.protocol, search=(card.path.parent,))
            if case.claim is None or not other_protocol(case.claim, protocol):
                found[case.protocol] = protocol
    return list(found.values())
