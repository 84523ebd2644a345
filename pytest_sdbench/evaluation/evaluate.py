"""Evaluate a checkpoint under a protocol: make the evidence that is missing, and estimate the scores.

This is the one place that joins checkpoint, protocol, sampler, extractors, store and metrics.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sdbench.base.errors import CheckpointError, PictureLoss, SdbenchError, Unavailable
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.estimate import estimate
from pytest_sdbench.evaluation.evidence import CompleteEvidence, NothingToMeasure, make_evidence
from pytest_sdbench.evaluation.fidelity import (
    Reference,
    Setups,
    draw_reference,
    known_pairs,
    no_reference,
    pairs_of,
    setups_of_pairs,
    setups_of_references,
)
from pytest_sdbench.evaluation.job import PLAIN, Extras, Load
from pytest_sdbench.evaluation.tuning import Tuning
from pytest_sdbench.features.references import load_references
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.moments import FeatureStatistics
from pytest_sdbench.metrics.standard_error import Groups, groups_of
from pytest_sdbench.protocols.metric_specs import ReferencedSpec
from pytest_sdbench.protocols.prompts import load_prompts
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.store.shard_format import Rows

if TYPE_CHECKING:
    from pytest_sdbench.models.checkpoint import Checkpoint

_SETUP = ("device", "versions", "batch_size")
"""What of a manifest says how images were made."""

CUT = "{} prompts were cut to the tokenizer's length"
"""What reports say of it."""
_REPEATED = 1.5
"""So many times more images a prompt in the whole than in a part: the part does not stand for it. Captions
that coincide now and then do not count; a list that is gone through several times does."""


@dataclass(frozen=True)
class References:
    """The reference statistics of a protocol, as far as they are on this machine."""

    protocol: Protocol
    statistics: Mapping[str, FeatureStatistics]
    """By metric."""
    lacking: Mapping[str, SdbenchError]
    """By metric: why they, or the columns that it reads, are not here."""

    @classmethod
    def of(cls, protocol: Protocol, data_root: Path | None) -> References:
        """Load the references of a protocol; raises Unavailable where no metric can be computed here."""
        here, lacking = {}, {}
        for metric, found in load_references(protocol, data_root).items():
            if isinstance(found, Unavailable):
                lacking[metric] = found
            else:
                here[metric] = found
        return cls(protocol, here, {}).without(lacking)

    def without(self, lacking: Mapping[str, SdbenchError]) -> References:
        """Return what is left without some metrics; where that is none, raises what lacks or is damaged."""
        lacking = {**self.lacking, **lacking}
        if len(lacking) == len(self.protocol.metrics):
            absent = {name: error for name, error in lacking.items() if isinstance(error, Unavailable)}
            if absent == lacking:
                raise NothingToMeasure(absent)
            # What is broken comes first: a skip must not hide it.
            raise next(error for name, error in lacking.items() if name not in absent)
        return replace(self, lacking=lacking)

    def estimate(
        self, measured: Protocol, rows: Iterable[Rows], groups: Groups | None
    ) -> dict[str, Estimate | Undefined]:
        """Return the metrics of rows, without those that lack what they need."""
        return estimate(measured.without(self.lacking), rows, self.statistics, groups)

    def unverified(self) -> list[str]:
        """Return a note on each metric whose protocol does not say what its references must be."""
        notes = []
        for metric in self.statistics:
            spec = self.protocol.metrics[metric]
            if isinstance(spec, ReferencedSpec) and spec.statistics.sha256 is None:
                notes.append(f"{metric}: the protocol has no checksum of {spec.statistics.file}: unverified")
        return notes


@dataclass(frozen=True)
class Evaluation:
    """The scores of one checkpoint under one protocol, and where they come from."""

    estimates: Mapping[str, Estimate | Undefined]
    """By metric; without those that lack reference statistics or an extractor on this machine."""
    lacking: Mapping[str, SdbenchError]
    """By metric: why it could not be computed here; Unavailable but for what is damaged."""
    protocol: Protocol
    """What was measured: the protocol that was asked for, but for the number of images and the precision."""
    requested: int
    """Images that the protocol asks for."""
    complete: bool
    """Whether this is the protocol that was asked for in every number: only then can claims be judged."""
    checkpoint_fingerprint: str
    """Of the weights; empty where a pipeline of the user's own made the images, which nothing identifies."""
    device: str
    """Where the images were made, in words; not necessarily here."""
    versions: Mapping[str, str]
    """Of the libraries that the images were made with."""
    seconds: float
    images_made: int
    """By this call; the others were there."""
    blacked_out: int
    truncated: int
    notes: tuple[str, ...]
    """What a reader of the scores should know."""
    changes: tuple[str, ...] = ()
    """In what the checkpoint differs from the one that the claims are recorded of."""
    torch_device: str = "cpu"
    """The device of this run."""
    draw_fingerprint: str = ""
    """Of the draw, as the images were drawn."""
    groups: Groups | None = None
    """Which images share a prompt; None where no two do."""
    foretells: bool = True
    """Whether prompts repeat as often here as among all images of the protocol: else these images say too
    little of what those scatter by."""
    prompts: tuple[str, ...] = field(default=(), repr=False)
    """Of the images, in their order."""
    reference: Reference | None = None
    """What pairs are compared with; None where no metric compares, or there is nothing."""
    setups: Setups = frozenset()
    """Device and libraries that the images were drawn with, as of the reference."""

    @property
    def n(self) -> int:
        """Images behind the scores."""
        return self.protocol.n

    @property
    def protocol_fingerprint(self) -> str:
        """Fingerprint of what was measured; that of the protocol asked for if `complete`."""
        return self.protocol.fingerprint

    def difference(self, protocol: Protocol) -> str:
        """Say in what this evaluation differs from a protocol; empty if in nothing."""
        measured, found = self.protocol, []
        if measured.n != protocol.n:
            found.append(f"{measured.n:,} images here, {protocol.n:,} in {protocol.name}")
        for part in ("prompts", "seeds", "sampling"):
            ours, theirs = getattr(measured, part).model_dump(), getattr(protocol, part).model_dump()
            for key in dict.fromkeys([*ours, *theirs]):
                if ours.get(key) != theirs.get(key):
                    found.append(f"{key} {ours.get(key)} here, {theirs.get(key)} in {protocol.name}")
        if measured.image != protocol.image:
            found.append(f"another codec or resize than {protocol.name}")
        if measured.metrics != protocol.metrics:
            found.append(f"other metrics or reference statistics than {protocol.name}")
        return "; ".join(found)

    def provenance(self) -> dict[str, Any]:
        """Return where the scores come from, as a report or a record keeps it."""
        changes = {"changes": list(self.changes)} if self.changes else {}
        return changes | {
            "complete": self.complete,
            "protocol_fingerprint": self.protocol_fingerprint,
            "checkpoint_fingerprint": self.checkpoint_fingerprint,
            "device": self.device,
            "versions": dict(self.versions),
            "date": datetime.date.today().isoformat(),
            "requested": self.requested,
            "images_made": self.images_made,
            "seconds": round(self.seconds, 1),
            "notes": list(self.notes),
        }


def evaluate(
    checkpoint: Checkpoint,
    protocol: Protocol,
    workspace: Workspace,
    *,
    tuning: Tuning | None = None,
    samples: int | None = None,
    max_images: int | None = None,
    load: Load | None = None,
    extras: Extras = PLAIN,
) -> Evaluation:
    """Score a checkpoint under a protocol, making the images that the store does not have.

    `samples` and the dtype of `workspace` depart from the protocol: the result is then not `complete`, and
    comparable with no claim. `load` makes the pipeline (default: `load_pipeline`); it is not called, and no
    network is loaded, if all evidence is there. Scores depend on `tuning` by rounding alone. Where more than
    `max_images` are to be drawn, none is. `extras` says what else is wanted of the images. A metric whose
    reference statistics, extractor or reference pictures are not here, or whose reference is damaged, stands
    in `lacking` with the reason.

    Raises Unavailable for data or weights that are not on this machine and for more than `max_images`,
    DataError and CheckpointError for what is damaged, EvidenceError for a store that cannot be used.
    """
    started = time.monotonic()
    measured = _measured(protocol, samples, workspace.dtype)
    # Whatever can fail without an image fails before the first one.
    references = References.of(measured, workspace.data_root)
    limits: dict[str, Any] = {"tuning": tuning, "max_images": max_images}
    home = replace(workspace, store=extras.original_store or workspace.store)
    known = partial(known_pairs, workspace, checkpoint, measured)
    told: dict[str, Any] = {"known": known, "instead": extras.instead}
    draw = partial(draw_reference, extras.original or no_reference, measured, home, **told, **limits)
    make = partial(make_evidence, checkpoint, measured, workspace, load=load, **limits)
    made, reference, references = _make(make, draw, references, extras)
    references = references.without(made.lacking)
    rows = _CountedRows(made.evidence.rows(measured.n))
    writers = made.evidence.writers(measured.n)
    groups = groups_of(made.prompts[: measured.n])
    estimates, counts = references.estimate(measured, rows, groups), rows.counts
    return Evaluation(
        estimates=estimates,
        lacking=references.lacking,
        protocol=measured,
        requested=protocol.n,
        complete=measured.fingerprint == protocol.fingerprint,
        checkpoint_fingerprint=checkpoint.fingerprint,
        **_origin(made.drawn, writers),
        seconds=time.monotonic() - started,
        images_made=made.images_made,
        notes=(*_notes(measured, made, writers, counts), *references.unverified(), *checkpoint.choices),
        torch_device=workspace.device,
        groups=groups,
        foretells=measured.n == protocol.n
        or _repeats(load_prompts(protocol, workspace.data_root)) < _REPEATED * _repeats(made.prompts),
        blacked_out=counts["blacked_out"],
        truncated=counts["truncated"],
        prompts=made.prompts[: measured.n],
        reference=reference,
        setups=frozenset() if reference is None else setups_of_pairs(made.evidence, measured),
    )


def _make(
    make: Callable[..., CompleteEvidence],
    draw: Callable[[], Reference],
    references: References,
    extras: Extras,
) -> tuple[CompleteEvidence, Reference | None, References]:
    """Return evidence, what its pairs are compared with, and the metrics that are left.

    Without a sound reference the metrics of pairs are left out, and no other. Damaged pictures of it are
    found by who reads them, and set aside: those of each shard are drawn again, once.
    """
    lacking: SdbenchError | None = None
    lost, pairs = set[str](), pairs_of(references.protocol)
    while pairs:
        try:
            try:
                reference = draw()
            except (Unavailable, CheckpointError) as error:
                lacking = error
                break
            made = make(extras=replace(extras, reference=reference.evidence))
            said = setups_of_references(made.evidence, references.protocol)
            return made, replace(reference, setups=said or reference.setups), references
        except PictureLoss as error:
            lacking = error
            if str(error) in lost:
                break
            lost.add(str(error))
    if lacking is not None:
        references = references.without(dict.fromkeys(pairs, lacking))
    return make(extras=extras), None, references


def _origin(drawn: Protocol, writers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return of which draw images are, and where they were made, in words."""
    device = _together(str(writer.get("device")) for writer in writers)
    draw = drawn.draw_fingerprint
    return {"device": device, "versions": _versions_of(writers), "draw_fingerprint": draw}


class _CountedRows:
    """Rows whose flags are counted as they are read: a store elsewhere sends every shard anew."""

    def __init__(self, rows: Iterable[Rows]) -> None:
        self._rows = rows
        self.counts: Mapping[str, int] = {}
        """Images of each flag, once all rows were read."""

    def __iter__(self) -> Iterator[Rows]:
        counts = {"blacked_out": 0, "truncated": 0}
        for shard in self._rows:
            for name in counts:
                counts[name] += int(shard[name].sum())
            yield shard
        self.counts = counts


def _repeats(prompts: Sequence[str]) -> float:
    return len(prompts) / len(set(prompts))


def _measured(protocol: Protocol, samples: int | None, dtype: str | None) -> Protocol:
    """Return what is measured where only some images, or another precision, are asked for."""
    measured = protocol if samples is None else protocol.with_samples(min(samples, protocol.n))
    return measured if dtype is None else measured.with_dtype(dtype)


def _notes(
    measured: Protocol,
    found: CompleteEvidence,
    writers: list[dict[str, Any]],
    counts: Mapping[str, int],
) -> list[str]:
    notes, here = [], found.evidence.manifest
    if found.drawn.draw_fingerprint != measured.draw_fingerprint:
        notes.append("another draw: the sequential generator is on the cpu and not on cuda")
    # Another metric, or an older key of the same draw, makes another writer and no other images.
    setups = {json.dumps([writer.get(key) for key in _SETUP], default=str) for writer in writers}
    if len(setups) > 1:
        notes.append(f"the images were made by {len(setups)} different set-ups")
    for key in ("device", "versions"):
        if any(writer.get(key) != here[key] for writer in writers):
            notes.append(f"images were made with other {key} than here")
    if counts["blacked_out"]:
        notes.append(f"{counts['blacked_out']} images were blacked out by a safety checker")
    if counts["truncated"]:
        notes.append(CUT.format(counts["truncated"]))
    return notes


def _versions_of(writers: list[dict[str, Any]]) -> dict[str, str]:
    """Return the version of each library; of one that changed on the way, all of them."""
    found = [each if isinstance(each := writer.get("versions"), dict) else {} for writer in writers]
    names = dict.fromkeys(name for each in found for name in each)
    return {name: _together(str(each[name]) for each in found if name in each) for name in names}


def _together(texts: Any) -> str:
    return ", ".join(dict.fromkeys(texts))
