"""Read WebDataset shards: tar files in which the members of one name, but for their endings, are a pair."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from pytest_sdbench.base.files import json_mapping, write_atomically
from pytest_sdbench.base.paths import user_cache
from pytest_sdbench.features.archives import braces
from training.data.local_copies import LocalCopies, RemoteFile, expand, locate
from training.data.source import BadSample, Sample, Source, decode
from training.errors import TrainingError, explain_write_errors

PICTURES = ("jpg", "jpeg", "png", "webp")
LOCAL_BYTES = 50 * 10**9
"""Room for copies of remote shards."""
_INDEXED_AT_ONCE = 8
_FORMS = f"a pair is KEY.txt and KEY.{' or .'.join(PICTURES)}, with no dot in KEY"
_UNREAD = (*PICTURES, "gif", "bmp", "tif", "tiff", "avif", "heic", "heif", "jxl", "jp2")


@dataclass(frozen=True)
class Index:
    """Where the pairs of one shard lie."""

    keys: Sequence[str]
    places: npt.NDArray[np.int64]
    """[N, 4]: offset and size of the picture, offset and size of the caption; -1 where there is none."""
    json: npt.NDArray[np.bool_]
    """Whether the caption is a JSON object: its key `caption`, `text` or `prompt`."""
    captions: str
    """Digest of the contents of all captions."""
    passed_over: Sequence[str] = ()
    """Members that are pictures by their names, and no part of a pair; known while the index is made."""


class ShardsSource(Source):
    """The pairs of tar files, at local paths or fsspec URLs, with `{000..010}`, `{a,b}` and `*` in them.

    A pair is a picture (jpg, png, webp) and a `.txt`, or a `.json` with the key `caption`, `text` or
    `prompt`. Each shard is indexed once; the index is kept, and with `pairs` only as many shards are opened
    as needed. A remote shard is fetched whole, and up to `local_bytes` of them are kept in `folder`.

    Raises TrainingError for a shard that is missing, compressed or truncated, and where there is no pair.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        pairs: int | None = None,
        folder: Path | None = None,
        local_bytes: int = LOCAL_BYTES,
        say: Callable[[str], None] = print,
    ) -> None:
        patterns = [urls] if isinstance(urls, str) else list(urls)
        self._urls = [url for pattern in patterns for part in braces(pattern) for url in expand(part)]
        if not self._urls:
            raise TrainingError(
                "no shards", key="data.urls", found=list(patterns), remedy="Give tar files, or a pattern"
            )
        self._folder = folder or user_cache() / "training" / "shards"
        self._copies = LocalCopies(self._folder / "copies", local_bytes)
        self._remotes: list[RemoteFile] = []
        self._indices: list[Index] = []
        self._open(pairs, say)
        self._ends = list(accumulate(len(index.keys) for index in self._indices))
        if not self._ends[-1]:
            raise TrainingError(
                "no pairs: no member is a picture",
                file=self._urls[0],
                found=f"{len(self._urls)} shards",
                remedy=f"Members are pairs like 000.jpg and 000.txt; pictures end in {', '.join(PICTURES)}",
            )

    @property
    def name(self) -> str:
        return self._urls[0] if len(self._urls) == 1 else f"{self._urls[0]} to {self._urls[-1]}"

    @property
    def group_sizes(self) -> Sequence[int]:
        return [len(index.keys) for index in self._indices]

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the names of the shards, the places and sizes of their members, and the captions."""
        digest = hashlib.sha256(b"shards")
        for remote, index in zip(self._remotes, self._indices, strict=True):
            digest.update(repr((remote.path.rsplit("/", 1)[-1], index.keys)).encode())
            digest.update(index.places.tobytes() + index.captions.encode())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, row: int) -> Sample:
        """Read and decode the pair of a row. Raises BadSample."""
        shard = bisect_right(self._ends, row)
        remote, index = self._remotes[shard], self._indices[shard]
        place = row - (self._ends[shard - 1] if shard else 0)
        key = f"{remote.url}: {index.keys[place]}"
        picture, length, text, text_length = (int(number) for number in index.places[place])
        if text < 0:
            raise BadSample(key, "no caption: neither .txt nor .json")
        file = self._copies.open(remote)
        caption = _caption(key, _part(file, key, text, text_length), bool(index.json[place]))
        return Sample(key, decode(key, _part(file, key, picture, length)), caption)

    def _open(self, pairs: int | None, say: Callable[[str], None]) -> None:
        """Index shard after shard, some at once, until there are enough pairs."""
        built = 0
        with ThreadPoolExecutor(_INDEXED_AT_ONCE) as pool:
            for first in range(0, len(self._urls), _INDEXED_AT_ONCE):
                some = self._urls[first : first + _INDEXED_AT_ONCE]
                for remote, index, new in pool.map(self._index, some):
                    built += new
                    self._remotes.append(remote)
                    self._indices.append(index)
                    if index.passed_over:
                        left = f"{len(index.passed_over):,} pictures of {remote.url} are passed over"
                        say(f"{left}, e.g. {min(index.passed_over)}: {_FORMS}")
                if built:
                    say(f"indexed {len(self._indices)} of {len(self._urls)} shards")
                if pairs is not None and sum(self.group_sizes) >= pairs:
                    break

    def _index(self, url: str) -> tuple[RemoteFile, Index, bool]:
        """Return a shard's index, made now unless it was kept."""
        remote = locate(url)
        path = self._folder / "indices" / f"{remote.digest}.npz"
        remedy = "Name another folder for indices: SDBENCH_CACHE=FOLDER"
        with explain_write_errors(path, "the index of a shard", remedy=remedy):
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                kept = _load_index(path)
                if kept is not None:
                    return remote, kept, False
                index = index_tar(self._copies.open(remote), url)
                _save_index(path, index)
        return remote, index, True


def index_tar(file: BinaryIO, url: str) -> Index:
    """Find the pairs of a tar file, in the order in which they begin.

    Raises TrainingError for a file that is no tar file, is compressed, or ends too early.
    """
    pairs: dict[str, dict[str, tuple[int, int]]] = {}
    file.seek(0)
    with _tar(file, url) as tar:
        try:
            for member in tar:
                match = re.fullmatch(r"((?:.*/)?[^./][^./]*)\.([^/]+)", member.name)
                if match is not None and member.isreg():
                    pairs.setdefault(match[1], {})[match[2].lower()] = (member.offset_data, member.size)
            file.seek(tar.offset)
            end = file.read(tarfile.BLOCKSIZE)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise _truncated(url, str(error)) from error
    # A writer that was killed leaves out the empty block at the end, even where no member is cut.
    if len(end) < tarfile.BLOCKSIZE or any(end):
        raise _truncated(url, "no end mark")
    keys, places, is_json = [], [], []
    for key, members in pairs.items():
        picture = next((members[ending] for ending in PICTURES if ending in members), None)
        if picture is None:
            continue
        caption = members.get("txt", members.get("json", (-1, -1)))
        keys.append(key)
        places.append((*picture, *caption))
        is_json.append("txt" not in members)
    digest = hashlib.sha256()
    for *_, offset, size in places:
        if offset >= 0:
            file.seek(offset)
            digest.update(file.read(size) + b"\0")
    read = {key + "." + ending for key in keys for ending in pairs[key] if ending in PICTURES}
    passed_over = sorted(
        f"{key}.{ending}"
        for key, members in pairs.items()
        for ending in members
        if ending.rpartition(".")[2] in _UNREAD and f"{key}.{ending}" not in read
    )
    table = np.array(places, np.int64).reshape(-1, 4)
    return Index(keys, table, np.array(is_json, np.bool_), digest.hexdigest(), passed_over)


def _tar(file: BinaryIO, url: str) -> tarfile.TarFile:
    start = file.read(6)
    file.seek(0)
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")):
        raise TrainingError(
            "a compressed tar file, which can be read only from its beginning",
            file=url,
            key="data.urls",
            remedy="Unpack it to a plain .tar: pictures hardly get smaller",
        )
    try:
        return tarfile.open(fileobj=file, mode="r:")
    except (tarfile.TarError, EOFError) as error:
        raise TrainingError(
            "not a tar file", file=url, key="data.urls", found=str(error), remedy="Fetch it again"
        ) from error


def _truncated(url: str, found: str) -> TrainingError:
    return TrainingError("a truncated tar file", file=url, found=found, remedy="Fetch or write it again")


def _part(file: BinaryIO, key: str, offset: int, size: int) -> bytes:
    content = os.pread(file.fileno(), size, offset)
    if len(content) != size:
        raise BadSample(key, f"the shard has become shorter: {len(content)} of {size} bytes are there")
    return content


def _caption(key: str, content: bytes, is_json: bool) -> str:
    try:
        text = content.decode("utf-8-sig")
        if not is_json:
            return text.strip()
        entry = json_mapping(text)
    except ValueError as error:
        raise BadSample(key, f"unreadable caption: {error}") from error
    found = [entry[name] for name in ("caption", "text", "prompt") if name in entry]
    if not found:
        raise BadSample(key, "no caption: its .json has none of the keys caption, text and prompt")
    caption = found[0]
    if isinstance(caption, list):  # of several the first is taken
        caption = caption[0] if caption else ""
    if not isinstance(caption, str):
        raise BadSample(key, f"a caption that is no text: {caption!r}")
    return caption


def _load_index(path: Path) -> Index | None:
    try:
        with np.load(path) as kept:
            keys = str(kept["keys"]).split("\n") if len(kept["places"]) else []
            return Index(keys, kept["places"], kept["json"], str(kept["captions"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # not there, of an older version, or damaged: it is made again


def _save_index(path: Path, index: Index) -> None:
    content = io.BytesIO()
    names = np.array("\n".join(index.keys))
    captions = np.array(index.captions)
    np.savez_compressed(content, keys=names, places=index.places, json=index.json, captions=captions)
    write_atomically(path, content.getvalue())
