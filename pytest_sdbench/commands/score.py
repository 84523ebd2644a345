"""Score images that another tool made, under a protocol: its image steps, extractors, metrics and references.

How the images were sampled cannot be seen in them, so that there are scores here and never a verdict.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from tabulate import tabulate

from pytest_sdbench.base.environment import true_float32, versions
from pytest_sdbench.base.errors import DataError, SdbenchError, Unavailable
from pytest_sdbench.base.progress import Progress
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.card import Card, find_card, is_card, read_card
from pytest_sdbench.cards.claims import Claim
from pytest_sdbench.commands.score_matching import Matching, match
from pytest_sdbench.commands.shared import share, write_text
from pytest_sdbench.evaluation.estimate import estimate
from pytest_sdbench.features.extractors import Extractors, Rows, identity, open_extractors
from pytest_sdbench.features.images import ImageSet, decode, in_batches, open_images, size_of
from pytest_sdbench.features.references import load_references
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.moments import FeatureStatistics
from pytest_sdbench.metrics.names import METRICS
from pytest_sdbench.metrics.standard_error import groups_of
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.prompts import load_prompts, prompt_files
from pytest_sdbench.protocols.protocol import Protocol, Resize
from pytest_sdbench.store.shard_format import SHARD


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    command.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="a folder or archive (.zip, .tar) of images, or shards (data-{000..012}.tar)",
    )
    command.add_argument("--protocol", required=True, metavar="NAME", help="a protocol's name or file")
    command.add_argument(
        "--images", type=int, dest="n", metavar="N", help="those of the first N prompts alone"
    )
    command.add_argument(
        "--stage",
        choices=("sampled", "final"),
        help="whether the images are as the sampler made them, or have been through the protocol's codec and "
        "resize already; default: told from their size",
    )
    command.add_argument(
        "--match",
        choices=("caption", "name", "index", "order"),
        help="how the prompt of an image is found: by the caption that comes with it, by its name in the "
        "file of prompts, by the number at the end of its name, or by the order of names; default: the first "
        "of these that the images have",
    )
    command.add_argument("--card", metavar="CARD", help="show what this card (name or file) claims beside it")
    share(command, "--data", "--device", "--download", "--json", device="cpu")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""

    found = score(
        options.images,
        options.protocol,
        Workspace(data_root=options.data, device=options.device, download=options.download),
        n=options.n,
        stage=options.stage,
        match_by=options.match,
        card=options.card,
    )
    print(score_table(found))
    if options.json is not None:
        write_text(json.dumps(figures(found), indent=2) + "\n", options.json)
    return 0


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
    lacking: Mapping[str, Unavailable]
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
) -> Scores:
    """Score the images in folders, archives or shards under a protocol.

    `n` takes those of the first n prompts alone. `stage` says whether the images are as the sampler made them
    or have been through the protocol's image steps; without it their size tells. `match_by` is that of
    `matching.match`, `card` a name or a file whose claims are shown beside the scores.

    Raises DataError for images that are damaged, of another size, or of no prompt; else as `evaluate`.
    """
    search = (Path.cwd(), Path.cwd() / "cards")
    shown = _card(card, search) if card is not None else None
    folders = (*search, shown.path.parent) if shown else search
    protocol = load_protocol(protocol_name, search=folders)
    if n is not None and not 2 <= n <= protocol.n:
        raise SdbenchError(
            f"{protocol.name} has {protocol.n:,} images",
            key="--images",
            found=n,
            remedy="Give at least 2 and at most so many",
        )
    # Whatever can fail without an image fails before the first one.
    found = load_references(protocol, workspace.data_root)
    references = {name: each for name, each in found.items() if not isinstance(each, Unavailable)}
    lacking = {name: each for name, each in found.items() if isinstance(each, Unavailable)}
    if len(lacking) == len(protocol.metrics):
        raise next(iter(lacking.values()))
    images = open_images(sources)
    # More images than prompts may be those of a longer protocol: then it can be said, and --images obeyed.
    whole = protocol.with_samples(max(protocol.n, min(len(images.pictures), protocol.prompts.rows)))
    prompts = load_prompts(whole, workspace.data_root)
    matching = match(
        images,
        prompts,
        prompt_files(protocol, workspace.data_root),
        n=n or protocol.n,
        all_of_them=n is not None,
        by=match_by,
    )
    measured = protocol.with_samples(len(matching.order))
    if measured.n < 2:
        raise DataError("scores need at least 2 images", file=images.pictures[0].where, found=measured.n)
    stage, size = _stage(protocol, images, stage)
    extractors = open_extractors(
        measured, data_root=workspace.data_root, device=workspace.device, download=workspace.download
    )
    groups = groups_of(prompts[: measured.n])
    with tempfile.TemporaryDirectory(prefix="sdbench-", ignore_cleanup_errors=True) as folder:
        rows = _measure(
            images,
            matching,
            measured,
            stage,
            size,
            prompts,
            extractors,
            Path(folder),
            shown=workspace.progress,
        )
        estimates = estimate(measured, rows, references, groups)
    return Scores(
        origin=images.origin,
        protocol=measured,
        requested=protocol.n,
        stage=stage,
        matched=matching.how,
        estimates={metric: each for metric, each in estimates.items() if metric not in lacking},
        lacking=lacking,
        card=shown.name if shown else None,
        claims=tuple(claim for claim in (shown.claims if shown else ()) if _is_of(claim, protocol)),
        notes=tuple(_notes(images, matching, measured, stage, references)),
    )


def score_table(found: Scores) -> str:
    """Return scores as a table and what is to be known about them, for a terminal."""
    fewer = found.protocol.n != found.requested
    heading = ["", "value", "N", "without bias"]
    heading += [f"predicted at {found.requested:,}"] if fewer else []
    heading += [f"{found.card} claims"] if found.claims else []
    rows, lines = [], []
    for metric in found.protocol.metrics:
        known, each = METRICS[metric], found.estimates.get(metric)
        if not isinstance(each, Estimate):
            reason = each.reason if each is not None else found.lacking[metric]
            lines.append(f"{known.label}: {reason}")
            continue
        digits = f".{known.recorded_decimals}f"
        error = "" if each.standard_error is None else f" ± {each.standard_error:{digits}}"
        row = [f"{known.label} {known.arrow}", f"{each.value:{digits}}{error}", f"{each.n:,}"]
        # A mean of images has no bias: its corrected value is the value.
        biased = each.corrected is not None and each.corrected != each.value
        row.append(f"{each.corrected:{digits}}" if biased else "")
        if fewer:
            predicted = found.predicted(metric)
            row.append("" if predicted is None else f"{predicted:{digits}}")
        if found.claims:
            row.append(", ".join(_claimed(claim) for claim in found.claims if claim.metric == metric))
        rows.append(row)
    table = tabulate(
        rows,
        heading,
        tablefmt="simple",
        disable_numparse=True,
        colalign=("left", *["right"] * (len(heading) - 1)),
    )
    done = {
        "sampled": "as the sampler made them; the protocol's image steps were applied here",
        "final": "through codec and resize already; no step was applied here",
    }
    if not found.protocol.image:
        done = dict.fromkeys(done, "as the sampler made them; the protocol has no image steps")
    about = [
        f"{found.protocol.name}: {found.protocol.n:,} images of {found.origin}; ± is one standard error",
        f"taken as: {done[found.stage]}",
        f"matched with their prompts {found.matched}",
    ]
    if fewer:
        about.append(
            f"the protocol asks for {found.requested:,} images: what compares with its figures is the "
            "prediction for so many, not the value"
        )
    if found.card is not None:
        about.append(
            "no verdict: that the images were sampled as the protocol says is taken on trust"
            if found.claims
            else f"{found.card} claims nothing under {found.protocol.name}"
        )
    return "\n".join([table, "", *about, *lines, *found.notes])


def figures(found: Scores) -> dict[str, Any]:
    """Return scores as plain data."""
    metrics: dict[str, Any] = {}
    for metric in found.protocol.metrics:
        each = found.estimates.get(metric)
        if isinstance(each, Estimate):
            metrics[metric] = {
                "value": each.value,
                "standard_error": each.standard_error,
                "n": each.n,
                "corrected": each.corrected,
            }
            if found.protocol.n != found.requested:
                metrics[metric]["predicted"] = found.predicted(metric)
        else:
            metrics[metric] = {"reason": each.reason if each is not None else str(found.lacking[metric])}
    return {
        "images": found.origin,
        "protocol": found.protocol.name,
        "protocol_fingerprint": found.protocol.fingerprint,
        "n": found.protocol.n,
        "requested": found.requested,
        "stage": found.stage,
        "matched": found.matched,
        "metrics": metrics,
        "extractors": [identity(name) for name in found.protocol.extractors],
        "versions": versions(),
        "card": found.card,
        "claims": [
            {
                "metric": claim.metric,
                "value": claim.value,
                "kind": claim.kind,
                "assumed": claim.assumed is not None,
            }
            for claim in found.claims
        ],
        "notes": list(found.notes),
    }


def _is_of(claim: Claim, protocol: Protocol) -> bool:
    return claim.gate_protocol == protocol.name


def _claimed(claim: Claim) -> str:
    """Return a claim with what a reader must know of it."""
    if claim.kind == "recorded":
        return f"{claim.text} (recorded)"
    return f"{claim.text} (assumed)" if claim.assumed else claim.text


def _card(text: str, search: Sequence[Path]) -> Card:
    path = Path(text)
    if not (path.is_file() and is_card(path)):
        path = find_card(text, Path.cwd(), search=search)
    return read_card(path)


def _stage(protocol: Protocol, images: ImageSet, stage: Stage | None) -> tuple[Stage, int]:
    """Return the stage of the images and their size; raise DataError where that is open."""
    sampled = protocol.sampling.resolution
    final = next((step.resize for step in reversed(protocol.image) if isinstance(step, Resize)), sampled)
    sizes: dict[Stage, int] = {"sampled": sampled, "final": final}
    first = images.pictures[0]
    width, height = size_of(first)
    resized = any(isinstance(step, Resize) for step in protocol.image)
    if stage is None and not resized:
        stage = "sampled"
    if stage is None and sampled != final:
        stage = next((name for name, size in sizes.items() if (width, height) == (size, size)), None)
    if stage is None and (width, height) == (sampled, sampled):
        raise DataError(
            f"the protocol's resize keeps {sampled}x{sampled}, so that size does not tell whether the images "
            "have been through it",
            file=first.where,
            remedy="Say so: --stage sampled or --stage final",
        )
    if stage is None or (width, height) != (sizes[stage], sizes[stage]):
        wanted = [f"{sampled}x{sampled} as sampled"] if stage != "final" else []
        wanted += [f"{final}x{final} after its resize"] if resized and stage != "sampled" else []
        raise DataError(
            f"{protocol.name} has images of {' or '.join(wanted)}",
            file=first.where,
            found=f"{width}x{height}",
            remedy="Give images of that size: another resize than the protocol's moves scores",
        )
    return stage, sizes[stage]


def _measure(
    images: ImageSet,
    matching: Matching,
    protocol: Protocol,
    stage: Stage,
    size: int,
    prompts: Sequence[str],
    extractors: Extractors,
    folder: Path,
    *,
    shown: bool,
) -> _Columns:
    """Return the rows of the images in the order of their prompts, kept in a folder."""
    steps = protocol.image if stage == "sampled" else ()
    prompt_of = {number: index for index, number in enumerate(matching.order)}
    rows = _Columns(folder, protocol.n)
    title = f"{images.origin}: {protocol.name}"
    with true_float32(), Progress(protocol.n, "images", title, shown=shown) as shower:
        for numbers, pixels in in_batches(decode(images, steps, order=matching.order, size=size)):
            indices = [prompt_of[number] for number in numbers]
            rows.put(indices, extractors.extract(pixels, [prompts[index] for index in indices]))
            shower.update(len(indices))
    return rows


@dataclass
class _Columns:
    """Rows of images on the disk, a file a column: written in any order, read in that of the images."""

    folder: Path
    n: int
    _shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def put(self, indices: Sequence[int], columns: Mapping[str, Rows]) -> None:
        """Keep the rows of the images with these indices."""
        try:
            for name, rows in columns.items():
                if name not in self._shapes:
                    self._shapes[name] = rows.shape[1:]
                    self._path(name).touch()
                with self._path(name).open("r+b") as file:
                    for index, row in zip(indices, rows, strict=True):
                        self._seek(file, name, index)
                        file.write(np.ascontiguousarray(row, np.float32).tobytes())
        except OSError as problem:
            raise DataError(
                "the features of the images cannot be kept",
                file=self.folder,
                found=problem.strerror,
                remedy="Make room, or name another folder: TMPDIR=FOLDER",
            ) from problem

    def __iter__(self) -> Iterator[dict[str, Rows]]:
        # As many rows at a time as a store has in a shard: equal rows then make equal bits of scores.
        for start in range(0, self.n, SHARD):
            count = min(SHARD, self.n - start)
            batch = {}
            for name, shape in self._shapes.items():
                with self._path(name).open("rb") as file:
                    self._seek(file, name, start)
                    flat = np.fromfile(file, np.float32, count * int(np.prod(shape)))
                batch[name] = flat.reshape(count, *shape)
            yield batch

    def _path(self, name: str) -> Path:
        return self.folder / f"{list(self._shapes).index(name)}.f32"

    def _seek(self, file: BinaryIO, name: str, index: int) -> None:
        file.seek(4 * index * int(np.prod(self._shapes[name])))


def _notes(
    images: ImageSet,
    matching: Matching,
    protocol: Protocol,
    stage: Stage,
    references: Mapping[str, FeatureStatistics],
) -> Iterator[str]:
    left = len(images.pictures) - protocol.n
    if left:
        yield f"{left:,} images of later prompts were left out"
    lossy = sum(
        images.pictures[number].name.lower().endswith((".jpg", ".jpeg", ".webp")) for number in matching.order
    )
    if lossy and stage == "sampled":
        again = "; they go through the protocol's codec once more" if protocol.image else ""
        yield f"{lossy:,} images are JPEG or WebP files, whose pixels may not be the sampler's{again}"
    for metric in references:
        spec = protocol.metrics[metric]
        if (spec.metric == "fid" or spec.metric == "kid") and spec.statistics.sha256 is None:
            yield f"{metric}: the protocol has no checksum of {spec.statistics.file}: unverified"
    if remark := images.remark():
        yield remark
