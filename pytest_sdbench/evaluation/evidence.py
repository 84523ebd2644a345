"""Make the evidence of a checkpoint under a protocol: what the store lacks, and nothing that it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from pytest_sdbench.base.errors import EvidenceError, SdbenchError, Unavailable
from pytest_sdbench.base.progress import Progress
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.executors import local, static
from pytest_sdbench.evaluation.job import (
    PLAIN,
    Extras,
    Job,
    Load,
    check_number,
    on_this_device,
    open_evidence,
)
from pytest_sdbench.evaluation.tuning import Tuning
from pytest_sdbench.features.extractors import describe, extractor_of, identity, outputs_of
from pytest_sdbench.metrics.definition import column
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.protocols.prompts import load_prompts
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.store.gap import Gap
from pytest_sdbench.store.shard_folder import in_grid
from pytest_sdbench.store.shards import Evidence

if TYPE_CHECKING:
    from pytest_sdbench.models.checkpoint import Checkpoint


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
    """The protocol as the images were drawn; see `as_drawn`."""
    images_made: int
    """Drawn by this call; the others were there, or others made them meanwhile."""
    lacking: Mapping[str, Unavailable]
    """By metric: why what it reads is neither known nor to be had here."""


@dataclass(frozen=True)
class Request:
    """Evidence of a checkpoint under a protocol that is asked for, and what it takes to complete it."""

    job: Job
    evidence: Evidence
    prompts: tuple[str, ...]
    lacking: Mapping[str, Unavailable]
    """By metric: why what it reads is neither known nor to be had here."""


def request(
    checkpoint: Checkpoint,
    protocol: Protocol,
    workspace: Workspace,
    *,
    tuning: Tuning | None = None,
    max_images: int | None = None,
    load: Load | None = None,
    extras: Extras = PLAIN,
) -> Request:
    """Find out what the store lacks of a checkpoint under a protocol; for the rest see `make_evidence`."""
    prompts = load_prompts(protocol, workspace.data_root)
    asked = protocol if workspace.dtype is None else protocol.with_dtype(workspace.dtype)
    asked = as_drawn(checkpoint, asked, workspace, extras)
    tuning = tuning or Tuning()
    open_one = partial(open_evidence, workspace, checkpoint, batch_size=tuning.batch_size, extras=extras)
    drawn, evidence, gaps, absent = _open_what_can_be_had(asked, workspace, open_one)
    check_number(gaps, max_images, protocol, evidence)
    # Who finds the original, and how, is known here alone.
    wanted = replace(extras, original=None)
    job = Job(checkpoint, drawn, workspace, tuple(gaps), tuning, wanted, max_images, load)
    return Request(job, evidence, prompts, absent)


def as_drawn(
    checkpoint: Checkpoint, protocol: Protocol, workspace: Workspace, extras: Extras = PLAIN
) -> Protocol:
    """Return a protocol as the store has it whole, else as this device can draw it.

    What was drawn elsewhere by CUDA's generator needs none here. Metrics of pairs are left to one device: the
    pictures of both have to come from one generator, and those of one of them may lack.
    """
    here = on_this_device(protocol, workspace.device)
    if here is protocol or any(METRICS[metric].reads == "pair" for metric in protocol.metrics):
        return here
    open_one = partial(open_evidence, workspace, checkpoint, extras=extras)
    try:
        _, _, gaps, _ = _open_what_can_be_had(protocol, workspace, open_one)
    except Unavailable:
        return here
    return here if any(gap.draws for gap in gaps) else protocol


def fulfil(requests: Sequence[Request]) -> Iterator[tuple[int, CompleteEvidence | SdbenchError]]:
    """Make what some requests lack; yield the number of each, and its evidence or why that is not whole.

    The workers of a cluster make all of them at once, and they come as they are done; else one comes after
    the other. What a pipeline of the user's own draws is made here.
    """
    apart = [
        number
        for number, each in enumerate(requests)
        if each.job.workspace.pool is not None and each.job.gaps and each.job.load is None
    ]
    for number, each in enumerate(requests):
        if number not in apart:
            yield number, _outcome(each)
    if apart:
        from pytest_sdbench.evaluation.executors import ray

        for place, made in ray.make([requests[number].job for number in apart]):
            yield apart[place], _outcome(requests[apart[place]], made)


def _outcome(request: Request, made: int | SdbenchError | None = None) -> CompleteEvidence | SdbenchError:
    """Return the evidence of a request, or why it is not whole; it is made here where nobody else has."""
    try:
        if isinstance(made, SdbenchError):
            return made
        if made is None:
            made = _make_here(request) if request.job.gaps else 0
        return _complete(request, made)
    except SdbenchError as error:
        return error


def make_evidence(
    checkpoint: Checkpoint,
    protocol: Protocol,
    workspace: Workspace,
    *,
    tuning: Tuning | None = None,
    max_images: int | None = None,
    load: Load | None = None,
    extras: Extras = PLAIN,
) -> CompleteEvidence:
    """Make the images of a protocol that the store lacks, and what its extractors say of them.

    What is known is not made again: of each image those columns are added that lack. They are computed from
    its picture where that is kept, else the image is drawn again. A column whose extractor is not on this
    machine is left out, with the reason in `lacking`, unless no metric is left then.

    Any number of processes and hosts may do so at once in one store; `workspace` says which part is this
    one's, or which cluster does the work. Arguments and errors are those of `evaluate`; what the store holds
    is counted at the end, so that whoever empties it meanwhile is noticed.
    """
    asked = request(
        checkpoint,
        protocol,
        workspace,
        tuning=tuning,
        max_images=max_images,
        load=load,
        extras=extras,
    )
    ((_, outcome),) = fulfil([asked])
    if isinstance(outcome, SdbenchError):
        raise outcome
    return outcome


def _make_here(request: Request) -> int:
    """Make what a request lacks in this process, or on this machine; return how many images were drawn."""
    job, evidence = request.job, request.evidence
    evidence.prepare()
    with Progress(job.images, "images", job.title, shown=job.workspace.progress) as shower:
        if job.workspace.part.size > 1:
            work = static.make(job, evidence, count=shower.update, elsewhere=shower.update)
        else:
            work = local.make(job, evidence, count=shower.update)
    if work.images:
        evidence.keep_pace(work.seconds / work.images)
    return work.images


def _complete(request: Request, made: int) -> CompleteEvidence:
    """Return the evidence, which is whole by now; raises EvidenceError where it is not.

    A listing tells that. Who scores it reads and checks every row; who only makes it need not read what
    others have made.
    """
    protocol, evidence = request.job.protocol, request.evidence
    left = evidence.left(list(in_grid(protocol.n))) if request.job.gaps else []
    if lost := sum(map(len, left)):
        there = f"{protocol.n - lost:,} of {protocol.n:,} images are in the store"
        what, remedy = f"{there}: the others were removed meanwhile", "Run again: they are made anew"
        raise EvidenceError(what, file=evidence.folder, remedy=remedy)
    return CompleteEvidence(evidence, request.prompts, protocol, made, request.lacking)


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
