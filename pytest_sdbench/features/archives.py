"""Find files in folders, zip and tar archives and WebDataset shards, and read them where they lie.

Nothing is unpacked to the disk, and a name inside an archive is never taken for a path.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

from pytest_sdbench.base.errors import DataError, SdbenchError, first_line
from pytest_sdbench.base.files import is_pointer

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")

LARGEST = 2**27
"""Bytes that one file of a source may have, as it comes out of its archive."""
ENTRIES = 1_500_000
"""Entries that one archive may have, whose listing stays below 1 GB, and shards of one pattern."""

_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAGIC = {b"PK\3\4": "zip", b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ": "lzma"}
_MAGIC |= {b"\x28\xb5\x2f\xfd": "compression.zstd"}
"""How archives begin, whatever their names say, and what reads them; a plain tar begins with a name."""
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
_KINDS |= {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
_INDEX = 2**25
"""Bytes that a zip's list of its entries may have, which take 1 GB when read, or a tar's before an entry."""
_EXPANSION, _FREE = 100, 2**27
"""How many times its own size an archive may unpack to, and the bytes from which on that counts."""
_LEAST, _FREE_ENTRIES = 64, 20_000
"""The fewest bytes that an entry takes in an archive of images, and the entries from which on that counts."""
_SPLIT = "If it is what it should be, split it into shards, or unpack it and give the folder"
_SOURCES = "a folder of images, a .zip or .tar archive (also .tar.gz), or shards such as data-{000..012}.tar"

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
    beside: tuple[Path, bool] | None = None
    """Of an archive: the folder that it lies in, and whether that was given, with all that is below it."""

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
    for name in [str(text)] if os.path.exists(text) else braces(str(text)):
        path = Path(name)
        if "://" in name and not os.path.exists(path):
            remedy = f"Download it, and give {_SOURCES}"
            raise DataError("a URL: images are read from this machine alone", found=name, remedy=remedy)
        if not os.path.exists(path):
            raise DataError("there is no such folder or archive", file=path, remedy=f"Give {_SOURCES}")
        if not path.is_dir():
            yield replace(_archive(path), beside=(path.parent, False))
            continue
        folder = _folder(path)
        archives = [name for name in folder.files if name.lower().endswith(_ENDINGS)]
        if archives and not any(is_image(name) for name in folder.files):
            yield from (replace(_archive(path / name), beside=(path, True)) for name in archives)
        else:
            yield folder


def around(folder: Path, deep: bool) -> Source:
    """Return what lies in a folder and is no archive, `deep` also what is in the folders below it."""
    found = _folder(folder, deep)
    return replace(found, files=tuple(name for name in found.files if not name.lower().endswith(_ENDINGS)))


def _folder(path: Path, deep: bool = True) -> Source:
    files, passed_over = [], Counter[str]()

    def refuse(error: OSError) -> None:
        raise DataError("this folder cannot be read", file=error.filename, found=error.strerror) from error

    for folder, inner, names in os.walk(path, onerror=refuse):
        here = Path(folder).relative_to(path)
        linked = [name for name in inner if Path(folder, name).is_symlink() and not _is_hidden(name)]
        passed_over["linked folders"] += len(linked)
        inner[:] = [name for name in inner if deep and not _is_hidden(name)]
        files += [(here / name).as_posix() for name in names if not _is_hidden(name)]
    return Source(
        path,
        _in_order(path, files),
        +passed_over,
        lambda: nullcontext(lambda name: _read(path / name)),
    )


def _archive(path: Path) -> Source:
    if not path.name.lower().endswith(_ENDINGS):
        raise DataError("neither a folder nor an archive", file=path, remedy=f"Give {_SOURCES}")
    with readable(path), _regular(path).open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
        check_pointer(head)
    module = "zip" if path.name.lower().endswith(".zip") else "io"
    module = next((module for magic, module in _MAGIC.items() if head.startswith(magic)), module)
    module = "io" if head[257:262] == b"ustar" else module
    if module == "compression.zstd" and "zst" not in tarfile.TarFile.OPEN_METH:
        remedy = "Make it a plain .tar"
        raise DataError("this version of Python does not read .tar.zst", file=path, remedy=remedy)
    return _zip(path) if module == "zip" else _tar(path, module)


def _zip(path: Path) -> Source:
    names, inside, passed_over = [], {}, Counter[str]()
    with readable(path), path.open("rb") as file, zipfile.ZipFile(guarded(file, _INDEX)) as archive:
        entries = archive.infolist()
        size = path.stat().st_size
        _check_bounds(path, size, len(entries), sum(entry.file_size for entry in entries))
        for entry in entries:
            if entry.is_dir() or _is_hidden(entry.filename):
                continue
            if entry.flag_bits & 1:
                raise DataError("this entry has a password", file=path, key=entry.filename)
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # zipfile unpacks these to whatever size, before it looks at the one that they declare.
                what = f"packed in a way that is not read (method {entry.compress_type})"
                remedy = "Pack it again, with deflate or none"
                raise DataError(what, file=path, key=entry.filename, remedy=remedy)
            if stat.S_ISLNK(entry.external_attr >> 16):
                passed_over["links"] += 1
            else:
                # Old tools of Windows write backslashes; and without `./`.
                names.append(PurePosixPath(entry.filename.replace("\\", "/")).as_posix())
                inside[names[-1]] = entry

    @contextmanager
    def opened() -> Iterator[Read]:
        with zipfile.ZipFile(path) as archive:

            def read(name: str) -> bytes:
                _check_size(inside[name].file_size)
                # Without a size, it would unpack more than is declared.
                with archive.open(inside[name]) as file:
                    return file.read(LARGEST)

            yield read

    return Source(path, _in_order(path, names), passed_over, opened)


def _tar(path: Path, module: str) -> Source:
    places, passed_over, before = dict[str, tuple[int, int]](), Counter[str](), -1
    names = []
    size = path.stat().st_size

    def unpacked() -> Any:
        return import_module(module).open(path, "rb")

    with readable(path), unpacked() as stream:
        archive: Any = tarfile.TarFile(path, fileobj=guarded(stream, _INDEX))
        for count, member in enumerate(archive, 1):
            archive.members.clear()  # it keeps them all, at 500 bytes each or more
            _check_bounds(path, size, count, archive.offset)
            if archive.offset <= before:
                raise ValueError("an entry of less than nothing")
            before = archive.offset
            if member.isdir() or _is_hidden(member.name):
                continue
            if member.isreg() and not member.issparse():
                names.append(PurePosixPath(member.name).as_posix())
                places[names[-1]] = member.offset_data, member.size
            else:
                passed_over["links and other special entries"] += 1
        archive.fileobj.seek(archive.offset)
        end = archive.fileobj.read(tarfile.BLOCKSIZE)
        # A writer that was killed leaves out the empty block at the end, even where no member is cut.
        if len(end) < tarfile.BLOCKSIZE or any(end):
            raise EOFError("no end mark: it was cut short")
        if archive.fileobj.read(_INDEX).strip(b"\0"):
            what = "more follows behind the end of this archive: several were joined"
            raise DataError(what, remedy="Give them one by one, or extract all: tar --ignore-zeros -xf")

    @contextmanager
    def opened() -> Iterator[Read]:
        lock = threading.Lock()
        with unpacked() as stream:

            def read(name: str) -> bytes:
                offset, size = places[name]
                _check_size(size)
                with lock:
                    stream.seek(offset)
                    content = bytes(stream.read(size))
                if len(content) < size:
                    raise EOFError("it was cut short")
                return content

            yield read

    in_reach = None if module == "io" else {name: offset for name, (offset, _) in places.items()}
    return Source(path, _in_order(path, names), passed_over, opened, in_reach)


@contextmanager
def readable(place: Path | str, what: str = "archive") -> Iterator[None]:
    """Turn what is raised for damage into a DataError that names the archive, or what in it is damaged."""
    try:
        yield
    except SdbenchError as known:
        raise known if known.file else known.at(place) from known.__cause__
    except Exception as problem:  # the decoders of so many formats raise errors of every kind
        remedy = "Remove it or fetch it again" if what == "image" else "Fetch it or write it again"
        message = f"this {what} cannot be read: {first_line(problem).rstrip('.')}"
        raise DataError(message, file=place, remedy=remedy) from problem


def check_pointer(content: bytes) -> None:
    """Raise DataError for what Git LFS leaves in the place of a file."""
    if is_pointer(content):
        raise DataError("this is a Git LFS pointer, not the file", remedy="Fetch the file: git lfs pull")


def guarded(file: BinaryIO, largest: int) -> Any:
    """Return an open file that refuses to read more than so many bytes at once.

    What a file declares of itself is only a claim, and the libraries allocate whatever it says.
    """
    return _Guard(file, largest)


class _Guard:
    def __init__(self, file: BinaryIO, largest: int) -> None:
        self._file, self._largest = file, largest

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size if 0 <= size <= self._largest else self._largest + 1)
        if len(content) > self._largest:
            raise DataError(f"a list or a header of more than {self._largest:,} bytes", remedy=_SPLIT)
        return content


def _check_bounds(path: Path, size: int, entries: int, unpacked: int) -> None:
    """Raise DataError for an archive of `size` bytes that holds more than so many bytes of images can be."""
    if entries > min(ENTRIES, _FREE_ENTRIES + size // _LEAST):
        message = f"this archive of {size:,} bytes has {entries:,} entries or more"
        raise DataError(message, file=path, remedy=_SPLIT)
    if unpacked > max(_FREE, _EXPANSION * size):
        message = f"this archive of {size:,} bytes unpacks to {unpacked:,} or more, as no images do"
        raise DataError(message, file=path, remedy=_SPLIT)


def _check_size(size: int) -> None:
    if size > LARGEST:
        raise ValueError(f"{size:,} bytes are more than {LARGEST:,}")


def _regular(path: Path) -> Path:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        remedy = "Give regular files alone"
        raise DataError(f"this is {_KINDS.get(stat.S_IFMT(mode), 'no file')}", file=path, remedy=remedy)
    return path


def _read(path: Path) -> bytes:
    _check_size(_regular(path).stat().st_size)
    return path.read_bytes()


def _in_order(path: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Sort names as people do, 2.png before 10.png; raise DataError for one that stands twice."""
    for name, count in Counter(names).items():
        if count > 1:
            raise DataError(f"this entry stands {count} times in the archive", file=path, key=name)

    def number(match: re.Match[str]) -> str:
        digits = match[0].lstrip("0")
        return f"\1{len(digits):06}{digits}"

    def key(name: str) -> tuple[str, str]:
        # One text for each: a million lists of numbers would take more memory than the archive's own.
        return re.sub(r"[0-9]+", number, name.replace("/", "\0")), name

    return tuple(sorted(names, key=key))


def braces(pattern: str) -> list[str]:
    """Write out `{000..010}` (numbers of nine digits at most, with their zeros) and `{a,b}`, as shells do.

    Raises DataError for more numbers than an archive may have entries.
    """
    made, end = [""], 0
    for match in re.finditer(r"\{(\d{1,9})\.\.(\d{1,9})\}|\{([^{}]*,[^{}]*)\}", pattern):
        if match[3] is not None:
            parts: Sequence[object] = match[3].split(",")
            width = 0
        else:
            first, last = int(match[1]), int(match[2])
            padded = match[1].startswith("0") or match[2].startswith("0")
            width = max(len(match[1]), len(match[2])) if padded else 0
            parts = range(first, last + 1) if first <= last else range(first, last - 1, -1)
        if len(made) * len(parts) > ENTRIES:
            raise DataError("a pattern of too many shards", found=pattern, remedy=f"Give {ENTRIES:,} at most")
        before, end = pattern[end : match.start()], match.end()
        made = [f"{start}{before}{str(part).zfill(width)}" for start in made for part in parts]
    return [start + pattern[end:] for start in made]


def is_image(name: str) -> bool:
    """Tell an image by its ending."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _is_hidden(name: str) -> bool:
    """Say whether a file, or a folder above it, is none that a person put there."""
    return any(
        part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in name.split("/")
    )
