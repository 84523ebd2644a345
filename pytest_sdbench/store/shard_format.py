"""The file of one shard: its name, its bytes, and what tells that a bit of it is wrong."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as format_safetensors

SHARD = 64
"""Images in a shard; the last one of a run may hold fewer."""

FORMAT = 1
"""Counts changes of the form of shards and manifests."""

Rows = dict[str, npt.NDArray[Any]]

_META = "sdbench"


class Damage(Exception):
    """What is wrong with a shard."""


def shard_name(images: range) -> str:
    return f"shard-{images.start:08d}-{images.stop:08d}.safetensors"


def range_of(name: str) -> range | None:
    """Return the images of the shard of this file name, or None if it is of something else."""
    found = re.fullmatch(r"shard-(\d{8,})-(\d{8,})\.safetensors", name)
    return range(int(found[1]), int(found[2])) if found else None


def names_of(wanted: range, files: Container[str]) -> list[str]:
    """Return the files that hold these images, the largest first: longer runs leave the shorter ones'."""
    stops = range(wanted.start + SHARD, wanted.stop - 1, -1)
    return [name for stop in stops if (name := shard_name(range(wanted.start, stop))) in files]


def format_shard(rows: Mapping[str, npt.NDArray[Any]], images: range, *, of: str, writer: str) -> bytes:
    """Return the bytes of a shard: of equal rows of an equal writer, the same."""
    arrays = {name: np.ascontiguousarray(values) for name, values in rows.items()}
    arrays["index"] = np.array(images, np.int64)
    about = {"format": FORMAT, "of": of, "start": images.start, "stop": images.stop, "writer": writer}
    about["sha256"] = _checksum(arrays, about)
    # One entry: safetensors keeps metadata in an unordered map, and equal shards are to be equal files.
    return format_safetensors(arrays, {_META: json.dumps(about, sort_keys=True)})


def _checksum(arrays: Mapping[str, npt.NDArray[Any]], about: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def parse_shard(content: bytes, *, check: bool = True) -> tuple[Rows, dict[str, Any]]:
    """Return the arrays of a shard and what its header says of it; raise Damage if a bit is wrong."""
    try:
        size = int.from_bytes(content[:8], "little")
        about = dict(json.loads(json.loads(content[8 : 8 + size])["__metadata__"][_META]))
        arrays = parse_safetensors(content)
        expected = about.pop("sha256")
        count = len(range(about["start"], about["stop"]))
        if any(values.shape[:1] != (count,) for values in arrays.values()):
            raise ValueError("other rows than images")
    except Exception as error:  # whatever a torn header makes of two parsers
        raise Damage(f"not a whole shard ({type(error).__name__})") from None
    if about.get("format") != FORMAT:
        raise Damage(f"format {about.get('format')}, this version reads {FORMAT}")
    if check and _checksum(arrays, about) != expected:
        raise Damage("wrong checksum")
    return arrays, about
