"""Load the prompts of a protocol, and make sure that they are the ones it means."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator
from functools import lru_cache
from itertools import count, islice
from pathlib import Path

from pytest_sdbench.base.errors import DataError, Unavailable
from pytest_sdbench.protocols import scenes
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.protocols.sections import CsvPrompts, ScenesPrompts

COLUMNS = ["file_name", "text"]
"""The header of a `metadata.csv`: that of an image folder with captions."""

CHECKED_CAPTIONS = 512
"""Captions of scenes that the checksum in a protocol covers."""


def load_prompts(protocol: Protocol, data_root: Path | None = None) -> tuple[str, ...]:
    """Return the N prompts of a protocol, in the order in which they are sampled.

    Raises Unavailable if the file is not on this machine, DataError if it is malformed or another file.
    """
    if isinstance(protocol.prompts, ScenesPrompts):
        return _scenes(protocol, protocol.prompts)
    captions = _read_csv(_find(protocol, protocol.prompts, data_root), protocol.prompts)
    return tuple(captions.values())[: protocol.n]


def prompt_files(protocol: Protocol, data_root: Path | None = None) -> tuple[str, ...]:
    """Return the file names that a protocol's prompts have in their file, all of them; of scenes none.

    Raises as `load_prompts`.
    """
    if isinstance(protocol.prompts, ScenesPrompts):
        return ()
    return tuple(_read_csv(_find(protocol, protocol.prompts, data_root), protocol.prompts))


def parse_captions(content: bytes, path: Path | str, remedy: str = "") -> dict[str, str]:
    """Return the captions of a `metadata.csv` by file name, in its order; `path` is what messages call it.

    Raises DataError for what is empty, no UTF-8, or malformed.
    """
    if not content.strip():
        raise DataError("the file of prompts is empty", file=path, remedy=remedy)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        bad = content[error.start : error.end]
        raise DataError(
            "this is not UTF-8", file=path, key=f"line {line}", found=bad, remedy=remedy
        ) from None
    return _captions(text, path, remedy)


def _scenes(protocol: Protocol, prompts: ScenesPrompts) -> tuple[str, ...]:
    # The checksum is over a fixed number, so that every N of one family of protocols is checked alike.
    checked = scenes.captions(_indices(prompts.first, prompts.layouts, 0, CHECKED_CAPTIONS))
    found = hashlib.sha256("".join(f"{caption}\n" for caption in checked).encode()).hexdigest()
    if found != prompts.captions_sha256:
        raise DataError(
            f"the first {CHECKED_CAPTIONS} captions are others than the protocol means",
            file=protocol.path,
            key="prompts.captions_sha256",
            found=found,
            remedy="Scenes have changed: scores are not comparable with older ones; record the new checksum.",
        )
    return (*checked, *_rest(prompts.first, prompts.layouts, protocol.n))[: protocol.n]


@lru_cache(maxsize=4)
def _rest(first: int, layouts: tuple[str, ...] | None, n: int) -> tuple[str, ...]:
    """Return the captions after the checked ones: seconds for 30,000, and every look of a sequence asks."""
    return tuple(scenes.captions(_indices(first, layouts, CHECKED_CAPTIONS, n)))


def _indices(first: int, layouts: tuple[str, ...] | None, start: int, stop: int) -> Iterator[int]:
    """Return the scenes from the start-th to before the stop-th of a draw."""
    indices: Iterator[int] = count(first)
    if layouts is not None:
        indices = scenes.indices_of(layouts, indices)
    return islice(indices, start, max(start, stop))


def _find(protocol: Protocol, prompts: CsvPrompts, data_root: Path | None) -> Path:
    path = protocol.locate(prompts.file, data_root)
    if path is None:
        raise Unavailable(
            f"the prompts of {protocol.name} are not on this machine",
            file=prompts.file,
            remedy=f"Give the folder that holds {prompts.file} with --sdbench-data.{_origin(prompts)}",
        )
    if not path.is_file():
        raise Unavailable(
            f"the prompts of {protocol.name} are not there",
            file=path,
            remedy=f"Put the file there, or give another folder with --sdbench-data.{_origin(prompts)}",
        )
    return path


def _origin(prompts: CsvPrompts) -> str:
    known = prompts.file.startswith("mscoco_val2014_30k/")
    return " scripts/get_mscoco_files.sh of the BK-SDM repository fetches it." if known else ""


def _read_csv(path: Path, prompts: CsvPrompts) -> dict[str, str]:
    """Return captions by file name; what is wrong with a file is told before that its checksum differs."""
    remedy = f"Get the file again.{_origin(prompts)}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"the prompts cannot be read: {error.strerror}", file=path) from error
    captions = parse_captions(content, path, remedy)
    if len(captions) != prompts.rows:
        raise DataError(f"{prompts.rows} prompts are expected", file=path, found=len(captions), remedy=remedy)
    checksum = hashlib.sha256(content).hexdigest()
    if checksum != prompts.sha256:
        raise DataError(
            f"wrong checksum: sha256 {prompts.sha256} is expected",
            file=path,
            found=checksum,
            remedy=f"Other prompts make other scores.{' ' + remedy if remedy else ''}",
        )
    return captions


def _captions(text: str, path: Path | str, remedy: str) -> dict[str, str]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    captions: dict[str, str] = {}
    lines: dict[str, int] = {}
    try:
        header = next(reader)
        if header != COLUMNS:
            absent = [column for column in COLUMNS if column not in header]
            fault = f"column {absent[0]!r} is missing" if absent else "malformed header"
            raise DataError(
                f"{fault}: {','.join(COLUMNS)!r} is expected",
                file=path,
                key="line 1",
                found=",".join(header)[:80],
                remedy=remedy,
            )
        for row in reader:
            key = f"line {reader.line_num}"
            if len(row) != len(COLUMNS):
                fault = f"{len(COLUMNS)} columns are expected, here are {len(row)}"
                raise DataError(fault, file=path, key=key, found=",".join(row)[:80], remedy=remedy)
            name, caption = row
            if not caption.strip():
                raise DataError("empty caption", file=path, key=key, found=name, remedy=remedy)
            if name in lines:
                fault = f"this file name stands in line {lines[name]} already"
                raise DataError(fault, file=path, key=key, found=name, remedy=remedy)
            lines[name] = reader.line_num
            captions[name] = caption
    except csv.Error as error:
        key = f"line {reader.line_num}"
        raise DataError(f"malformed CSV: {error}", file=path, key=key, remedy=remedy) from None
    return captions
