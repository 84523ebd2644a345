"""Read what another tool says of images: JSON lines, a JSON list or CSV with an image a line."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pytest_sdbench.base.csv import csv_rows
from pytest_sdbench.base.errors import DataError
from pytest_sdbench.base.files import json_list, json_mapping, read_bounded
from pytest_sdbench.metrics.definition import Metric

LARGEST = 1 << 28
"""Bytes of a file of scores: a million lines have a tenth of that."""
_LARGEST_VALUE = float(np.finfo(np.float32).max)
"""Columns are of 32 bits."""
_FINITE = (
    f"Give each image a number, of {_LARGEST_VALUE:.1g} at most, or take the first images alone: --images N"
)
_FILE_KEYS = ("file_name", "filename", "__key__")
"""The last one is what WebDataset calls a sample by: its file without the ending."""
_IMAGE = re.compile(r"[0-9]{8}(\.[A-Za-z]+)?")
"""What `images` and the store call the picture of an image: by its index."""
PROMPT_KEYS = ("prompt", "text", "caption")
_COLUMNS = {"index", "value", "score", "seed", *_FILE_KEYS, *PROMPT_KEYS}
"""Names that a table may write in capitals."""
_FORM = (
    "Write JSON lines or CSV: `value`, and `index` (from 0), `file_name` (as `images` wrote it) or `prompt`, "
    "with `seed` where prompts repeat"
)

_COMPRESSED = (b"\x1f\x8b", b"BZh91AY", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")
"""How files of gzip, bzip2, xz, zstd and zip begin."""


@dataclass(frozen=True)
class Value:
    """What a file of scores says of one image."""

    where: str
    """The line."""
    value: float
    index: int | None = None
    prompt: str | None = None
    seed: int | None = None


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
                what, key = f"this line is no JSON object: {error}", f"line {number}"
                with contextlib.suppress(ValueError):
                    found = list(json_mapping(text, unique=True))[:3]
                    told = "one JSON object, and each image needs its own"
                    raise DataError(told, file=path, found=found, remedy=_FORM) from None
                raise DataError(what, file=path, key=key, remedy=_FORM) from None
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
