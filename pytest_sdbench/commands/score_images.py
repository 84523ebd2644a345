"""Estimate the scores of images that another tool made, as an evaluation estimates those of its own."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from pytest_sdbench.base.environment import true_float32
from pytest_sdbench.base.errors import DataError, SdbenchError, Unavailable
from pytest_sdbench.base.progress import Progress
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.cards.claims import Claim
from pytest_sdbench.commands.score_matching import Matching, match
from pytest_sdbench.commands.shared import find_card_of, first_images, protocol_of
from pytest_sdbench.evaluation.evaluate import References
from pytest_sdbench.features.definition import Rows
from pytest_sdbench.features.extractors import Extractors, describe, extractor_of, open_extractors
from pytest_sdbench.features.images import ImageSet, decode, in_batches, open_images, size_of
from pytest_sdbench.features.pixels import lossy, remarks
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.metrics.standard_error import groups_of
from pytest_sdbench.protocols.image_steps import Images
from pytest_sdbench.protocols.prompts import load_prompts, prompt_files
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.protocols.sections import Resize
from pytest_sdbench.store.shard_format import SHARD

Stage = Literal["sampled", "final"]


@dataclass(frozen=True)
class Scores:
    """The scores of a set of images under a protocol."""

    origin: str
    """The names of the folders or archives."""
    protocol: Protocol
    """What was measured: the protocol that was asked for, but for the number of images."""
    requested: int
    """Images that the protocol asks for."""
    stage: Stage
    matched: str
    """How each image found its prompt."""
    estimates: Mapping[str, Estimate | Undefined]
    lacking: Mapping[str, SdbenchError]
    """By metric: why it could not be computed here."""
    card: str | None
    claims: tuple[Claim, ...]
    """Of the card, under this protocol."""
    notes: tuple[str, ...]

    def predicted(self, metric: str) -> float | None:
        """Return what so many images as the protocol asks for would come to; None where that is open."""
        found = self.estimates.get(metric)
        if self.protocol.n == self.requested or not isinstance(found, Estimate):
            return None
        return found.at(self.requested)


def score(
    sources: Sequence[str | Path],
    protocol_name: str | Path,
    workspace: Workspace,
    *,
    n: int | None = None,
    stage: Stage | None = None,
    match_by: str | None = None,
    card: str | None = None,
    background: str | None = None,
) -> Scores:
    """Score the images in folders, archives or shards under a protocol.

    `n` takes those of the first n prompts alone. `stage` says whether the images are as the sampler made them
    or have been through the protocol's image steps; without it their size tells. `match_by` is that of
    `matching.match`, `card` a name or a file whose claims are shown beside the scores, `background` a colour
    to lay transparent images over. Images of no known prompt have no score with their prompts.

    Raises DataError for images that are damaged, of another size, or of no prompt; else as `evaluate`.
    """
    shown = read_card(find_card_of(card)) if card is not None else None
    protocol = protocol_of(protocol_name, shown)
    if n is not None:
        first_images(protocol, n)
    # Whatever can fail without an image fails before the first one.
    references = References.of(protocol, workspace.data_root)
    images = open_images(sources)
    prompts, matching = _matched(images, protocol, workspace.data_root, n, match_by)
    measured = protocol.with_samples(len(matching.order))
    if measured.n < 2:
        raise DataError("scores need at least 2 images", file=images.pictures[0].where, found=measured.n)
    stage, size = _stage(protocol, images, stage)
    known = {**references.lacking, **_unpaired(protocol, matching)}
    wanted = _without(measured, lacking := {**known, **dict(_not_here(protocol, workspace, known))})
    extractors = open_extractors(
        wanted, data_root=workspace.data_root, device=workspace.device, download=workspace.download
    )
    steps, seen = protocol.image if stage == "sampled" else (), Counter[str]()
    decoded = decode(images, steps, order=matching.order, size=size, background=background, seen=seen)
    with tempfile.TemporaryDirectory(prefix="sdbench-", ignore_cleanup_errors=True) as folder:
        rows = _Columns(Path(folder), measured.n)
        title = f"{images.origin}: {measured.name}"
        with Progress(measured.n, "images", title, shown=workspace.progress) as shower:
            for count in _extract(in_batches(decoded), matching.order, prompts, extractors, rows):
                shower.update(count)
        groups = None if matching.doubt else groups_of(prompts[: measured.n])
        estimates = references.estimate(wanted, rows, groups)
    return Scores(
        origin=images.origin,
        protocol=measured,
        requested=protocol.n,
        stage=stage,
        matched=matching.how,
        estimates=estimates,
        lacking=lacking,
        card=shown.name if shown else None,
        claims=tuple(c for c in (shown.claims if shown else ()) if c.gate_protocol == protocol.name),
        notes=tuple(_notes(images, seen, measured, stage, references)),
    )


def _matched(
    images: ImageSet, protocol: Protocol, data_root: Path | None, n: int | None, by: str | None
) -> tuple[tuple[str, ...], Matching]:
    """Return the prompts that images may be of, and which image is of which."""
    # More images than prompts may be those of a longer protocol: then it can be said, and --images obeyed.
    whole = protocol.with_samples(max(protocol.n, min(len(images.pictures), protocol.prompts.rows)))
    prompts, files = load_prompts(whole, data_root), prompt_files(protocol, data_root)
    return prompts, match(images, prompts, files, n=n or protocol.n, all_of_them=n is not None, by=by)


def _unpaired(protocol: Protocol, matching: Matching) -> dict[str, SdbenchError]:
    """Return the metrics that images of no known prompt have no score of: those not of images alone."""
    of_images = ("features", "logits")
    metrics = [
        name
        for name in protocol.metrics
        if METRICS[name].output not in of_images and METRICS[name].reads != "imported"
    ]
    return dict.fromkeys(metrics, matching.doubt) if matching.doubt else {}


def _not_here(
    protocol: Protocol, workspace: Workspace, known: Collection[str]
) -> Iterator[tuple[str, SdbenchError]]:
    """Yield the metrics that images alone have no score of on this machine, and why; not the `known` ones."""
    for metric, spec in protocol.metrics.items():
        if metric in known:
            continue
        if METRICS[metric].reads == "pair":
            what = f"{METRICS[metric].label} compares pictures with those of a reference checkpoint"
            yield metric, Unavailable(what, remedy="Judge the checkpoint itself: pytest --sdbench")
        elif not (workspace.download and extractor_of(spec.extractor).download is not None):
            try:
                describe(spec.extractor, workspace.data_root)
            except Unavailable as reason:
                yield metric, reason


def _without(protocol: Protocol, lacking: Mapping[str, SdbenchError]) -> Protocol:
    """Return a protocol without some metrics; raise why the first is lacking where none is left."""
    if not (left := protocol.without(lacking)).metrics:
        raise next(iter(lacking.values()))
    return left


def _stage(protocol: Protocol, images: ImageSet, stage: Stage | None) -> tuple[Stage, int]:
    """Return the stage of the images and their size; raise DataError where that is open."""
    sampled = protocol.sampling.resolution
    resizes = [step.resize for step in protocol.image if isinstance(step, Resize)]
    final = resizes[-1] if resizes else sampled
    sizes: dict[Stage, int] = {"sampled": sampled, "final": final}
    first = images.pictures[0]
    width, height = size_of(first)
    if stage is None and not resizes:
        stage = "sampled"
    if stage is None and sampled != final:
        stage = next((name for name, size in sizes.items() if (width, height) == (size, size)), None)
    if stage is None and (width, height) == (sampled, sampled):
        message = f"the protocol's resize keeps {sampled}x{sampled}, so that size does not tell whether the "
        message += "images have been through it"
        raise DataError(message, file=first.where, remedy="Say so: --stage sampled or --stage final")
    if stage is None or (width, height) != (sizes[stage], sizes[stage]):
        wanted = [f"{sampled}x{sampled} as sampled"] if stage != "final" else []
        wanted += [f"{final}x{final} after its resize"] if resizes and stage != "sampled" else []
        message, found = f"{protocol.name} has images of {' or '.join(wanted)}", f"{width}x{height}"
        remedy = "Give images of that size: another resize than the protocol's moves scores"
        raise DataError(message, file=first.where, found=found, remedy=remedy)
    return stage, sizes[stage]


def _extract(
    batches: Iterable[tuple[Sequence[int], Images]],
    order: Sequence[int],
    prompts: Sequence[str],
    extractors: Extractors,
    rows: _Columns,
) -> Iterator[int]:
    """Keep the rows of the images in the order of their prompts; yield the number of images of each batch."""
    prompt_of = {number: index for index, number in enumerate(order)}
    with true_float32():
        for numbers, pixels in batches:
            indices = [prompt_of[number] for number in numbers]
            rows.put(indices, extractors.extract(pixels, [prompts[index] for index in indices]))
            yield len(indices)


@dataclass
class _Columns:
    """Rows of images on the disk, a file a column: written in any order, read in that of the images."""

    folder: Path
    n: int
    _files: dict[str, Rows] = field(default_factory=dict)

    def put(self, indices: Sequence[int], columns: Mapping[str, Rows]) -> None:
        """Keep the rows of the images with these indices."""
        for name, rows in columns.items():
            if name not in self._files:
                self._files[name] = self._room(rows.shape[1:])
            if len(rows) != len(indices):
                raise ValueError(f"{name}: {len(rows)} rows of {len(indices)} images")
            self._files[name][indices] = rows

    def _room(self, shape: tuple[int, ...]) -> Rows:
        path, empty = self.folder / f"{len(self._files)}.f32", bytes(4 * math.prod(shape))
        try:
            # Written out, where a hole would do: on a file system that writes in place, a disk that is too
            # small is an error here, and none later.
            with path.open("wb") as file:
                file.writelines(empty for _ in range(self.n))
            return np.memmap(path, np.float32, "r+", shape=(self.n, *shape))
        except OSError as problem:
            message, remedy = "the features of the images cannot be kept", "Make room, or set TMPDIR=FOLDER"
            raise DataError(message, file=self.folder, found=problem.strerror, remedy=remedy) from problem

    def __iter__(self) -> Iterator[dict[str, Rows]]:
        # As many rows at a time as a store has in a shard: equal rows then make equal bits of scores.
        for start in range(0, self.n, SHARD):
            yield {name: np.array(rows[start : start + SHARD]) for name, rows in self._files.items()}


def _notes(
    images: ImageSet, seen: Counter[str], protocol: Protocol, stage: Stage, references: References
) -> Iterator[str]:
    left = len(images.pictures) - protocol.n
    if left:
        yield f"{left:,} images of later prompts were left out"
    if (count := lossy(seen)) and stage == "sampled":
        again = "; they go through the protocol's codec once more" if protocol.image else ""
        yield f"{count:,} images are JPEG or WebP files, whose pixels may not be the sampler's{again}"
    yield from remarks(seen)
    yield from references.unverified()
    if remark := images.remark():
        yield remark
