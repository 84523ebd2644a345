"""Bring in what another tool says of each image: its scores become a column of evidence."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pytest_sdbench.base.environment import torch_device
from pytest_sdbench.base.errors import DataError, EvidenceError, ProtocolError
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.network import checkpoint_of
from pytest_sdbench.commands.import_file import Value, read_values
from pytest_sdbench.commands.score_matching import plain_caption
from pytest_sdbench.commands.shared import card_and_weights, first_images, protocol_of, share, show
from pytest_sdbench.metrics.definition import Metric
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.protocols.metric_specs import ImportedSpec
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.store.shard_folder import in_grid
from pytest_sdbench.store.shard_format import Rows, read_shard_name, set_of, shard_name

if TYPE_CHECKING:
    from pytest_sdbench.store.shards import Evidence


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    told = "JSON lines, a JSON list or CSV with an image a line: its `value`, and its `index` (from 0), its "
    told += "`file_name` (as `images` wrote it) or its `prompt`; `seed` tells images of one prompt apart"
    command.add_argument("scores", type=Path, metavar="SCORES", help=told)
    told = "a metric that the protocol declares with `kind: imported`"
    command.add_argument("--metric", required=True, metavar="NAME", help=told)
    told = "whose images they are: a card's name or file"
    command.add_argument("--card", required=True, metavar="CARD", help=told)
    told = "take them in place of all values that were imported before"
    command.add_argument("--replace", action="store_true", help=told)
    share(command, "--protocol", "--images", "--store", "--data", "--device", "--weights")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from pytest_sdbench.evaluation.evidence import as_drawn
    from pytest_sdbench.evaluation.job import Extras, open_evidence
    from pytest_sdbench.protocols.prompts import load_prompts

    card, weights = card_and_weights(options.card, options.weights)
    protocol = protocol_of(options.protocol, card)
    metric = _declared(protocol, options.metric)
    whole = protocol
    if options.images is not None:
        protocol = first_images(protocol, options.images)
    workspace = Workspace(options.store, options.data, torch_device(options.device, option="--device"))
    values = list(read_values(options.scores, metric))
    checkpoint = checkpoint_of(card, weights)
    others = [name for name in protocol.metrics if name != metric.name]
    drawn = as_drawn(checkpoint, protocol.without(others), workspace, Extras(columns={}))
    evidence = open_evidence(workspace, checkpoint, drawn)
    prompts = load_prompts(whole, options.data)
    column = metric.column(protocol.metrics[metric.name].extractor)
    flags = _flags(evidence, protocol.n, _images_command(options))
    seeds = [seed for rows in flags for seed in rows["seed"].tolist()]
    found = by_image(options.scores, values, prompts, seeds)
    earlier = _imported(evidence, column)
    if not options.replace and (count := _unlike(earlier.values(), found)):
        message = f"{count:,} other values of {metric.label} were imported before"
        raise DataError(message, file=options.scores, remedy="To take these in their place: --replace")
    if options.replace or evidence.missing(protocol.n):
        last = max((max(shard) for shard in earlier.values()), default=0)
        if not options.replace and last >= protocol.n:  # a shard of the others is damaged
            message, found_here = "values of more images were imported before", f"{protocol.n:,} images"
            remedy = "Import those of all images, or let these alone stay: --replace"
            raise DataError(message, file=options.scores, found=found_here, remedy=remedy)
        _keep(evidence, column, flags, found)
    if evidence.missing(protocol.n) or _unlike(_imported(evidence, column).values(), found):
        message, remedy = "other values were imported at the same time", "Run again, with --replace"
        raise DataError(message, file=options.scores, remedy=remedy)
    show(f"{card.name}: {protocol.name}: {metric.label} of {protocol.n:,} images, mean {found.mean():.6g}")
    return 0


def _declared(protocol: Protocol, name: str) -> Metric:
    """Return the metric that another tool gives; raises ProtocolError for one that the protocol lacks."""
    imported = [each for each, spec in protocol.metrics.items() if isinstance(spec, ImportedSpec)]
    if name in imported:
        return METRICS[name]
    what, how, wanted, known = "no such metric", "Declare it", name, METRICS.get(name)
    if known is not None and known.reads != "imported":
        what = f"{known.label} is computed from the images"
        how, wanted = "Declare what another tool says under another name", f"their_{name}"
    remedy = f"{how}: metrics: {{{wanted}: {{kind: imported, higher_is_better: true}}}}"
    if imported:
        remedy = f"Its imported metrics are {', '.join(imported)}. {remedy}"
    raise ProtocolError(what, file=protocol.path, key=f"metrics.{name}", found=name, remedy=remedy)


def _images_command(options: argparse.Namespace) -> str:
    """Return the command that makes the images that are meant."""
    words = [options.card, "OUT", "--protocol", options.protocol, "--store", options.store]
    for name in ("images", "data"):
        words += [f"--{name}", str(vars(options)[name])] if vars(options)[name] is not None else []
    words += ["--device", options.device] if options.device != "auto" else []
    words += [word for card, path in options.weights for word in ("--weights", f"{card}={path}")]
    return f"python -m pytest_sdbench images {shlex.join(map(str, words))}"


def _flags(evidence: Evidence, n: int, command: str) -> list[Rows]:
    """Return seeds and flags of the images, by shard; raises EvidenceError where some were not made."""
    found = []
    for images in in_grid(n):
        flags = evidence.flags(images)
        if flags is None:
            what = f"images {images.start} to {images.stop - 1} are not in the store"
            remedy = f"Scores are of images that were made. To make them: {command}"
            raise EvidenceError(what, file=evidence.folder, remedy=remedy)
        found.append(flags)
    return found


def _imported(evidence: Evidence, column: str) -> dict[str, dict[int, float]]:
    """Return the values that were imported before, by image, of each shard by its name."""
    found: dict[str, dict[int, float]] = {}
    shards = evidence.shards
    listing = shards.listing()
    for name in listing.of_set(set_of(evidence.columns.values())):
        if shards.is_sound(name, listing):
            rows = shards.open(name, listing.files[name])
            values = rows[evidence.columns[column]].tolist()
            found[name] = dict(zip(rows["index"].tolist(), values, strict=True))
    return found


def _unlike(shards: Iterable[Mapping[int, float]], values: npt.NDArray[np.float32]) -> int:
    """Return for how many images shards have other values."""
    known = [(index, value) for shard in shards for index, value in shard.items() if index < len(values)]
    return len({index for index, value in known if values[index] != value})


def _keep(evidence: Evidence, column: str, flags: Sequence[Rows], values: npt.NDArray[np.float32]) -> None:
    """Write the values of images, with the flags of each shard, in the place of all that came before.

    What says anything else goes first: where this is cut short values are missing, and old and new ones never
    lie side by side. What says the same stays, as others may be importing it now.
    """
    grid, keys = list(in_grid(len(values))), evidence.columns.values()
    columns, same = set_of(keys), {shard_name(images, keys) for images in grid}
    same -= {name for name, shard in _imported(evidence, column).items() if _unlike([shard], values)}
    for name in sorted(evidence.storage.files()):
        shard = read_shard_name(name)
        if shard is not None and shard[1] == columns and name not in same:
            evidence.storage.remove(name)
    for images, rows in zip(grid, flags, strict=True):
        index = np.arange(images.start, images.stop)
        evidence.write(images.start, {"index": index, **rows, column: values[images.start : images.stop]})


def by_image(
    file: Path, values: Sequence[Value], prompts: Sequence[str], seeds: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Return the value of each image that has a seed, [n], in the order of the prompts; raises DataError.

    Each has exactly one; values of prompts beyond these are passed over. A seed that a line has must be that
    of its image.
    """
    n = len(seeds)
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(plain_caption(prompt), []).append(place)
    found: dict[int, Value] = {}
    for each in values:

        def fault(message: str, said: object, remedy: str, each: Value = each) -> DataError:
            return DataError(message, file=file, key=each.where, found=said, remedy=remedy)

        meant = [] if each.index is None else [each.index]
        if each.index is None:
            meant = places.get(plain_caption(str(each.prompt)), [])
            # A prompt that comes again beyond the images at hand means the one here.
            meant = [place for place in meant if place < n] or meant[:1]
            if len(meant) > 1 and each.seed is not None:
                meant = [place for place in meant if seeds[place] == each.seed] or meant[:1]
        if not meant:
            remedy = "Correct it, or give the `index` of the image"
            raise fault("no prompt of the protocol", each.prompt, remedy)
        if len(meant) > 1:
            told = {seeds[place] for place in meant}
            remedy = "Say which: `index`" + (", or `seed`" if len(told) == len(meant) else "")
            raise fault(f"{len(meant)} images are of this prompt", each.prompt, remedy)
        (index,) = meant
        if not 0 <= index < len(prompts):
            remedy = "Images are counted from 0. Score the images of this protocol alone"
            raise fault(f"the protocol has {len(prompts):,} images", index, remedy)
        if each.prompt is not None and plain_caption(each.prompt) != plain_caption(prompts[index]):
            raise fault(
                f"image {index} has another prompt: {prompts[index]}", each.prompt, "Correct the index"
            )
        if index >= n:
            continue
        if each.seed is not None and each.seed != seeds[index]:
            remedy = "Score the images of this protocol, which `images` writes with their seeds"
            raise fault(f"image {index} has the seed {seeds[index]}", each.seed, remedy)
        if index in found:
            raise fault(f"a second value of image {index}", found[index].where, "Keep one")
        found[index] = each
    if lacking := [index for index in range(n) if index not in found]:
        message = f"no value of {len(lacking):,} images, the first of them image {lacking[0]}"
        remedy = "Score them as well, or take the first images alone: --images N"
        raise DataError(message, file=file, found=prompts[lacking[0]], remedy=remedy)
    return np.array([found[index].value for index in range(n)], np.float32)
