"""Evaluate a checkpoint under a protocol: make the evidence that is missing, and estimate the scores.

This is the one place that joins checkpoint, protocol, sampler, extractors, store and metrics.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sdbench.base.environment import device_name, versions
from pytest_sdbench.base.errors import EvidenceError, Unavailable
from pytest_sdbench.base.paths import shown, told
from pytest_sdbench.base.progress import Progress
from pytest_sdbench.base.text import duration
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.engine import Setup, make
from pytest_sdbench.evaluation.estimate import estimate
from pytest_sdbench.evaluation.tuning import Tuning, default_batch_size
from pytest_sdbench.features.extractors import identity, open_extractors
from pytest_sdbench.features.references import load_references
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.moments import FeatureStatistics
from pytest_sdbench.metrics.standard_error import Groups, groups_of
from pytest_sdbench.protocols.metric_specs import ReferencedSpec
from pytest_sdbench.protocols.prompts import load_prompts
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.protocols.sections import SequentialSeeds
from pytest_sdbench.store.shard_format import Rows
from pytest_sdbench.store.shards import Evidence, Store

if TYPE_CHECKING:
    from pytest_sdbench.models.checkpoint import Checkpoint

CUT = "{} prompts were cut to the tokenizer's length"
"""What reports say of it."""
_REPEATED = 1.5
"""So many times more images a prompt in the whole than in a part: the part does not stand for it. Captions
that coincide now and then do not count; a list that is gone through several times does."""

Load = Callable[[str], Any]
"""Makes the pipeline under test, given the name of a dtype."""


@dataclass(frozen=True)
class References:
    """The reference statistics of a protocol, as far as they are on this machine."""

    protocol: Protocol
    statistics: Mapping[str, FeatureStatistics]
    """By metric."""
    lacking: Mapping[str, Unavailable]
    """By metric: why they are not here."""

    @classmethod
    def of(cls, protocol: Protocol, data_root: Path | None) -> References:
        """Load the references of a protocol; raises Unavailable where no metric can be computed here."""
        here, lacking = {}, {}
        for metric, found in load_references(protocol, data_root).items():
            if isinstance(found, Unavailable):
                lacking[metric] = found
            else:
                here[metric] = found
        if len(lacking) == len(protocol.metrics):
            raise next(iter(lacking.values()))
        return cls(protocol, here, lacking)

    def estimate(
        self, measured: Protocol, rows: Iterable[Rows], groups: Groups | None
    ) -> dict[str, Estimate | Undefined]:
        """Return the metrics of rows, without those whose references are not here."""
        found = estimate(measured, rows, self.statistics, groups)
        return {metric: each for metric, each in found.items() if metric not in self.lacking}

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
    """By metric; without those whose reference statistics are not on this machine."""
    lacking: Mapping[str, Unavailable]
    """By metric: why it could not be computed here."""
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
    groups: Groups | None = None
    """Which images share a prompt; None where no two do."""
    foretells: bool = True
    """Whether prompts repeat as often here as among all images of the protocol: else these images say too
    little of what those scatter by."""

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
) -> Evaluation:
    """Score a checkpoint under a protocol, making the images that the store does not have.

    `samples` and the dtype of `workspace` depart from the protocol: the result is then not `complete`, and
    comparable with no claim. `load` makes the pipeline (default: `load_pipeline`); it is not
    called, and no network is loaded, if all evidence is there. Scores depend on `tuning` by rounding alone.
    Where more than `max_images` are missing, none is made. A metric whose reference statistics are not here
    is left out with the reason in `lacking`.

    Raises Unavailable for data or weights that are not on this machine and for more than `max_images`,
    DataError and CheckpointError for what is damaged, EvidenceError for a store that cannot be used.
    """
    started = time.monotonic()
    measured = _measured(protocol, samples, workspace.dtype)
    # Whatever can fail without an image fails before the first one.
    references = References.of(measured, workspace.data_root)
    made = make_evidence(checkpoint, measured, workspace, tuning=tuning, max_images=max_images, load=load)
    rows = made.evidence.rows(measured.n)
    counts = {name: sum(int(shard[name].sum()) for shard in rows) for name in ("blacked_out", "truncated")}
    writers = made.evidence.writers(measured.n)
    groups = groups_of(made.prompts[: measured.n])
    return Evaluation(
        estimates=references.estimate(measured, rows, groups),
        lacking=references.lacking,
        protocol=measured,
        requested=protocol.n,
        complete=measured.fingerprint == protocol.fingerprint,
        checkpoint_fingerprint=checkpoint.fingerprint,
        device=_together(str(writer.get("device")) for writer in writers),
        versions=_versions_of(writers),
        seconds=time.monotonic() - started,
        images_made=made.images_made,
        notes=(
            *_notes(measured, made, writers, counts),
            *references.unverified(),
            *checkpoint.choices,
        ),
        torch_device=workspace.device,
        groups=groups,
        foretells=measured.n == protocol.n
        or _repeats(load_prompts(protocol, workspace.data_root)) < _REPEATED * _repeats(made.prompts),
        blacked_out=counts["blacked_out"],
        truncated=counts["truncated"],
    )


def _repeats(prompts: Sequence[str]) -> float:
    return len(prompts) / len(set(prompts))


@dataclass(frozen=True)
class CompleteEvidence:
    """The whole evidence of a checkpoint under a protocol."""

    evidence: Evidence
    prompts: tuple[str, ...]
    drawn: Protocol
    """The protocol as this device could draw it."""
    images_made: int
    """By this call; the others were there, or others made them meanwhile."""


def make_evidence(
    checkpoint: Checkpoint,
    protocol: Protocol,
    workspace: Workspace,
    *,
    tuning: Tuning | None = None,
    max_images: int | None = None,
    load: Load | None = None,
    start_at: float = 0.0,
) -> CompleteEvidence:
    """Make the images of a protocol that the store lacks, and what its extractors say of them.

    Any number of processes and hosts may do so at once in one store: each makes the shards that no other is
    making, from the fraction `start_at` of them on. Arguments and errors are those of `evaluate`; what the
    store holds is counted at the end, so that whoever empties it meanwhile is noticed.
    """
    from pytest_sdbench.models.pipeline import load_pipeline

    prompts, device = load_prompts(protocol, workspace.data_root), workspace.device
    drawn = on_this_device(_measured(protocol, None, workspace.dtype), device)
    tuning = tuning or Tuning()
    evidence = open_evidence(workspace, checkpoint, drawn, batch_size=tuning.batch_size)
    missing = sum(map(len, evidence.missing(protocol.n)))
    made = 0
    if missing:
        if max_images is not None and missing > max_images:
            raise _too_many(missing, max_images, protocol, evidence.pace())
        evidence.prepare()
        extractors = open_extractors(
            drawn, data_root=workspace.data_root, device=device, download=workspace.download
        )
        dtype = drawn.sampling.dtype
        pipeline = load(dtype) if load else load_pipeline(checkpoint, device=device, dtype=dtype)
        setup = Setup(pipeline, extractors, device, tuning)
        title = f"{checkpoint.spec}: {protocol.name}"
        with (
            closing(evidence.work(protocol.n, start_at=start_at)) as work,
            Progress(missing, "images", title, shown=workspace.progress) as shower,
        ):
            made = make(evidence, drawn, prompts, work, setup, n=protocol.n, count=shower.update)
        if left := sum(map(len, evidence.missing(protocol.n))):
            there = f"{protocol.n - left:,} of {protocol.n:,} images are in the store"
            what, remedy = f"{there}: the others were removed meanwhile", "Run again: they are made anew"
            raise EvidenceError(what, file=evidence.folder, remedy=remedy)
    return CompleteEvidence(evidence, prompts, drawn, made)


def _measured(protocol: Protocol, samples: int | None, dtype: str | None) -> Protocol:
    """Return what is measured where only some images, or another precision, are asked for."""
    measured = protocol if samples is None else protocol.with_samples(min(samples, protocol.n))
    return measured if dtype is None else measured.with_dtype(dtype)


def _too_many(missing: int, most: int, protocol: Protocol, pace: float | None) -> Unavailable:
    """Return the reason for a score that costs more images than this run may make."""
    cost = f"{protocol.sampling.steps} steps each"
    if pace is not None:
        cost += f", about {duration(missing * pace)} on this machine"
    return Unavailable(
        f"{missing:,} of {protocol.n:,} images are not in the store ({cost}), and this run makes at most "
        f"{most:,} of a checkpoint and protocol",
        key=protocol.name,
        remedy="To make them: --sdbench-max-images all",
    )


def evidence_key(protocol: Protocol) -> str:
    """Return what keys the evidence of a draw: its fingerprint, with the weights of the extractors.

    A protocol names extractors; where a name does not stand for fixed weights, their checksum counts too.
    """
    identities = [identity(name) for name in protocol.extractors]
    return hashlib.sha256("\n".join([protocol.draw_fingerprint, *identities]).encode()).hexdigest()[:16]


def open_evidence(
    workspace: Workspace, checkpoint: Checkpoint, protocol: Protocol, *, batch_size: int | None = None
) -> Evidence:
    """Return what the store holds of a checkpoint under a protocol: features and scores of images."""
    data = workspace.data_root
    manifest = {
        # Of a folder elsewhere the name alone: evidence is passed on, and where somebody keeps files is not.
        "checkpoint_spec": re.sub(r"(?<!\S)/\S*/(?=\S)", "", told(checkpoint.spec)),
        "protocol": protocol.model_dump(
            mode="json", include={"prompts": True, "seeds": True, "sampling": True, "image": True}
        ),
        "extractors": [identity(name) for name in protocol.extractors],
        "device": device_name(workspace.device),
        "versions": versions(),
        "batch_size": batch_size or default_batch_size(protocol, workspace.device),
        # What the run was told, and not the command: there may stand in it what is nobody's business.
        "options": {
            "device": workspace.device,
            "dtype": workspace.dtype,
            "data": None if data is None else shown(data),
        },
    }
    return Store(workspace.store).open(checkpoint.fingerprint, evidence_key(protocol), manifest)


def on_this_device(protocol: Protocol, device: str) -> Protocol:
    """Return the protocol as this device can draw it: a CUDA generator needs CUDA."""
    seeds = protocol.seeds
    if isinstance(seeds, SequentialSeeds) and seeds.device == "cuda" and not device.startswith("cuda"):
        return protocol.with_seeds_on("cpu")
    return protocol


def _notes(
    measured: Protocol,
    found: CompleteEvidence,
    writers: list[dict[str, Any]],
    counts: Mapping[str, int],
) -> list[str]:
    notes, here = [], found.evidence.manifest
    if found.drawn.draw_fingerprint != measured.draw_fingerprint:
        notes.append("another draw: the sequential generator is on the cpu and not on cuda")
    if len(writers) > 1:
        notes.append(f"the images were made by {len(writers)} different set-ups")
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
