"""The file of one shard: its name, its bytes, and what tells that a bit of it is wrong."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
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


class LaterFormat(Damage):
    """A file of a later version of this package, which is not to be touched."""


def check_format(about: Mapping[str, Any], known: int) -> None:
    """Raise LaterFormat, or Damage, for a file of another format than the known one."""
    found = about.get("format")
    if found != known:
        later = isinstance(found, int) and found > known
        raise (LaterFormat if later else Damage)(f"format {found}, this version reads {known}")


DRAW = frozenset({"index", "seed", "blacked_out", "truncated"})
"""Arrays of every shard: they are of the draw, and no extractor's column."""


def columns_in(names: Iterable[str]) -> frozenset[str]:
    """Return those of a shard's arrays that are columns."""
    return frozenset(names) - DRAW


def set_of(columns: Iterable[str]) -> str:
    """Return what stands for a set of columns in the name of a shard, as 8 hex digits."""
    return hashlib.sha256("\n".join(sorted(columns)).encode()).hexdigest()[:8]


def shard_name(images: range, columns: Iterable[str]) -> str:
    return f"shard-{images.start:08d}-{images.stop:08d}-{set_of(columns)}.safetensors"


def read_shard_name(name: str) -> tuple[range, str] | None:
    """Return images and set of columns of the shard of this file name, or None if it is of something else.

    Shards of old stores have no set.
    """
    found = re.fullmatch(r"shard-(\d{8,})-(\d{8,})(?:-([0-9a-f]{8}))?\.safetensors", name)
    return (range(int(found[1]), int(found[2])), found[3] or "") if found else None


def format_shard(
    rows: Mapping[str, npt.NDArray[Any]],
    images: range,
    *,
    of: str,
    writer: str,
    artist: str | None = None,
    reference: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the bytes of a shard: of equal rows of an equal writer, the same.

    `artist` is who drew the pictures, where that was another writer. `reference` says where those were drawn
    that pairs compare with: they may be gone, with all that their own folder says.
    """
    arrays = {name: np.ascontiguousarray(values) for name, values in rows.items()}
    arrays["index"] = np.array(images, np.int64)
    about = {"format": FORMAT, "of": of, "start": images.start, "stop": images.stop, "writer": writer}
    if artist not in (None, writer):
        about["artist"] = artist
    if reference is not None:
        about["reference"] = dict(reference)
    about["sha256"] = _checksum(arrays, about)
    # One entry: safetensors keeps metadata in an unordered map, and equal shards are to be equal files.
    return format_safetensors(arrays, {_META: json.dumps(about, sort_keys=True)})


def _checksum(arrays: Mapping[str, npt.NDArray[Any]], about: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def parse_shard(content: bytes) -> tuple[Rows, dict[str, Any]]:
    """Return the arrays of a shard and what its header says of it; raise Damage if a bit is wrong."""
    try:
        size = int.from_bytes(content[:8], "little")
        about = dict(json.loads(json.loads(content[8 : 8 + size])["__metadata__"][_META]))
        check_format(about, FORMAT)
        arrays = parse_safetensors(content)
        expected = about.pop("sha256")
        count = len(range(about["start"], about["stop"]))
        if any(values.shape[:1] != (count,) for values in arrays.values()):
            raise ValueError("other rows than images")
    except Damage:
        raise
    except Exception as error:  # whatever a torn header makes of two parsers
        raise Damage(f"not a whole shard ({type(error).__name__})") from None
    if _checksum(arrays, about) != expected:
        raise Damage("wrong checksum")
    return arrays, about


def parse_rows(content: bytes) -> Rows:
    """Return the arrays of a shard that was found sound before; raise Damage for one that is not whole."""
    try:
        arrays = parse_safetensors(content)
        (_,) = {len(values) for values in arrays.values()}
    except Exception as error:  # as above
        raise Damage(f"not a whole shard ({type(error).__name__})") from None
    return arrays
