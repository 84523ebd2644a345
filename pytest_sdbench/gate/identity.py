"""Say in what the checkpoint under test differs from the one that a card's figures are recorded of."""

from __future__ import annotations

from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.cards.card import Card
from pytest_sdbench.gate.recorded import evidence_path, read_recorded
from pytest_sdbench.models.changes import changes
from pytest_sdbench.models.checkpoint import Checkpoint, resolve


def recorded_changes(card: Card, checkpoint: Checkpoint, protocol: str) -> tuple[str, ...]:
    """Return a line for each difference; none for the recorded checkpoint, or where none is known.

    The recorded checkpoint is compared tensor by tensor where it is on this machine, else as far as its
    description in the recorded evidence goes.
    """
    recorded = read_recorded(evidence_path(card.path, protocol))
    known = [record.checkpoint_fingerprint for record in card.records if record.checkpoint_fingerprint]
    if recorded is not None:
        known = [recorded.checkpoint_fingerprint]
    if checkpoint.fingerprint in known:
        return ()
    description = recorded.description if recorded is not None else None
    try:
        own = resolve(card.checkpoint, card=card.name, near=card.path.parent)
        if own.fingerprint in known:
            return _changes(checkpoint, own, "recorded")
        if description is None and own.fingerprint != checkpoint.fingerprint:
            return _changes(checkpoint, own, "the card's own")
    except SdbenchError as error:
        if description is None:
            unread = f": the card's own checkpoint is not there to be compared ({error.message})"
            return (f"other weights than those that are recorded{unread}",) if known else ()
    if description is not None:
        return tuple(changes(checkpoint, description))
    return ("other weights than those that are recorded, of which no description is kept",) if known else ()


_known: dict[tuple[str, str, str], tuple[str, ...]] = {}


def _changes(ours: Checkpoint, theirs: Checkpoint, whose: str) -> tuple[str, ...]:
    """Return the changes of a pair; its tensors are read once in a process."""
    key = ours.fingerprint, theirs.fingerprint, whose
    if key not in _known:
        _known[key] = tuple(changes(ours, theirs, whose=whose))
    return _known[key]
