"""Bring in what another tool says of each image: its scores become a column of evidence."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pytest_sdbench.base.csv import csv_rows
from pytest_sdbench.base.environment import torch_device
from pytest_sdbench.base.errors import DataError, EvidenceError, ProtocolError
from pytest_sdbench.base.files import json_list, json_mapping, read_bounded
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.network import checkpoint_of
from pytest_sdbench.commands.score_matching import plain_caption
from pytest_sdbench.commands.shared import card_and_weights, first_images, protocol_of, share, show
from pytest_sdbench.metrics.definition import Metric
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.protocols.metric_specs import ImportedSpec
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.store.shard_folder import in_grid
from pytest_sdbench.store.shard_format import read_shard_name, set_of, shard_name

if TYPE_CHECKING:
    from pytest_sdbench.store.shards import Evidence

LARGEST = 1 << 28
"""Bytes of a file of scores: a million lines have a tenth of that."""
_LARGEST_VALUE = float(np.finfo(np.float32).max)
"""Columns are of 32 bits."""
_FINITE = (
    f"Give each image a number, of {_LARGEST_VALUE:.1g} at most, or take the first images alone: --images N"
)
_FILE_KEYS = ("file_name", "filename")
_IMAGE = re.compile(r"[0-9]{8}\.[A-Za-z]+")
"""What `images` calls the picture of an image: by its index."""
PROMPT_KEYS = ("prompt", "text", "caption")
_COLUMNS = {"index", "value", "score", "seed", *_FILE_KEYS, *PROMPT_KEYS}
"""Names that a table may write in capitals."""
_FORM = (
    "Write JSON lines or CSV: `value`, and `index` (from 0), `file_name` (as `images` wrote it) or `prompt`, "
    "with `seed` where prompts repeat"
)

_COMPRESSED = (b"\x1f\x8b", b"BZh91AY", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")
"""How files of gzip, bzip2, xz, zstd and zip begin."""


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


@dataclass(frozen=True)
class Value:
    """What a file of scores says of one image."""

    where: str
    """The line."""
    value: float
    index: int | None = None
    prompt: str | None = None
    seed: int | None = None


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
    found = by_image(options.scores, values, prompts, _seeds(evidence, protocol.n))
    earlier = _imported(evidence, column)
    if not options.replace and (count := _unlike(earlier, found)):
        message = f"{count:,} other values of {metric.label} were imported before"
        raise DataError(message, file=options.scores, remedy="To take these in their place: --replace")
    if options.replace or evidence.missing(protocol.n):
        if not options.replace and max(earlier, default=0) >= protocol.n:  # a shard of the others is damaged
            message, found_here = "values of more images were imported before", f"{protocol.n:,} images"
            remedy = "Import those of all images, or let these alone stay: --replace"
            raise DataError(message, file=options.scores, found=found_here, remedy=remedy)
        _keep(evidence, column, found)
    if evidence.missing(protocol.n) or _unlike(_imported(evidence, column), found):
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


def _seeds(evidence: Evidence, n: int) -> list[int]:
    """Return the seed of each image; raises EvidenceError where some were not made."""
    seeds: list[int] = []
    for images in in_grid(n):
        flags = evidence.flags(images)
        if flags is None:
            what = f"images {images.start} to {images.stop - 1} are not in the store"
            remedy = (
                "Scores are of images that were made: python -m pytest_sdbench images CARD OUT makes them"
            )
            raise EvidenceError(what, file=evidence.folder, remedy=remedy)
        seeds += flags["seed"].tolist()
    return seeds


def _imported(evidence: Evidence, column: str) -> dict[int, float]:
    """Return the values that were imported before, by image."""
    found: dict[int, float] = {}
    shards = evidence.shards
    listing = shards.listing()
    for name in listing.of_set(set_of(evidence.columns.values())):
        if shards.is_sound(name, listing):
            rows = shards.open(name, listing.files[name])
            found |= zip(rows["index"].tolist(), rows[evidence.columns[column]].tolist(), strict=True)
    return found


def _unlike(known: Mapping[int, float], values: npt.NDArray[np.float32]) -> int:
    """Return for how many images other values are known."""
    return sum(index < len(values) and values[index] != value for index, value in known.items())


def _keep(evidence: Evidence, column: str, values: npt.NDArray[np.float32]) -> None:
    """Write the values of images in the place of all that were imported before: old and new do not mix."""
    before = {
        name
        for name in evidence.storage.files()
        if (shard := read_shard_name(name)) is not None and shard[1] == set_of(evidence.columns.values())
    }
    # A disk that is full keeps the old ones: they go when the new ones are there.
    for images in in_grid(len(values)):
        flags = evidence.flags(images)
        assert flags is not None
        index = np.arange(images.start, images.stop)
        evidence.write(images.start, {"index": index, **flags, column: values[images.start : images.stop]})
    whole = {shard_name(images, evidence.columns.values()) for images in in_grid(len(values))}
    for name in before - whole:
        evidence.storage.remove(name)


# --- the file ---


def read_values(path: Path, metric: Metric) -> Iterator[Value]:
    """Yield what a file of scores says, line by line; raises DataError, which names the line.

    The value stands under ``value``, ``score`` or the metric's name, within the metric's bounds.
    """
    try:
        content = read_bounded(path, LARGEST)
    except OSError as error:
        message = f"the scores cannot be read: {error.strerror or error}"
        raise DataError(message, file=path, remedy=_FORM) from None
    if content.startswith(_COMPRESSED):
        raise DataError("this file is compressed, or an archive", file=path, remedy=f"Unpack it. {_FORM}")
    start = content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    is_json = start in (b"{", b"[") or path.suffix.lower() in (".jsonl", ".ndjson", ".json")
    read = (_json_list if start == b"[" else _json_lines) if is_json else _csv
    for where, row in read(path, content):
        keys = [key for key in ("value", "score", metric.name) if row.get(key) not in (None, "")]
        if len(keys) != 1:
            what = "several values" if keys else "no value"
            raise DataError(what, file=path, key=where, found=sorted(map(str, row)), remedy=_FORM)
        value = _number(path, f"{where}, {keys[0]}", row[keys[0]])
        low = -math.inf if metric.minimum is None else metric.minimum
        high = math.inf if metric.maximum is None else metric.maximum
        is_finite = abs(value) <= _LARGEST_VALUE
        if not is_finite or not low <= value <= high:
            message, found = f"not a value of {metric.label}", row[keys[0]]
            remedy = metric.scale[:1].upper() + metric.scale[1:] if is_finite else _FINITE
            raise DataError(message, file=path, key=where, found=found, remedy=remedy)
        told = {key: row.get(key) for key in ("index", "seed") if row.get(key) not in (None, "")}
        file = next((str(row[key]) for key in _FILE_KEYS if row.get(key) not in (None, "")), "")
        named = None
        if _IMAGE.fullmatch(name := re.split(r"[/\\]", file)[-1]):
            named = int(name.partition(".")[0])
            told.setdefault("index", named)
        numbers = {key: _whole(path, f"{where}, {key}", found) for key, found in told.items()}
        if named not in (None, numbers.get("index")):
            message = f"the index is {numbers['index']}, the file of another image"
            raise DataError(message, file=path, key=where, found=name, remedy="Leave one of them out")
        prompt = next((str(row[key]) for key in PROMPT_KEYS if row.get(key) not in (None, "")), None)
        if "index" not in numbers and prompt is None:
            unnamed = '; the column without a name is pandas\' index: write it with index_label="index"'
            remedy = _FORM + unnamed * ("" in row)
            raise DataError(
                "neither index nor prompt", file=path, key=where, found=sorted(row), remedy=remedy
            )
        yield Value(where, value, prompt=prompt, **numbers)


def _json_lines(path: Path, content: bytes) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"the scores cannot be read: {error}", file=path, remedy=_FORM) from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json_mapping(line.encode(), unique=True)
            except ValueError as error:
                raise DataError(f"not JSON: {error}", file=path, key=f"line {number}", remedy=_FORM) from None
            yield f"line {number}", row


def _json_list(path: Path, content: bytes) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield what one list of objects says, as `DataFrame.to_json(orient="records")` writes it."""
    try:
        rows = json_list(content.decode("utf-8-sig"), unique=True)
    except ValueError as error:
        raise DataError(f"not JSON: {error}", file=path, remedy=_FORM) from None
    for place, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError("not an object", file=path, key=f"[{place}]", found=row, remedy=_FORM)
        yield f"[{place}]", row


def _csv(path: Path, content: bytes) -> Iterator[tuple[str, Mapping[str, Any]]]:
    header: list[str] = []
    try:
        for line, row in csv_rows(content, loose=True):
            if not header:
                header = [name.strip() for name in row]
                lower = {name: name.lower() for name in header if name.lower() in _COLUMNS}
                header = [lower.get(name, name) for name in header]
                if twice := [name for name in header if name and header.count(name) > 1]:
                    message = "malformed CSV: two columns have one name"
                    raise DataError(message, key=f"line {line}", found=twice[0])
            elif len(row) != len(header):
                message = f"malformed CSV: not as many fields as the header has: {len(header)}"
                raise DataError(message, key=f"line {line}")
            else:
                yield f"line {line}", dict(zip(header, row, strict=True))
    except DataError as fault:
        key, found = fault.key, fault.found
        raise DataError(fault.message, file=path, key=key, found=found, remedy=_FORM) from None


def _number(path: Path, where: str, found: Any) -> float:
    if isinstance(found, str) and found.strip().lower() in ("true", "false"):  # as tables write them
        return float(found.strip().lower() == "true")
    try:
        return float(found)
    except (TypeError, ValueError, OverflowError):
        raise DataError("not a number", file=path, key=where, found=found, remedy=_FORM) from None


def _whole(path: Path, where: str, found: object) -> int:
    number = _number(path, where, found)
    if isinstance(found, bool) or not number.is_integer():
        raise DataError("not a whole number", file=path, key=where, found=found, remedy=_FORM)
    return int(str(found)) if isinstance(found, int) or str(found).isdigit() else int(number)


# --- the images ---


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
            remedy = "Score the images of this protocol: python -m pytest_sdbench images CARD OUT"
            raise fault(f"image {index} has the seed {seeds[index]}", each.seed, remedy)
        if index in found:
            raise fault(f"a second value of image {index}", found[index].where, "Keep one")
        found[index] = each
    if lacking := [index for index in range(n) if index not in found]:
        message = f"no value of {len(lacking):,} images, the first of them image {lacking[0]}"
        remedy = "Score them as well, or take the first images alone: --images N"
        raise DataError(message, file=file, found=prompts[lacking[0]], remedy=remedy)
    return np.array([found[index].value for index in range(n)], np.float32)
