"""Make the evidence of a checkpoint under a protocol: what the store lacks, and nothing that it has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sdbench.base.environment import device_name, versions
from pytest_sdbench.base.errors import EvidenceError, Unavailable
from pytest_sdbench.base.paths import shown, told
from pytest_sdbench.base.progress import Progress
from pytest_sdbench.base.text import duration
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.engine import Setup, make
from pytest_sdbench.evaluation.measuring import measure_kept
from pytest_sdbench.evaluation.tuning import Tuning, default_batch_size
from pytest_sdbench.features.extractors import (
    column_keys,
    describe,
    extractor_of,
    identity,
    open_extractors,
    outputs_of,
)
from pytest_sdbench.metrics.definition import column
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.protocols.prompts import load_prompts
from pytest_sdbench.protocols.protocol import DRAWN, Protocol
from pytest_sdbench.protocols.sections import SequentialSeeds
from pytest_sdbench.store.gap import Gap
from pytest_sdbench.store.shards import Evidence, Store

if TYPE_CHECKING:
    from pytest_sdbench.models.checkpoint import Checkpoint

Load = Callable[[str], Any]
"""Makes the pipeline under test, given the name of a dtype."""


_KEPT = 64
"""Images of a draw whose pictures are kept where nobody says how many."""


@dataclass(frozen=True)
class Extras:
    """What a run wants of a draw beside, or instead of, what its protocol's metrics read."""

    columns: Mapping[str, str] | None = None
    """The key of each wanted column by its name in rows; None: those that the metrics read."""
    keep: int = 0
    """The pictures of so many images, from the first one on and in whole shards, are needed, whatever the
    workspace says."""
    later: int = 0
    """Of so many images others of this run will need the pictures: they are kept of what is drawn anyway,
    where the workspace leaves that open."""
    reference: Evidence | None = None
    """Whose kept pictures paired extractors compare with."""
    original: Callable[[], Checkpoint] | None = None
    """Finds the checkpoint that an evaluation draws those pictures with, where a metric needs them."""
    instead: str = ""
    """What else can be done where that checkpoint has another scheduler than the protocol."""
    original_store: Path | str | None = None
    """Where they are kept; None: beside the evaluation's own. Where a pipeline of one's own draws, the two
    may have one key."""


PLAIN = Extras()


class NothingToMeasure(Unavailable):
    """No metric of a protocol can be had on this machine: the text is the reason of the first."""

    def __init__(self, reasons: Mapping[str, Unavailable]) -> None:
        first = next(iter(reasons.values()))
        super().__init__(
            first.message, file=first.file, key=first.key, found=first.found, remedy=first.remedy
        )
        self.reasons = reasons
        """By metric."""

    def __reduce__(self) -> tuple[object, ...]:
        return NothingToMeasure, (self.reasons,)


@dataclass(frozen=True)
class CompleteEvidence:
    """The whole evidence of a checkpoint under a protocol."""

    evidence: Evidence
    prompts: tuple[str, ...]
    drawn: Protocol
    """The protocol as this device could draw it."""
    images_made: int
    """Drawn by this call; the others were there, or others made them meanwhile."""
    lacking: Mapping[str, Unavailable]
    """By metric: why what it reads is neither known nor to be had here."""


def make_evidence(
    checkpoint: Checkpoint,
    protocol: Protocol,
    workspace: Workspace,
    *,
    tuning: Tuning | None = None,
    max_images: int | None = None,
    load: Load | None = None,
    start_at: float = 0.0,
    extras: Extras = PLAIN,
) -> CompleteEvidence:
    """Make the images of a protocol that the store lacks, and what its extractors say of them.

    What is known is not made again: of each image those columns are added that lack. They are computed from
    its picture where that is kept, else the image is drawn again. A column whose extractor is not on this
    machine is left out, with the reason in `lacking`, unless no metric is left then.

    Any number of processes and hosts may do so at once in one store: each makes the shards that no other is
    making, from the fraction `start_at` of them on. Arguments and errors are those of `evaluate`; what the
    store holds is counted at the end, so that whoever empties it meanwhile is noticed.
    """
    from pytest_sdbench.models.pipeline import load_pipeline

    prompts, device = load_prompts(protocol, workspace.data_root), workspace.device
    asked = protocol if workspace.dtype is None else protocol.with_dtype(workspace.dtype)
    tuning, made = tuning or Tuning(), 0
    open_one = partial(open_evidence, workspace, checkpoint, batch_size=tuning.batch_size, extras=extras)
    asked = on_this_device(asked, device)
    drawn, evidence, gaps, absent = _open_what_can_be_had(asked, workspace, open_one)
    _check_number(gaps, max_images, protocol, evidence)
    if gaps:
        evidence.prepare()
        lacking = frozenset[str]().union(*(gap.columns for gap in gaps))
        extractors = open_extractors(
            drawn,
            columns=lacking,
            data_root=workspace.data_root,
            device=device,
            download=workspace.download,
        )
        title, missing = f"{checkpoint.spec}: {protocol.name}", _images_of(gaps)
        with Progress(missing, "images", title, shown=workspace.progress) as shower:
            work = evidence.work(protocol.n, start_at=start_at, only=lambda gap: not gap.draws)
            with closing(work):
                reference, count = extras.reference, shower.update
                measure_kept(evidence, drawn, work, extractors, reference=reference, count=count)
            _check_number(left := evidence.gaps(protocol.n), max_images, protocol, evidence)
            if any(gap.draws for gap in left):
                dtype = drawn.sampling.dtype
                pipeline = load(dtype) if load else load_pipeline(checkpoint, device=device, dtype=dtype)
                setup = Setup(pipeline, extractors, device, tuning, extras.reference)
                work = evidence.work(protocol.n, start_at=start_at, only=lambda gap: gap.draws)
                with closing(work):
                    made = make(evidence, drawn, prompts, work, setup, n=protocol.n, count=shower.update)
        if lost := _images_of(evidence.gaps(protocol.n)):
            there = f"{protocol.n - lost:,} of {protocol.n:,} images are in the store"
            what, remedy = f"{there}: the others were removed meanwhile", "Run again: they are made anew"
            raise EvidenceError(what, file=evidence.folder, remedy=remedy)
    return CompleteEvidence(evidence, prompts, drawn, made, absent)


def _open_what_can_be_had(
    protocol: Protocol, workspace: Workspace, open_one: Callable[[Protocol], Evidence]
) -> tuple[Protocol, Evidence, list[Gap], Mapping[str, Unavailable]]:
    """Return a protocol without the metrics that nothing here can give, its evidence and gaps, and why.

    What the store knows already needs no extractor, but for one whose file alone tells which weights it has.
    Raises Unavailable where no metric is left.
    """
    reasons: dict[str, Unavailable] = {}

    def leave_out(extractors: Iterable[str], ask: Callable[[str], object]) -> Protocol:
        for name in extractors:
            try:
                ask(name)
            except Unavailable as reason:
                reasons.update(
                    {metric: reason for metric, spec in protocol.metrics.items() if spec.extractor == name}
                )
        if len(reasons) == len(protocol.metrics):
            raise NothingToMeasure(reasons)
        return protocol.without(reasons)

    left = leave_out(protocol.extractors, partial(identity, workspace=workspace))
    evidence = open_one(left)
    gaps = evidence.gaps(protocol.n)
    lacking = {name for gap in gaps for name in gap.columns}
    needed = [
        name
        for name, outputs in outputs_of(left).items()
        if any(column(name, output) in lacking for output in outputs)
        and not (workspace.download and extractor_of(name).download is not None)
    ]
    if (fewer := leave_out(needed, lambda name: describe(name, workspace.data_root))).metrics != left.metrics:
        evidence = open_one(fewer)
        gaps = evidence.gaps(protocol.n)
    return fewer, evidence, gaps, reasons


def _images_of(gaps: Iterable[Gap]) -> int:
    return sum(len(gap.images) for gap in gaps)


def _check_number(gaps: Sequence[Gap], most: int | None, protocol: Protocol, evidence: Evidence) -> None:
    """Raise Unavailable where more images are to be drawn than this run may make."""
    missing = _images_of(gap for gap in gaps if gap.draws)
    if most is not None and missing > most:
        raise _too_many(missing, most, protocol, evidence.pace())


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


def open_evidence(
    workspace: Workspace,
    checkpoint: Checkpoint,
    protocol: Protocol,
    *,
    batch_size: int | None = None,
    extras: Extras = PLAIN,
) -> Evidence:
    """Return what the store holds of a checkpoint under a protocol: features and scores of images.

    Raises Unavailable where the weights of an extractor are not on this machine: they are in the keys of its
    columns.
    """
    data = workspace.data_root
    manifest = {
        # Of a folder elsewhere the name alone: evidence is passed on, and where somebody keeps files is not.
        "checkpoint_spec": re.sub(r"(?<!\S)/\S*/(?=\S)", "", told(checkpoint.spec)),
        "protocol": protocol.model_dump(mode="json", include=DRAWN),
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
    against = None if extras.reference is None else str(extras.reference.manifest["checkpoint"])
    here = replace(workspace, download=False)
    columns = column_keys(protocol, against, here) if extras.columns is None else extras.columns
    keep, insists = kept_images(protocol, workspace.keep_images, extras.keep, extras.later)
    key = checkpoint.fingerprint, protocol.draw_fingerprint
    return Store(workspace.store).open(*key, manifest, columns, keep=keep, insists=insists)


def kept_images(protocol: Protocol, asked: int | str, needed: int = 0, later: int = 0) -> tuple[int, bool]:
    """Return of how many images pictures are kept, and whether those that lack are drawn for that alone.

    `asked` is what a workspace says; `needed` and `later` are the `keep` and `later` of extras.
    """
    if needed or asked != "auto":
        number = asked if isinstance(asked, int) else protocol.n if asked == "all" else 0
        return max(needed, number), True
    return max(_KEPT, later, *compared_pictures([protocol]).values()), False


def compared_pictures(protocols: Iterable[Protocol]) -> dict[str, int]:
    """Return, by draw, of how many images the metrics of pairs of any protocol compare the pictures."""
    found: dict[str, int] = {}
    for protocol in protocols:
        if any(METRICS[metric].reads == "pair" for metric in protocol.metrics):
            draw = protocol.draw_fingerprint
            found[draw] = max(protocol.n, found.get(draw, 0))
    return found


def on_this_device(protocol: Protocol, device: str) -> Protocol:
    """Return the protocol as this device can draw it: a CUDA generator needs CUDA."""
    seeds = protocol.seeds
    if isinstance(seeds, SequentialSeeds) and seeds.device == "cuda" and not device.startswith("cuda"):
        return protocol.with_seeds_on("cpu")
    return protocol
