"""Find files in folders, zip and tar archives and WebDataset shards, and read them where they lie.

Nothing is unpacked to the disk, and a name inside an archive is never taken for a path.
"""

from __future__ import annotations

import lzma
import os
import re
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from PIL import Image

from pytest_sdbench.base.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")

_TARS = {".tar": "", ".tar.gz": "gz", ".tgz": "gz", ".tar.bz2": "bz2", ".tar.xz": "xz", ".tar.zst": "zst"}
_SOURCES = "a folder of images, a .zip or .tar archive (also .tar.gz), or shards such as data-{000..012}.tar"
_BROKEN = (
    *(OSError, EOFError, ValueError, NotImplementedError, struct.error, zlib.error, lzma.LZMAError),
    *(tarfile.TarError, zipfile.BadZipFile, SyntaxError, Image.DecompressionBombError),
)
"""What the standard library and Pillow raise for damage."""

T = TypeVar("T")
Read = Callable[[str], bytes]


@dataclass(frozen=True, eq=False)
class Source:
    """One folder or archive."""

    path: Path
    files: tuple[str, ...]
    """Names inside it with `/`, in natural order; hidden ones are left out."""
    passed_over: Counter[str]
    """Entries that are no plain files, by what they are."""
    open: Callable[[], AbstractContextManager[Read]]
    """Returns what reads an entry, from any thread."""
    places: dict[str, int] | None = None
    """Of an archive that can only be read from its beginning: where each entry lies."""

    def in_reach(self, entries: Sequence[T], name: Callable[[T], str]) -> list[T]:
        """Return entries in the order in which they are best read: their own, where any can be reached."""
        places = self.places
        return list(entries) if places is None else sorted(entries, key=lambda entry: places[name(entry)])

    def where(self, name: str) -> str:
        """Return what messages call an entry."""
        return f"{self.path}/{name}"


def open_sources(text: str | Path) -> Iterator[Source]:
    """Yield the folder or the archives that a name stands for.

    A folder without images that holds archives stands for these; `{000..012}` and `{a,b}` are written out.
    Raises DataError for a source that is missing or damaged.
    """
    for name in [str(text)] if Path(text).exists() else braces(str(text)):
        path = Path(name)
        if not path.exists():
            raise DataError("there is no such folder or archive", file=path, remedy=f"Give {_SOURCES}")
        if not path.is_dir():
            yield _archive(path)
            continue
        folder = _folder(path)
        archives = [name for name in folder.files if name.lower().endswith((".zip", *_TARS))]
        if archives and not any(is_image(name) for name in folder.files):
            yield from (_archive(path / name) for name in archives)
        else:
            yield folder


def _folder(path: Path) -> Source:
    files, passed_over = [], Counter[str]()

    def refuse(error: OSError) -> None:
        raise DataError("this folder cannot be read", file=error.filename, found=error.strerror) from error

    for folder, inner, names in os.walk(path, onerror=refuse):
        here = Path(folder).relative_to(path)
        linked = [name for name in inner if Path(folder, name).is_symlink() and not _is_hidden(name)]
        passed_over["linked folders"] += len(linked)
        inner[:] = [name for name in inner if not _is_hidden(name)]
        files += [(here / name).as_posix() for name in names if not _is_hidden(name)]
    return Source(
        path,
        _in_order(path, files),
        +passed_over,
        lambda: nullcontext(lambda name: (path / name).read_bytes()),
    )


def _archive(path: Path) -> Source:
    if path.name.lower().endswith(".zip"):
        return _zip(path)
    ending = next((ending for ending in _TARS if path.name.lower().endswith(ending)), None)
    if ending is None:
        raise DataError("neither a folder nor an archive", file=path, remedy=f"Give {_SOURCES}")
    if (_TARS[ending] or "tar") not in tarfile.TarFile.OPEN_METH:
        raise DataError(
            f"this version of Python does not read {ending}", file=path, remedy="Make it a plain .tar"
        )
    return _tar(path, _TARS[ending])


def _zip(path: Path) -> Source:
    names, inside, passed_over = [], {}, Counter[str]()
    with readable(path), zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.is_dir() or _is_hidden(entry.filename):
                continue
            if entry.flag_bits & 1:
                raise DataError("this entry has a password", file=path, key=entry.filename)
            if stat.S_ISLNK(entry.external_attr >> 16):
                passed_over["links"] += 1
            else:
                names.append(PurePosixPath(entry.filename).as_posix())  # without `./`
                inside[names[-1]] = entry.filename

    @contextmanager
    def opened() -> Iterator[Read]:
        with zipfile.ZipFile(path) as archive:
            yield lambda name: archive.read(inside[name])

    return Source(path, _in_order(path, names), passed_over, opened)


def _tar(path: Path, compression: str) -> Source:
    mode: Any = f"r:{compression}"
    names, members, passed_over = [], {}, Counter[str]()
    archive: Any
    with readable(path), tarfile.open(path, mode) as archive:
        for member in archive:
            if member.isdir() or _is_hidden(member.name):
                continue
            if member.isreg() and not member.issparse():
                names.append(PurePosixPath(member.name).as_posix())
                members[names[-1]] = member
            else:
                passed_over["links and other special entries"] += 1
        archive.fileobj.seek(archive.offset)
        end = archive.fileobj.read(tarfile.BLOCKSIZE)
        # A writer that was killed leaves out the empty block at the end, even where no member is cut.
        if len(end) < tarfile.BLOCKSIZE or any(end):
            raise EOFError("no end mark: it was cut short")

    @contextmanager
    def opened() -> Iterator[Read]:
        lock = threading.Lock()
        archive: Any
        with tarfile.open(path, mode) as archive:

            def read(name: str) -> bytes:
                with lock:
                    return bytes(archive.extractfile(members[name]).read())

            yield read

    places = {name: member.offset_data for name, member in members.items()} if compression else None
    return Source(path, _in_order(path, names), passed_over, opened, places)


@contextmanager
def readable(place: Path | str, what: str = "archive") -> Iterator[None]:
    """Turn what is raised for damage into a DataError that names the archive, or what in it is damaged."""
    try:
        yield
    except _BROKEN as problem:
        remedy = "Remove it or fetch it again" if what == "image" else "Fetch it or write it again"
        raise DataError(f"this {what} cannot be read: {problem}", file=place, remedy=remedy) from problem


def _in_order(path: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Sort names as people do, 2.png before 10.png; raise DataError for one that stands twice."""
    for name, count in Counter(names).items():
        if count > 1:
            raise DataError(f"this entry stands {count} times in the archive", file=path, key=name)

    def key(name: str) -> tuple[Any, str]:
        parts = [re.split(r"([0-9]+)", part) for part in name.split("/")]
        return [[int(text) if k % 2 else text for k, text in enumerate(part)] for part in parts], name

    return tuple(sorted(names, key=key))


def braces(pattern: str) -> list[str]:
    """Write out `{000..010}` (numbers, with their zeros) and `{a,b}`, as shells do."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    if match[3] is not None:
        parts = match[3].split(",")
    else:
        first, last = int(match[1]), int(match[2])
        padded = match[1].startswith("0") or match[2].startswith("0")
        width = max(len(match[1]), len(match[2])) if padded else 0
        step = 1 if first <= last else -1
        parts = [f"{number:0{width}}" for number in range(first, last + step, step)]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [before + part + rest for part in parts for rest in braces(after)]


def is_image(name: str) -> bool:
    """Tell an image by its ending."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _is_hidden(name: str) -> bool:
    """Say whether a file, or a folder above it, is none that a person put there."""
    return any(
        part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in name.split("/")
    )
