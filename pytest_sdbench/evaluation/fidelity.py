"""Draw the pictures of a reference, which those of a checkpoint are compared with one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_sdbench.base.errors import CheckpointError, Unavailable
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.evidence import Extras, make_evidence
from pytest_sdbench.evaluation.tuning import Tuning
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.store.shards import Evidence

if TYPE_CHECKING:
    from pytest_sdbench.models.checkpoint import Checkpoint

_LIBRARIES = ("torch", "diffusers", "transformers")
"""What moves pictures when its version changes."""

Setups = frozenset[tuple[str, ...]]


@dataclass(frozen=True)
class Reference:
    """The checkpoint whose pictures others are compared with, and where they were drawn."""

    spec: str
    fingerprint: str
    setups: Setups
    """Device and versions of the libraries that draw."""
    evidence: Evidence | None = field(default=None, compare=False, repr=False)
    """Their pictures, all of which are kept."""


def draw_reference(
    find: Callable[[], Checkpoint],
    protocol: Protocol,
    workspace: Workspace,
    *,
    tuning: Tuning | None = None,
    max_images: int | None = None,
) -> Reference:
    """Return the reference with the pictures of a protocol, drawing on this set-up those that are not kept.

    Raises Unavailable where there is no reference, where it cannot draw what the protocol asks for, and where
    more than `max_images` would have to be drawn.
    """
    checkpoint = find()
    extras = Extras(columns={}, keep=protocol.n)
    try:
        made = make_evidence(
            checkpoint, protocol, workspace, tuning=tuning, max_images=max_images, extras=extras
        )
    except CheckpointError as error:
        what = f"the reference {checkpoint.spec} cannot draw what others are compared with: {error.message}"
        raise Unavailable(what, key=protocol.name, found=error.found, remedy=error.remedy) from error
    writers = made.evidence.writers(protocol.n)
    return Reference(checkpoint.spec, checkpoint.fingerprint, setups_of(writers), made.evidence)


def pairs_of(protocol: Protocol) -> tuple[str, ...]:
    """Return the metrics of a protocol that compare with a reference."""
    return tuple(metric for metric in protocol.metrics if METRICS[metric].reads == "pair")


def setups_of(writers: Iterable[Mapping[str, Any]]) -> Setups:
    """Return on which devices, and with which libraries, those who wrote these manifests drew."""
    return frozenset(
        (str(writer.get("device")), *(str(_versions(writer).get(name)) for name in _LIBRARIES))
        for writer in writers
    )


def no_reference() -> Checkpoint:
    """Raise Unavailable: nobody says what to compare with."""
    raise Unavailable(
        "fidelity compares with a reference's pictures, and there is none here",
        remedy="Run the card with pytest --sdbench",
    )


def _versions(writer: Mapping[str, Any]) -> Mapping[str, Any]:
    versions = writer.get("versions")
    return versions if isinstance(versions, Mapping) else {}
