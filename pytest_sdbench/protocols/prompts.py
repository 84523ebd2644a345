"""Load the prompts of a protocol, and make sure that they are the ones it means."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import count, islice
from operator import itemgetter
from pathlib import Path

from pytest_sdbench.base.csv import csv_rows
from pytest_sdbench.base.errors import DataError, Unavailable
from pytest_sdbench.base.files import is_pointer, read_bounded
from pytest_sdbench.protocols import scenes
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.protocols.sections import CsvPrompts, ScenesPrompts

COLUMNS = ["file_name", "text"]
"""The header of a `metadata.csv`: that of an image folder with captions."""

_LARGEST = 1 << 28
"""Bytes of a file of prompts: those of four million."""
CHECKED_CAPTIONS = 512
"""Captions of scenes that the checksum in a protocol covers."""


def load_prompts(protocol: Protocol, data_root: Path | None = None) -> tuple[str, ...]:
    """Return the N prompts of a protocol, in the order in which they are sampled.

    Raises Unavailable if the file is not on this machine, DataError if it is malformed or another file.
    """
    if isinstance(protocol.prompts, ScenesPrompts):
        return _scenes(protocol, protocol.prompts)
    return tuple(_read_csv(protocol, protocol.prompts, data_root).values())[: protocol.n]


def prompt_files(protocol: Protocol, data_root: Path | None = None) -> tuple[str, ...]:
    """Return the file names that a protocol's prompts have in their file, all of them; of scenes none.

    Raises as `load_prompts`.
    """
    if isinstance(protocol.prompts, ScenesPrompts):
        return ()
    return tuple(_read_csv(protocol, protocol.prompts, data_root))


def scenes_behind(protocol: Protocol, wanted: Iterable[int]) -> dict[int, scenes.Scene]:
    """Return the scene that each prompt is the caption of; empty for other prompts."""
    prompts, wanted = protocol.prompts, set(wanted)
    if not isinstance(prompts, ScenesPrompts) or not wanted:
        return {}
    found = enumerate(_indices(prompts.first, prompts.layouts, 0, max(wanted) + 1))
    return {at: scenes.scene(index, prompts.domain) for at, index in found if at in wanted}


def _parse(content: bytes, path: Path, remedy: str) -> dict[str, str]:
    """Return the captions of a `metadata.csv` by file name, in its order; further columns do not matter.

    Raises DataError for what is empty, no UTF-8, or malformed.
    """

    def error(message: str, line: int | None = None, found: object = None) -> DataError:
        return DataError(message, key=None if line is None else f"line {line}", found=found)

    captions: dict[str, str] = {}
    lines: dict[str, int] = {}
    try:
        if not content.strip():
            raise error("the file of prompts is empty")
        rows = csv_rows(content)
        _, header = next(rows)
        header = [column.strip() for column in header]
        for column in COLUMNS:
            if (times := header.count(column)) != 1:
                fault = f"column {column!r} is missing" if not times else f"{times} columns {column!r}"
                raise error(f"{fault}: {','.join(COLUMNS)!r} is expected", 1, ",".join(header)[:80])
        for line, row in filter(itemgetter(1), rows):  # a blank line says nothing
            if len(row) != len(header):
                fault = f"{len(header)} columns are expected, here are {len(row)}"
                raise error(fault, line, ",".join(row)[:80])
            name, caption = (row[header.index(column)] for column in COLUMNS)
            if not caption.strip():
                raise error("empty caption", line, name)
            if name in lines:
                raise error(f"this file name stands in line {lines[name]} already", line, name)
            lines[name], captions[name] = line, caption
    except DataError as bad:
        raise DataError(bad.message, file=path, key=bad.key, found=bad.found, remedy=remedy) from None
    return captions


def _scenes(protocol: Protocol, prompts: ScenesPrompts) -> tuple[str, ...]:
    # The checksum is over a fixed number, so that every N of one family of protocols is checked alike.
    first, layouts, domain = prompts.first, prompts.layouts, prompts.domain
    checked = scenes.captions(_indices(first, layouts, 0, CHECKED_CAPTIONS), domain)
    found = hashlib.sha256("".join(f"{caption}\n" for caption in checked).encode()).hexdigest()
    if found != prompts.captions_sha256:
        message = f"the first {CHECKED_CAPTIONS} captions are others than the protocol means"
        key = "prompts.captions_sha256"
        remedy = (
            "Where first, layouts or domain of the protocol were changed, record this checksum. Else scenes "
            "have changed: scores are not comparable with older ones."
        )
        raise DataError(message, file=protocol.path, key=key, found=found, remedy=remedy)
    return (*checked, *_rest(first, layouts, domain, protocol.n))[: protocol.n]


@lru_cache(maxsize=4)
def _rest(first: int, layouts: tuple[str, ...] | None, domain: str, n: int) -> tuple[str, ...]:
    """Return the captions after the checked ones: seconds for 30,000, and every look of a sequence asks."""
    return tuple(scenes.captions(_indices(first, layouts, CHECKED_CAPTIONS, n), domain))


def _indices(first: int, layouts: tuple[str, ...] | None, start: int, stop: int) -> Iterator[int]:
    """Return the scenes from the start-th to before the stop-th of a draw."""
    indices: Iterator[int] = count(first)
    if layouts is not None:
        indices = scenes.indices_of(layouts, indices)
    return islice(indices, start, max(start, stop))


def _read_csv(protocol: Protocol, prompts: CsvPrompts, data_root: Path | None) -> dict[str, str]:
    """Return captions by file name; what is wrong with a file is told before that its checksum differs."""
    known = prompts.file.startswith("mscoco_val2014_30k/")
    origin = " scripts/get_mscoco_files.sh of the BK-SDM repository fetches it." if known else ""
    remedy = f"Get the file again.{origin}" if known else "Correct the file"
    path = protocol.locate(prompts.file, data_root)
    if path is None or not path.is_file():
        message = f"the prompts of {protocol.name} are not on this machine"
        place = f"{_place(protocol, prompts.file, path)}.{origin}"
        raise Unavailable(message, file=path or prompts.file, remedy=place)
    try:
        content = read_bounded(path, _LARGEST)
    except OSError as error:
        reason = error.strerror
        raise DataError(f"the prompts cannot be read: {reason}", file=path, remedy=remedy) from error
    if is_pointer(content):
        raise DataError("a Git LFS pointer, and not the prompts", file=path, remedy="Run: git lfs pull")
    captions, checksum = _parse(content, path, remedy), hashlib.sha256(content).hexdigest()
    if checksum == prompts.sha256 and len(captions) == prompts.rows:
        return captions
    if checksum != prompts.sha256 and prompts.sha256 in map(_sha256_of, _with_other_line_ends(content)):
        message, remedy = (
            "the prompts with other line endings than the protocol's, as git converts them",
            f"Write `{path.name} -text` into .gitattributes, and check the file out again",
        )
        raise DataError(message, file=path, remedy=remedy)
    if not known:
        remedy = (
            "Other prompts make other scores. If it is this file that is meant, write into "
            f"{protocol.path.name}: rows: {len(captions)}, sha256: {checksum}"
        )
    if len(captions) != prompts.rows:
        raise DataError(f"{prompts.rows} prompts are expected", file=path, found=len(captions), remedy=remedy)
    message = f"wrong checksum: sha256 {prompts.sha256} is expected"
    remedy = f"Other prompts make other scores. {remedy}" if known else remedy
    raise DataError(message, file=path, found=checksum, remedy=remedy)


def _place(protocol: Protocol, file: str, path: Path | None) -> str:
    """Say where a file of prompts is looked for, and what else may have been meant."""
    name = file.replace("\\", "/").removeprefix("./")
    if path is None and (protocol.path.parent / name).is_file():
        return f"For the one beside the protocol write ./{name}; else give its folder with --sdbench-data"
    if path is None:
        return f"Give the folder that holds {file} with --sdbench-data"
    return "Put the file there" + (
        "" if file.startswith((".", "~")) else ", or give another folder with --sdbench-data"
    )


def _sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _with_other_line_ends(content: bytes) -> tuple[bytes, bytes]:
    plain = content.replace(b"\r\n", b"\n")
    return plain, plain.replace(b"\n", b"\r\n")
