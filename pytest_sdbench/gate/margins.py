"""Say why nothing can be judged by a margin, and what to write in its place."""

from __future__ import annotations

from pytest_sdbench.cards.card import Card
from pytest_sdbench.cards.claims import Claim, passes_anything
from pytest_sdbench.gate.words import rounded_up
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.protocols.protocol import Protocol


def told(card: Card, protocol: Protocol, claim: Claim, margin: float) -> str:
    """Name the margin of a claim: its file, metric, protocol and figure."""
    file = f"{protocol.path}: margins" if claim.margin is None else f"{card.path}: sdbench.margins"
    return f"{file}: the margin of {METRICS[claim.metric].label} under {protocol.name}, {margin:g}"


def too_wide(card: Card, protocol: Protocol, claim: Claim, margin: float) -> str:
    """Say that a margin would pass nearly anything."""
    room = METRICS[claim.metric].room(claim.value)
    remedy = f"Give one well below {room:g}{_in_the_card(card, claim)}" if room > 0 else "Remove the claim"
    which = told(card, protocol, claim, margin)
    return f"{which}, beside the claim of {claim.text} would pass nearly anything. {remedy}"


def too_small(
    card: Card, protocol: Protocol, claim: Claim, margin: float, needed: float, passing: float
) -> str:
    """Say that a margin is below the noise: an identical checkpoint would pass it in so many runs."""
    remedy = f"Give at least {rounded_up(needed)}{_in_the_card(card, claim)}"
    if passes_anything(claim.metric, claim.value, needed):
        remedy = f"So few images cannot judge a claim of {claim.text}: take a protocol of more"
    which = told(card, protocol, claim, margin)
    return (
        f"{which}, is smaller than the noise: an identical checkpoint would pass in {passing:.0%} of runs. "
        f"{remedy}"
    )


def _in_the_card(card: Card, claim: Claim) -> str:
    """Return where the card gives a margin of its own, if it has none yet."""
    return "" if claim.margin is not None else f", as sdbench.margins.{claim.metric} of {card.path}"
