"""Read sets of images: folders, zip and tar archives, and WebDataset shards, one picture at a time.

Pictures are decoded in threads, some ahead of the one that is asked for, and come in a fixed order.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from pytest_sdbench.base.errors import DataError
from pytest_sdbench.features.archives import SUFFIXES, Read, Source, is_image, open_sources, readable
from pytest_sdbench.protocols.image_steps import Images, apply_image_steps
from pytest_sdbench.protocols.prompts import parse_captions
from pytest_sdbench.protocols.sections import Jpeg, Resize

METADATA = "metadata.csv"
CAPTION_KEYS = ("caption", "text", "prompt")
"""Keys of a `.json` beside a picture that hold its caption."""
BATCH = 64

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_WORKERS = min(8, os.cpu_count() or 1)


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
    """List the images of folders, archives and shards, named as `open_sources` takes them.

    Raises DataError for a source that is missing, damaged, given twice or without images.
    """
    pictures: list[Picture] = []
    passed_over: Counter[str] = Counter()
    opened = [opened for text in sources for opened in open_sources(text)]
    for path, count in Counter(source.path.resolve() for source in opened).items():
        if count > 1:
            raise DataError(f"this is given {count} times", file=path, remedy="Give it once")
    for source in opened:
        mine = [name for name in source.files if is_image(name)]
        pictures += [Picture(source, name) for name in mine]
        beside = {caption for name in mine for caption in _beside(name)}
        passed_over += source.passed_over
        passed_over += Counter(
            PurePosixPath(name).suffix.lower() or "without an ending"
            for name in source.files
            if not (is_image(name) or name in beside or PurePosixPath(name).name == METADATA)
        )
    names = [source.path.name for source in opened]
    origin = ", ".join(names) if len(names) < 4 else f"{names[0]} to {names[-1]} ({len(names)})"
    found = ImageSet(tuple(pictures), passed_over, origin)
    if not pictures:
        what = "no images in this folder" if opened[0].path.is_dir() else "no images in this archive"
        remedy = f"Images end in {', '.join(SUFFIXES)}"
        raise DataError(what, file=opened[0].path, found=found.remark() or None, remedy=remedy)
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
        tables = {}
        for name, content in contents.items():
            if PurePosixPath(name).name == METADATA:
                remedy = "Correct it, or match images in another way"
                rows = parse_captions(content, source.where(name), remedy)
                tables[PurePosixPath(name).parent] = _by_name_and_stem(rows)
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
    with readable(picture.source.path), picture.source.open() as read, readable(picture.where, "image"):
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
            with readable(source.path), source.open() as read:
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


# --- pictures ---


def _contents(pictures: Sequence[Picture], read: Read) -> Iterator[Callable[[], bytes]]:
    for picture in pictures:
        if picture.source.places is None:
            yield partial(read, picture.name)
        else:
            # Threads would ask for later entries before earlier ones, and each step back is a new beginning.
            with readable(picture.where, "image"):
                content = read(picture.name)
            yield partial(bytes, content)


def _decode(
    picture: Picture, content: Callable[[], bytes], steps: tuple[Jpeg | Resize, ...], size: int | None
) -> Images:
    with readable(picture.where, "image"), Image.open(io.BytesIO(content()), formats=_FORMATS) as file:
        if file.mode[0] in "IF":
            raise ValueError(f"more than 8 bits a channel (mode {file.mode})")  # Pillow would clip them
        pixels = np.asarray(file.convert("RGB"))
    height, width, _ = pixels.shape
    if size is not None and (width, height) != (size, size):
        raise DataError(
            f"every image must have {size}x{size} pixels", file=picture.where, found=f"{width}x{height}"
        )
    return apply_image_steps(pixels[None], steps)


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
    with readable(source.path), source.open() as read:
        for name in source.in_reach(names, str):
            with readable(source.where(name), "file"):
                contents[name] = read(name)
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
    with readable(source.where(name), "caption"):
        text = content.decode("utf-8-sig")
        entry = json.loads(text) if name.endswith(".json") else text
    if isinstance(entry, dict):
        entry = next((entry[key] for key in CAPTION_KEYS if key in entry), None)
    return entry.strip() or None if isinstance(entry, str) else None
