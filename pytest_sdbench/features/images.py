"""Read sets of images: folders, zip and tar archives, and WebDataset shards, one picture at a time.

Pictures are decoded in threads, some ahead of the one that is asked for, and come in a fixed order.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
from PIL import Image

from pytest_sdbench.base.errors import DataError
from pytest_sdbench.base.paths import real
from pytest_sdbench.features import captions
from pytest_sdbench.features.archives import SUFFIXES, Read, Source, around, is_image, open_sources, readable
from pytest_sdbench.features.pixels import open_picture, pixels_of
from pytest_sdbench.protocols.image_steps import Images, apply_image_steps
from pytest_sdbench.protocols.sections import Jpeg, Resize

BATCH = 64

_LARGE = 2**22
"""Pixels from which on pictures are decoded one at a time, and are a batch each: memory has its bounds."""
_WORKERS = min(8, os.cpu_count() or 1)

T = TypeVar("T")
_Decoded = tuple[Images, Sequence[str]]


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
    for path, count in Counter(real(source.path) for source in opened).items():
        if count > 1:
            raise DataError(f"this is given {count} times", file=path, remedy="Give it once")
    for source in opened:
        mine = [name for name in source.files if is_image(name)]
        pictures += [Picture(source, name) for name in mine]
        beside = {caption for name in mine for caption in captions.beside(name)}
        passed_over += source.passed_over
        passed_over += Counter(
            PurePosixPath(name).suffix.lower() or "without an ending"
            for name in source.files
            if not (is_image(name) or name in beside or captions.is_table(name))
        )
    names = [source.path.name for source in opened]
    origin = ", ".join(names) if len(names) < 4 else f"{names[0]} to {names[-1]} ({len(names)})"
    found = ImageSet(tuple(pictures), passed_over, origin)
    if not pictures:
        what = "no images in this folder" if opened[0].path.is_dir() else "no images in this archive"
        remedy = f"Images end in {', '.join(SUFFIXES)}; archives inside archives are not opened"
        raise DataError(what, file=opened[0].path, found=found.remark() or None, remedy=remedy)
    return found


def read_captions(images: ImageSet, *, outside: bool = False) -> list[list[str]]:
    """Return the captions that come with each image, as `captions.captions_of` finds them.

    With `outside`, images of an archive in which none has a caption have those that lie around it. Raises
    DataError for a file of captions that cannot be read, and where a table names other images alone, or
    something looks like captions, while no image has one.
    """
    groups: dict[Source, list[str]] = {}
    for picture in images.pictures:
        groups.setdefault(picture.source, []).append(picture.name)
    tables = {}
    for source, names in groups.items():
        tables[source] = captions.captions_of(source, names)
        if outside and source.beside and not any(tables[source].values()):
            tables[source] = captions.captions_of(around(*source.beside), names)
    found = [tables[picture.source][picture.name] for picture in images.pictures]
    if not any(found):
        for source, names in groups.items():
            if named := captions.first_named(source, names):
                raise _of_others(*named, names[0])
            _refuse(source, captions.like_captions(source, names))
    return found


def check_around(images: ImageSet) -> None:
    """Raise DataError where something around the archives that images are in looks like their captions."""
    names = [picture.name for picture in images.pictures]
    for folder, given in dict.fromkeys(each.source.beside for each in images.pictures if each.source.beside):
        source = around(folder, given)
        # Files around an archive that was named itself may be anybody's: their names have to say it.
        _refuse(source, captions.like_captions(source, names, by_content=given))


def _of_others(table: str, row: str, file: str, image: str) -> DataError:
    """Return the error of a table that names none of the images, by its first row and an image."""
    what = f"none of the images, such as {image}, is named in this table of captions"
    remedy = "Write the path of each image into file_name, from the folder of the table on, or say how they "
    remedy += "are matched: --match name, index or order"
    return DataError(what, file=table, key=f"{row}, file_name", found=file, remedy=remedy)


def _refuse(source: Source, alike: Iterator[str]) -> None:
    if like := list(islice(alike, 3)):
        what = "this looks like captions, and gives none of the images one"
        remedy = f"Captions are read from {', '.join(captions.TABLES)} with file_name and text, "
        remedy += "caption or prompt, or from a .txt beside each image; of an archive, from inside it. "
        remedy += "If these are none, say how images are matched: --match name, index or order"
        raise DataError(what, file=source.where(like[0]), found=like[1:] or None, remedy=remedy)


def size_of(picture: Picture) -> tuple[int, int]:
    """Return width and height of an image; raises DataError for one that is damaged."""
    with readable(picture.source.path), picture.source.open() as read, readable(picture.where, "image"):
        return open_picture(read(picture.name)).size


def decode(
    images: ImageSet,
    steps: Sequence[Jpeg | Resize] = (),
    *,
    order: Sequence[int] | None = None,
    size: int | None = None,
    background: str | None = None,
    seen: Counter[str] | None = None,
) -> Iterator[tuple[int, Images]]:
    """Yield the number of each image in the set, and its pixels after the steps: uint8 [1, H, W, 3].

    They come source by source in the order of `order` (default: all, in their own), but for compressed tar
    archives, which are read from beginning to end. `background` and what `seen` counts are those of
    `pixels.pixels_of`. Raises DataError for an image that is damaged, or that is no square of `size` pixels.
    """
    seen = Counter() if seen is None else seen
    groups: dict[Source, list[int]] = {}
    for number in range(len(images.pictures)) if order is None else order:
        groups.setdefault(images.pictures[number].source, []).append(number)
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="decode") as pool:
        for source, numbers in groups.items():
            numbers = source.in_reach(numbers, lambda number: images.pictures[number].name)
            pictures = [images.pictures[number] for number in numbers]
            with readable(source.path), source.open() as read:
                tasks = (
                    partial(_decode, picture, content, tuple(steps), size, background)
                    for picture, content in zip(pictures, _contents(pictures, read), strict=True)
                )
                with closing(_ahead(pool, tasks)) as ready:
                    for number, found in zip(numbers, ready, strict=True):
                        pixels, told = found() if callable(found) else found
                        seen.update(told)
                        yield number, pixels


def in_batches(decoded: Iterable[tuple[int, Images]]) -> Iterator[tuple[list[int], Images]]:
    """Join what `decode` yields to uint8 batches [B, H, W, 3]; a batch holds one size."""
    numbers: list[int] = []
    batch: list[Images] = []
    for number, image in decoded:
        room = 1 if image[0, ..., 0].size > _LARGE else BATCH
        if batch and (len(batch) >= room or batch[0].shape != image.shape):
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
    picture: Picture,
    content: Callable[[], bytes],
    steps: tuple[Jpeg | Resize, ...],
    size: int | None,
    background: str | None,
) -> _Decoded | Callable[[], _Decoded]:
    """Return the pixels of an image, or, of a large one, what decodes it when its turn comes."""

    def decoded(opened: Image.Image | None) -> _Decoded:
        with readable(picture.where, "image"), opened or open_picture(content()) as file:
            pixels, told = pixels_of(file, background)
        return apply_image_steps(pixels[None], steps), told

    with readable(picture.where, "image"):
        file = open_picture(content())
    if size is not None and file.size != (size, size):
        what, found = f"every image must have {size}x{size} pixels", f"{file.width}x{file.height}"
        raise DataError(what, file=picture.where, found=found)
    return decoded(file) if file.width * file.height <= _LARGE else lambda: decoded(None)


def _ahead(pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], T]]) -> Generator[T, None, None]:
    """Yield the results of tasks in their order; those of the next batch are computed meanwhile."""
    waiting: deque[Future[T]] = deque()
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
