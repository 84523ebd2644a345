"""What the pictures of a card are compared with, and under which protocols a run compares any."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.cards.card import Card, baseline_of
from pytest_sdbench.cards.cases import Case, is_beside_baseline, other_protocol
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.suite.collection import card_of

if TYPE_CHECKING:
    from pytest_sdbench.protocols.protocol import Protocol
    from pytest_sdbench.suite.session import SdbenchSession


def reference_card(card: Card, weights: Path | None, protocol: Protocol) -> Card | None:
    """Return the card whose checkpoint's pictures those under test are compared with, or None."""
    is_own = weights is not None and not is_beside_baseline(card, protocol.name)
    return card if is_own else baseline_of(card)


def compared_protocols(session: SdbenchSession, items: Iterable[pytest.Item]) -> Iterator[Protocol]:
    """Yield the protocols under which these tests compare pictures one by one, as far as that can be told."""
    found: dict[tuple[Path, str], tuple[Card, Protocol]] = {}
    for item in items:
        # A card that cannot be read is an item of another type.
        module = card_of(item) if isinstance(item, pytest.Function) else None
        case = item.callspec.params.get("sdbench_case") if hasattr(item, "callspec") else None
        if module is None or not isinstance(case, Case):
            continue
        if (protocol := _compared(module.card, case)) is not None:
            found[module.path, protocol.name] = module.card, protocol
    # A card has several metrics of pairs under one protocol, and one reference.
    yield from (protocol for card, protocol in found.values() if _can_be_drawn(session, card, protocol))


def _compared(card: Card, case: Case) -> Protocol | None:
    if case.protocol is None or not case.metric or METRICS[case.metric].reads != "pair":
        return None
    protocol = load_protocol(case.protocol, search=(card.path.parent,))
    return None if case.claim is not None and other_protocol(case.claim, protocol) else protocol


def _can_be_drawn(session: SdbenchSession, card: Card, protocol: Protocol) -> bool:
    """Tell whether there is a reference, and its scheduler is the protocol's."""
    from pytest_sdbench.evaluation.fidelity import other_scheduler
    from pytest_sdbench.models.checkpoint import resolve

    reference = reference_card(card, session.weights_for(card.path), protocol)
    if reference is None:
        return False
    try:
        checkpoint = resolve(reference.checkpoint, card=reference.name, near=reference.path.parent)
        return not other_scheduler(checkpoint, protocol)
    except SdbenchError:  # the comparison itself says what is wrong
        return session.settings.download
