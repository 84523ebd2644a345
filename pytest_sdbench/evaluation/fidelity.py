"""Draw the pictures of a reference, which those of a checkpoint are compared with one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_sdbench.base.errors import CheckpointError, Unavailable
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.evidence import make_evidence
from pytest_sdbench.evaluation.job import Extras, on_this_device, open_evidence
from pytest_sdbench.evaluation.tuning import Tuning
from pytest_sdbench.metrics.definition import column
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
    instead: str = "",
    known: Callable[[Evidence], Setups | None] = lambda reference: None,
) -> Reference:
    """Return the reference with the pictures of a protocol, drawing on this set-up those that are not kept.

    None is drawn where `known` says with which all pairs were compared before (see `known_pairs`). `instead`
    is what else can be done about another scheduler.
    Raises Unavailable where there is no reference, where its scheduler is not the one that the protocol asks
    for, and where more than `max_images` would have to be drawn; CheckpointError where it is damaged;
    PictureLoss where pictures were lost meanwhile.
    """
    try:
        checkpoint = find()
    except CheckpointError as error:
        raise _told(error, "the reference that pictures are compared with is damaged") from error
    extras = Extras(columns={}, keep=protocol.n)
    here = open_evidence(workspace, checkpoint, on_this_device(protocol, workspace.device), extras=extras)
    if (setups := known(here)) is not None:
        return Reference(checkpoint.spec, checkpoint.fingerprint, setups, here)
    try:
        made = make_evidence(
            checkpoint, protocol, workspace, tuning=tuning, max_images=max_images, extras=extras
        )
    except CheckpointError as error:
        if error.key != "scheduler":
            what = f"the reference {checkpoint.spec} cannot draw what others are compared with"
            raise _told(error, what) from error
        # It is sound, and of another protocol: a teacher beside its consistency model.
        raise Unavailable(
            f"the reference {checkpoint.spec} has another scheduler, and draws nothing to compare with",
            key=protocol.name,
            found=error.found,
            remedy=", or ".join(["Compare with one of the protocol's scheduler", *filter(None, [instead])]),
        ) from error
    # Its rows may be older than its pictures, and of another set-up.
    setups = setups_of(made.evidence.picture_artists(protocol.n))
    return Reference(checkpoint.spec, checkpoint.fingerprint, setups, made.evidence)


def other_scheduler(checkpoint: Checkpoint, protocol: Protocol) -> str:
    """Say why a protocol cannot be drawn with a reference's own scheduler; empty where it can."""
    from pytest_sdbench.models.checkpoint import scheduler_class

    wanted, own = protocol.sampling.scheduler, scheduler_class(checkpoint)
    if wanted.name != "checkpoint" or wanted.must_be in (None, own):
        return ""
    return f"has a {own}, and the protocol samples with a {wanted.must_be}"


def _told(error: CheckpointError, what: str) -> CheckpointError:
    """Return an error of the reference's checkpoint that says whose it is."""
    message = f"{what}: {error.message}"
    return CheckpointError(message, file=error.file, key=error.key, found=error.found, remedy=error.remedy)


def pairs_of(protocol: Protocol) -> tuple[str, ...]:
    """Return the metrics of a protocol that compare with a reference."""
    return tuple(metric for metric in protocol.metrics if METRICS[metric].reads == "pair")


def known_pairs(
    workspace: Workspace, checkpoint: Checkpoint, protocol: Protocol, reference: Evidence
) -> Setups | None:
    """Return where the pictures of a reference were drawn with which all pairs were compared before.

    None where some were not, or a shard of before does not say so.
    """
    pairs = protocol.without(set(protocol.metrics) - set(pairs_of(protocol)))
    drawn = on_this_device(pairs, workspace.device)
    try:
        evidence = open_evidence(workspace, checkpoint, drawn, extras=Extras(reference=reference))
    except Unavailable:
        return None  # the weights of an extractor are not here, and the key of its column is not known
    if any(gap.columns or gap.rows for gap in evidence.gaps(drawn.n)):
        return None
    return setups_of_references(evidence, drawn)


def setups_of_references(evidence: Evidence, protocol: Protocol) -> Setups | None:
    """Return where the pictures were drawn that all pairs compare with; None where a shard does not say."""
    found = evidence.references(protocol.n, _columns_of_pairs(evidence, protocol))
    said = [each for each in found if each is not None]
    return setups_of(said) if said and len(said) == len(found) else None


def setups_of_pairs(evidence: Evidence, protocol: Protocol) -> Setups:
    """Return where the pictures were drawn that metrics of pairs are of, whoever measured them."""
    return setups_of(evidence.artists(protocol.n, _columns_of_pairs(evidence, protocol)))


def _columns_of_pairs(evidence: Evidence, protocol: Protocol) -> set[str]:
    specs = [protocol.metrics[metric] for metric in pairs_of(protocol)]
    columns = {column(spec.extractor, METRICS[spec.metric].output) for spec in specs}
    return columns & evidence.columns.keys()


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
