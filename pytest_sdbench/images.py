"""Read sets of images: folders, zip and tar archives, and WebDataset shards, one picture at a time.

Nothing is unpacked to the disk, and a name inside an archive is never taken for a path. Pictures are decoded
in threads, some ahead of the one that is asked for, and come in a fixed order.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import re
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from pytest_sdbench.errors import DataError
from pytest_sdbench.image_path import Images, apply_image_steps
from pytest_sdbench.prompts import parse_captions
from pytest_sdbench.protocol import Jpeg, Resize

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
METADATA = "metadata.csv"
CAPTION_KEYS = ("caption", "text", "prompt")
"""Keys of a `.json` beside a picture that hold its caption."""
BATCH = 64

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_TARS = {".tar": "tar", ".tar.gz": "gz", ".tgz": "gz", ".tar.bz2": "bz2", ".tar.xz": "xz", ".tar.zst": "zst"}
_SOURCES = "a folder of images, a .zip or .tar archive (also .tar.gz), or shards such as data-{000..012}.tar"
_WORKERS = min(8, os.cpu_count() or 1)
_BROKEN = (
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
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


@dataclass(frozen=True, eq=False)
class Picture:
    """One image of a source, not read yet."""

    source: Source
    name: str

    @property
    def where(self) -> str:
        """What messages call it."""
        return self.source.where(self.name)

    @property
    def stem(self) -> str:
        """The file's name without its folder and its ending."""
        return PurePosixPath(self.name).stem


@dataclass(frozen=True)
class ImageSet:
    """All images of one or more sources: source by source, each in natural order."""

    pictures: tuple[Picture, ...]
    passed_over: Counter[str]
    """What is no image, by its ending; files with the captions of images do not count."""
    origin: str
    """The names of the sources, for people."""

    def remark(self) -> str:
        """Say what was passed over; empty if nothing was."""
        found = ", ".join(f"{count:,} {what}" for what, count in sorted(self.passed_over.items()))
        return f"passed over, as no images: {found}" if found else ""


def open_images(sources: Sequence[str | Path]) -> ImageSet:
    """List the images of folders, archives and shards.

    A folder without images that holds archives stands for these; `{000..012}` and `{a,b}` in a name are
    written out. Raises DataError for a source that is missing, damaged, given twice or without images.
    """
    pictures: list[Picture] = []
    passed_over: Counter[str] = Counter()
    opened = [opened for text in sources for opened in _sources(text)]
    for path, count in Counter(source.path.resolve() for source in opened).items():
        if count > 1:
            raise DataError(f"this is given {count} times", file=path, remedy="Give it once")
    for source in opened:
        mine = [Picture(source, name) for name in source.files if _is_image(name)]
        pictures += mine
        beside = {caption for picture in mine for caption in _beside(picture.name)}
        passed_over += source.passed_over
        passed_over += Counter(
            PurePosixPath(name).suffix.lower() or "without an ending"
            for name in source.files
            if not (_is_image(name) or name in beside or PurePosixPath(name).name == METADATA)
        )
    found = ImageSet(tuple(pictures), passed_over, _together([source.path.name for source in opened]))
    if not pictures:
        raise DataError(
            "no images in this folder" if opened[0].path.is_dir() else "no images in this archive",
            file=opened[0].path,
            found=found.remark() or None,
            remedy=f"Images end in {', '.join(SUFFIXES)}",
        )
    return found


def read_captions(images: ImageSet) -> list[str | None]:
    """Return the caption that comes with each image; None where none does.

    It is that of a `metadata.csv` (`file_name,text`) in the folder of the image or above it, or else the text
    of the `.txt`, or the `caption`, `text` or `prompt` of the `.json`, of the same name.
    Raises DataError for one that cannot be read.
    """
    found: dict[Picture, str] = {}
    groups: dict[Source, list[Picture]] = {}
    for picture in images.pictures:
        groups.setdefault(picture.source, []).append(picture)
    for source, pictures in groups.items():
        contents = _texts(source, pictures)
        listed = {
            name: parse_captions(content, source.where(name), "Correct it, or match images in another way")
            for name, content in contents.items()
            if PurePosixPath(name).name == METADATA
        }
        tables = {PurePosixPath(name).parent: _by_name_and_stem(rows) for name, rows in listed.items()}
        for picture in pictures:
            caption = _listed(picture.name, tables)
            for name in _beside(picture.name):
                if caption is None and name in contents:
                    caption = _caption(source, name, contents[name])
            if caption is not None:
                found[picture] = caption
    return [found.get(picture) for picture in images.pictures]


def size_of(picture: Picture) -> tuple[int, int]:
    """Return width and height of an image; raises DataError for one that is damaged."""
    with _readable(picture.source.path), picture.source.open() as read, _explained(picture):
        return Image.open(io.BytesIO(read(picture.name)), formats=_FORMATS).size


def decode(
    images: ImageSet,
    steps: Sequence[Jpeg | Resize] = (),
    *,
    order: Sequence[int] | None = None,
    size: int | None = None,
) -> Iterator[tuple[int, Images]]:
    """Yield the number of each image in the set, and its pixels after the steps: uint8 [1, H, W, 3].

    They come source by source in the order of `order` (default: all, in their own), but for compressed tar
    archives, which are read from beginning to end. Raises DataError for an image that is damaged, or that is
    no square of `size` pixels.
    """
    groups: dict[Source, list[int]] = {}
    for number in range(len(images.pictures)) if order is None else order:
        groups.setdefault(images.pictures[number].source, []).append(number)
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="decode") as pool:
        for source, numbers in groups.items():
            numbers = source.in_reach(numbers, lambda number: images.pictures[number].name)
            pictures = [images.pictures[number] for number in numbers]
            with _readable(source.path), source.open() as read:
                tasks = (
                    partial(_decode, picture, content, tuple(steps), size)
                    for picture, content in zip(pictures, _contents(pictures, read), strict=True)
                )
                with closing(_ahead(pool, tasks)) as ready:
                    yield from zip(numbers, ready, strict=True)


def in_batches(decoded: Iterable[tuple[int, Images]]) -> Iterator[tuple[list[int], Images]]:
    """Join what `decode` yields to uint8 batches [B, H, W, 3]; a batch holds one size."""
    numbers: list[int] = []
    batch: list[Images] = []
    for number, image in decoded:
        if batch and (len(batch) == BATCH or batch[0].shape != image.shape):
            yield numbers, np.concatenate(batch)
            numbers, batch = [], []
        numbers.append(number)
        batch.append(image)
    if batch:
        yield numbers, np.concatenate(batch)


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


# --- sources ---


def _sources(text: str | Path) -> Iterator[Source]:
    for name in [str(text)] if Path(text).exists() else braces(str(text)):
        path = Path(name)
        if not path.exists():
            raise DataError("there is no such folder or archive", file=path, remedy=f"Give {_SOURCES}")
        if not path.is_dir():
            yield _archive(path)
            continue
        folder = _folder(path)
        archives = [name for name in folder.files if _is_archive(name)]
        if archives and not any(_is_image(name) for name in folder.files):
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
        _natural(files),
        +passed_over,
        lambda: nullcontext(lambda name: (path / name).read_bytes()),
    )


def _archive(path: Path) -> Source:
    if path.name.lower().endswith(".zip"):
        return _zip(path)
    ending = next((ending for ending in _TARS if path.name.lower().endswith(ending)), None)
    if ending is None:
        raise DataError("neither a folder nor an archive", file=path, remedy=f"Give {_SOURCES}")
    if _TARS[ending] not in tarfile.TarFile.OPEN_METH:
        raise DataError(
            f"this version of Python does not read {ending}", file=path, remedy="Make it a plain .tar"
        )
    return _tar(path, _TARS[ending])


def _zip(path: Path) -> Source:
    names: list[tuple[str, str]] = []
    passed_over = Counter[str]()
    with _readable(path), zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.is_dir() or _is_hidden(entry.filename):
                continue
            if entry.flag_bits & 1:
                raise DataError("this entry has a password", file=path, key=entry.filename)
            if stat.S_ISLNK(entry.external_attr >> 16):
                passed_over["links"] += 1
            else:
                names.append((_plain(entry.filename), entry.filename))
    inside = dict(names)

    @contextmanager
    def opened() -> Iterator[Read]:
        with zipfile.ZipFile(path) as archive:
            yield lambda name: archive.read(inside[name])

    return Source(path, _natural(_unique(path, [name for name, _ in names])), passed_over, opened)


def _tar(path: Path, compression: str) -> Source:
    places: dict[str, tuple[int, int]] = {}
    names, passed_over = [], Counter[str]()
    archive: Any
    with _readable(path), _open_tar(path, compression) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # it would keep them all
            if member.isdir() or _is_hidden(member.name):
                continue
            if member.isreg() and not member.issparse():
                names.append(_plain(member.name))
                places[names[-1]] = (member.offset_data, member.size)
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
        with _open_tar(path, compression) as archive:

            def read(name: str) -> bytes:
                offset, size = places[name]
                with lock:
                    archive.fileobj.seek(offset)
                    content: bytes = archive.fileobj.read(size)
                if len(content) != size:
                    raise EOFError(f"{len(content)} of {size} bytes are there")
                return content

            yield read

    order = {name: offset for name, (offset, _) in places.items()} if compression != "tar" else None
    return Source(path, _natural(_unique(path, names)), passed_over, opened, order)


def _open_tar(path: Path, compression: str) -> Any:
    return tarfile.open(path, "r:" if compression == "tar" else f"r:{compression}")  # type: ignore[call-overload]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except _BROKEN as problem:
        raise DataError(
            f"this archive cannot be read: {problem}", file=path, remedy="Fetch it or write it again"
        ) from problem


def _unique(path: Path, names: Sequence[str]) -> Sequence[str]:
    for name, count in Counter(names).items():
        if count > 1:
            raise DataError(f"this entry stands {count} times in the archive", file=path, key=name)
    return names


def _natural(names: Iterable[str]) -> tuple[str, ...]:
    """Sort names as people do: 2.png before 10.png."""

    def key(name: str) -> tuple[Any, str]:
        parts = [re.split(r"([0-9]+)", part) for part in name.split("/")]
        return [[int(text) if k % 2 else text for k, text in enumerate(part)] for part in parts], name

    return tuple(sorted(names, key=key))


def _plain(name: str) -> str:
    """Return the name of an entry without `./` in front of it."""
    return PurePosixPath(name).as_posix()


def _together(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]} to {names[-1]} ({len(names)})"


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _is_archive(name: str) -> bool:
    return name.lower().endswith((".zip", *_TARS))


def _is_hidden(name: str) -> bool:
    """Say whether a file, or a folder above it, is none that a person put there."""
    return any(
        part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in name.split("/")
    )


# --- pictures ---


def _contents(pictures: Sequence[Picture], read: Read) -> Iterator[Callable[[], bytes]]:
    for picture in pictures:
        if picture.source.places is None:
            yield partial(read, picture.name)
        else:
            # Threads would ask for later entries before earlier ones, and each step back is a new beginning.
            with _explained(picture):
                content = read(picture.name)
            yield partial(bytes, content)


def _decode(
    picture: Picture, content: Callable[[], bytes], steps: tuple[Jpeg | Resize, ...], size: int | None
) -> Images:
    with _explained(picture), Image.open(io.BytesIO(content()), formats=_FORMATS) as file:
        if file.mode[0] in "IF":
            raise ValueError(f"more than 8 bits a channel (mode {file.mode})")  # Pillow would clip them
        pixels = np.asarray(file.convert("RGB"))
    height, width, _ = pixels.shape
    if size is not None and (width, height) != (size, size):
        raise DataError(
            f"every image must have {size}x{size} pixels", file=picture.where, found=f"{width}x{height}"
        )
    return apply_image_steps(pixels[None], steps)


@contextmanager
def _explained(picture: Picture) -> Iterator[None]:
    try:
        yield
    except (*_BROKEN, SyntaxError, Image.DecompressionBombError) as problem:
        raise DataError(
            f"this image cannot be read: {problem}",
            file=picture.where,
            remedy="Remove it or fetch it again",
        ) from problem


def _ahead(pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], Images]]) -> Generator[Images, None, None]:
    """Yield the results of tasks in their order; those of the next batch are computed meanwhile."""
    waiting: deque[Future[Images]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) > BATCH:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


# --- captions ---


def _beside(name: str) -> list[str]:
    """Return where the caption of an image may lie; the key of a WebDataset sample ends at its first dot."""
    path = PurePosixPath(name)
    stems = dict.fromkeys((path.stem, path.name.partition(".")[0]))
    return [path.with_name(f"{stem}{ending}").as_posix() for ending in (".txt", ".json") for stem in stems]


def _texts(source: Source, pictures: Sequence[Picture]) -> dict[str, bytes]:
    """Return the files of a source that may hold captions."""
    wanted = {name for picture in pictures for name in _beside(picture.name)}
    names = [name for name in source.files if name in wanted or PurePosixPath(name).name == METADATA]
    contents = {}
    with _readable(source.path), source.open() as read:
        for name in source.in_reach(names, str):
            try:
                contents[name] = read(name)
            except _BROKEN as problem:
                raise DataError(
                    f"this cannot be read: {problem}", file=source.where(name), remedy="Fetch it again"
                ) from problem
    return contents


def _by_name_and_stem(rows: dict[str, str]) -> dict[str, str]:
    """Return captions by file name, and by what is left of it without its ending: codecs change that."""
    stems = {PurePosixPath(name).with_suffix("").as_posix(): text for name, text in rows.items()}
    return {**stems, **{PurePosixPath(name).as_posix(): text for name, text in rows.items()}}


def _listed(name: str, tables: dict[PurePosixPath, dict[str, str]]) -> str | None:
    path = PurePosixPath(name)
    for folder in path.parents:
        table = tables.get(folder, {})
        inside = path.relative_to(folder)
        caption = table.get(inside.as_posix(), table.get(inside.with_suffix("").as_posix()))
        if caption is not None:
            return caption
    return None


def _caption(source: Source, name: str, content: bytes) -> str | None:
    try:
        text = content.decode("utf-8-sig")
        entry = json.loads(text) if name.endswith(".json") else text
    except ValueError as problem:
        raise DataError(f"this caption cannot be read: {problem}", file=source.where(name)) from problem
    if isinstance(entry, dict):
        entry = next((entry[key] for key in CAPTION_KEYS if key in entry), None)
    return entry.strip() or None if isinstance(entry, str) else None
