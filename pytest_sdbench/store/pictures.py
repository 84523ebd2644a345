"""The file of the pictures of one shard: a tar that WebDataset and the hub's `datasets` open as it is.

A sample is three files of one key, in the order of the index:

    00000123.png     RGB, 8 bits, lossless: the sampler's pixels, before any codec or resize
    00000123.txt     the prompt, in UTF-8
    00000123.json    {"index": 123, "seed": 2871}

Before them stands a pax global header whose `comment`, a keyword that every reader of tar skips, says whose
they are and holds a checksum. Of equal pictures of an equal writer the bytes are the same.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pytest_sdbench.base.errors import EvidenceError
from pytest_sdbench.store.shard_format import SHARD, Damage, check_format

FORMAT = 1
"""Counts changes of the form of these files."""

_LEVEL = 3
"""zlib's. 9 takes fifteen times as long for a tenth less."""
_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
_KEYWORD = "comment"
_HEADER = 2**12
"""Bytes that the header may have."""
BEGINNING = _BLOCK + _HEADER + _BLOCK
"""Bytes of a file that hold its header."""
_PIXELS = 2**24
"""Pixels that a picture may have, 4096x4096: 64 of them take 3 GB."""
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FORM = bytes([8, 2, 0, 0, 0])
"""What a PNG's header says after width and height: 8 bits, RGB, and the one way of all else."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Consecutive pictures of one draw, and what they were drawn from."""

    indices: npt.NDArray[np.int64]
    seeds: npt.NDArray[np.int64]
    prompts: tuple[str, ...]
    images: npt.NDArray[np.uint8]
    """[B, H, W, 3], before any codec or resize."""


def pictures_name(images: range) -> str:
    return f"pictures-{images.start:08d}-{images.stop:08d}.tar"


def pictures_range(name: str) -> range | None:
    """Return the images of the pictures in the file of this name, or None if it is of something else."""
    found = re.fullmatch(r"pictures-(\d{8,})-(\d{8,})\.tar", name)
    return range(int(found[1]), int(found[2])) if found else None


def pictures_names(wanted: range, files: Container[str]) -> list[str]:
    """Return the files that hold these pictures, the largest first: as `shard_format.names_of`."""
    stops = range(wanted.start + SHARD, wanted.stop - 1, -1)
    return [name for stop in stops if (name := pictures_name(range(wanted.start, stop))) in files]


def format_picture(image: npt.NDArray[np.uint8]) -> bytes:
    """Return the PNG of a picture, uint8 [H, W, 3]: its pixels and nothing else."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=_LEVEL)
    return file.getvalue()


def format_pictures(
    images: npt.NDArray[np.uint8],
    indices: Sequence[int] | npt.NDArray[np.int64],
    seeds: Sequence[int] | npt.NDArray[np.int64],
    prompts: Sequence[str],
    *,
    of: str,
    writer: str,
) -> bytes:
    """Return the file of pictures, uint8 [B, H, W, 3], of consecutive indices.

    `of` and `writer` are those of `shard_format.format_shard`. Raises ValueError for what is no such shard,
    EvidenceError for pictures that are too large to be read again.
    """
    start, count = int(indices[0]) if len(indices) else 0, len(indices)
    shard, counts = range(start, start + count), {len(images), len(seeds), len(prompts)}
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or counts != {count}:
        raise ValueError(
            f"not pictures: {images.dtype} {images.shape}, {len(seeds)} seeds, {len(prompts)} texts"
        )
    if not 0 < count <= SHARD or [*map(int, indices)] != [*shard]:
        raise ValueError(f"not a shard: indices {list(indices)}")
    height, width = images.shape[1:3]
    if width * height > _PIXELS:
        found = f"{width}x{height} is more than {_PIXELS:,} pixels"
        raise EvidenceError(f"evidence cannot be written: a picture of {found}")
    body = bytearray()
    for index, seed, prompt, image in zip(shard, seeds, prompts, images, strict=True):
        said = json.dumps({"index": index, "seed": int(seed)})
        contents = (format_picture(image), prompt.encode(), said.encode())
        for name, content in zip(_files(index), contents, strict=True):
            body += _entry(name, len(content)) + content + bytes(-len(content) % _BLOCK)
    body += _END
    about = {"format": FORMAT, "of": of, "start": shard.start, "stop": shard.stop, "writer": writer}
    return _header({**about, "sha256": _checksum(about, body)}) + body


def parse_pictures(content: bytes, *, check: bool = True) -> tuple[Pictures, dict[str, Any]]:
    """Return the pictures of a file and what its header says of them; raise Damage if a bit is wrong.

    Without `check` the checksum is taken for right; the form is looked at all the same, and before anything
    is decoded.
    """
    try:
        about, body = _opened(content)
        expected = about.pop("sha256")
        if check and _checksum(about, body) != expected:
            raise Damage("wrong checksum")
        samples = list(_samples(body, range(about["start"], about["stop"])))
        sizes = {_size(png) for _, png, _ in samples}
        ((width, height),) = sizes
        if width * height > _PIXELS:
            raise Damage(f"pictures of {width}x{height}: larger than are ever kept")
        seeds, pngs, texts = zip(*samples, strict=True)
        indices = np.arange(about["start"], about["stop"], dtype=np.int64)
        images = np.stack([_pixels(png) for png in pngs])
        return Pictures(indices, np.array(seeds, np.int64), texts, images), about
    except Damage:
        raise
    except Exception as error:  # whatever a torn file makes of the parsers of tar, JSON and PNG
        raise Damage(f"not a whole shard of pictures ({type(error).__name__})") from None


def parse_header(beginning: bytes) -> dict[str, Any]:
    """Return what the header of a file says, of its first bytes; raise Damage if a bit of its form is wrong.

    Whether what follows is sound is not looked at.
    """
    try:
        return _opened(beginning)[0]
    except Damage:
        raise
    except Exception as error:  # as above
        raise Damage(f"it does not begin with its header ({type(error).__name__})") from None


def _files(index: int) -> tuple[str, str, str]:
    return f"{index:08d}.png", f"{index:08d}.txt", f"{index:08d}.json"


def _entry(name: str, size: int) -> bytes:
    """Return the header of a file in a tar: without owner, and of no time."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    return entry.tobuf(tarfile.USTAR_FORMAT)


def _header(about: Mapping[str, Any]) -> bytes:
    return tarfile.TarInfo.create_pax_global_header({_KEYWORD: json.dumps(about, sort_keys=True)})


def _checksum(about: Mapping[str, Any], body: bytes | bytearray | memoryview) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    digest.update(body)
    return digest.hexdigest()


def _opened(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """Return what the header of a file says, and what follows it; every bit of the header is as it was."""
    entry = tarfile.TarInfo.frombuf(content[:_BLOCK], "utf-8", "strict")
    if entry.type != tarfile.XGLTYPE or not 0 < entry.size <= _HEADER:
        raise Damage("it does not begin with its header")
    records = content[_BLOCK : _BLOCK + entry.size].decode()
    about = dict(json.loads(records.partition(f"{_KEYWORD}=")[2]))
    check_format(about, FORMAT)
    header = _header(about)
    numbers = about["start"], about["stop"]
    if not content.startswith(header) or any(type(number) is not int for number in numbers):
        raise Damage("a damaged header")
    if not 0 < about["stop"] - about["start"] <= SHARD:
        raise Damage(f"{about['stop'] - about['start']} pictures")
    return about, memoryview(content)[len(header) :]


def _samples(body: memoryview, images: range) -> Iterator[tuple[int, bytes, str]]:
    """Yield seed, PNG and text of each picture; raise Damage for files that are not exactly these."""
    at = 0
    for index in images:
        contents = []
        for name in _files(index):
            head, start = body[at : at + _BLOCK], at + _BLOCK
            size = int(head[124:135].tobytes() or b"0", 8)
            if head != _entry(name, size) or size > len(body) - start:
                raise Damage(f"{name} is not in its place")
            contents.append(body[start : start + size].tobytes())
            at = start + size + -size % _BLOCK
        png, text, said = contents
        told = json.loads(said)
        if told["index"] != index or type(told["seed"]) is not int:
            raise Damage(f"{_files(index)[2]} is of another picture")
        yield told["seed"], png, text.decode()
    if body[at:] != _END:
        raise Damage("more files than pictures")


def _size(png: bytes) -> tuple[int, int]:
    """Return width and height of a PNG; raise Damage for one that holds more than the pixels of a picture."""
    if not png.startswith(_SIGNATURE):
        raise Damage("a picture that is no PNG")
    chunks, at = [], len(_SIGNATURE)
    while at < len(png):
        chunks.append(png[at + 4 : at + 8])
        at += 12 + int.from_bytes(png[at : at + 4], "big")
    if chunks != [b"IHDR", *[b"IDAT"] * (len(chunks) - 2), b"IEND"] or at != len(png) or png[24:29] != _FORM:
        raise Damage("a picture of another form")
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def _pixels(png: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as file:
        return np.asarray(file)
