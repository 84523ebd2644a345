"""Read a folder of pictures with captions, in every form that `score` reads."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from pytest_sdbench.base.errors import DataError
from pytest_sdbench.base.files import read_bounded
from pytest_sdbench.features.captions import (
    CAPTION_KEYS,
    TABLES,
    beside,
    caption_beside,
    composed,
    table_rows,
)
from training.data.source import BadSample, Sample, Source, decode, read_patiently
from training.errors import TrainingError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_UNREAD = (".gif", ".avif", ".heic", ".heif", ".jxl", ".jp2")
"""Pictures that are passed over, and told."""
_FORMS = f"only {', '.join(PICTURES)} are read"
_LARGEST = 1 << 33
"""Bytes of captions: those of a hundred million pictures."""


class FolderSource(Source):
    """The pictures that the metadata names, in its order, as the Hugging Face image folder has them.

    The metadata (`metadata.csv`, `.jsonl` or `.parquet`) has the columns `file_name`, relative to the folder,
    and `text`, `caption` or `prompt`, of several the first of these. Without metadata every picture of the
    folder and its subfolders is taken, by name, with the caption in the `.txt` or `.json` of the same name;
    one that has none has an empty caption. A subfolder may have its own metadata. With `caption` that is the
    caption of every picture of the folder. `say` is told of pictures that are passed over.

    Raises TrainingError for a missing or empty folder, for metadata that cannot be read, and for a row
    without its file.
    """

    def __init__(
        self, path: str | Path, *, caption: str | None = None, say: Callable[[str], None] = print
    ) -> None:
        self._path = Path(os.path.expanduser(path))
        if not self._path.is_dir():
            raise TrainingError(
                "no such folder", key="data.path", found=str(path), remedy="Give a folder of pictures"
            )
        table = _table(self._path) if caption is None else None
        rows = _metadata(table) if table is not None else _captioned(self._path, caption, say)
        self._names = [_as_written(self._path, name) for name, _ in rows]
        self.captions = [text for _, text in rows]
        origin = table or self._path
        if not rows:
            remedy = f"Put some there: {', '.join(PICTURES)}"
            raise TrainingError("no pictures", file=origin, remedy=remedy)
        self._sizes = [_size(self._path / name, name, origin) for name in self._names]

    @property
    def name(self) -> str:
        return str(self._path)

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(b"folder")
        for row in zip(self._names, self._sizes, self.captions, strict=True):
            digest.update(repr(row).encode())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._names)

    def read(self, row: int) -> Sample:
        """Read and decode the picture of a row. Raises BadSample."""
        key = str(self._path / self._names[row])
        try:
            content = read_patiently(Path(key))
        except OSError as error:
            raise BadSample(key, f"cannot be read: {error.strerror}") from error
        return Sample(key, decode(key, content), self.captions[row])


def _table(folder: Path) -> Path | None:
    """Return the metadata of a folder, if it has some; raise TrainingError for two files of it."""
    found = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(found) > 1:
        names, remedy = [each.name for each in found], "Leave one of them"
        raise TrainingError("two files of captions", file=folder, found=names, remedy=remedy)
    return found[0] if found else None


def _metadata(file: Path) -> list[tuple[str, str]]:
    """Read file names and captions of an image folder's metadata, as `score` reads them."""
    rows = []
    with _explained(file):
        for line, name, captions in table_rows(str(file), read_bounded(file, _LARGEST), _LARGEST):
            if not name:
                raise DataError(f"row without {' or '.join(map(repr, CAPTION_KEYS))}", key=line)
            rows.append((name, captions[0] if captions else ""))
    return rows


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Turn what is wrong with a file of captions into a TrainingError."""
    try:
        yield
    except (DataError, OSError) as error:
        known = error if isinstance(error, DataError) else DataError(error.strerror or str(error))
        remedy = known.remedy or "Each row has file_name, and text, caption or prompt, in UTF-8"
        message, found = known.message, known.found
        raise TrainingError(message, file=file, key=known.key, found=found, remedy=remedy) from error


def _captioned(folder: Path, caption: str | None, say: Callable[[str], None]) -> list[tuple[str, str]]:
    """Find the pictures of a folder, and the text beside each."""
    rows, texts, unread = list[tuple[str, str]](), 0, list[str]()
    for place, folders, files in os.walk(folder, followlinks=True):
        if caption is None and place != str(folder) and (table := _table(Path(place))) is not None:
            below = [
                (os.path.relpath(os.path.join(place, name), folder), text) for name, text in _metadata(table)
            ]
            rows, texts, folders[:] = rows + below, texts + len(below), []
            continue
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and not _leads_back(place, name)
        )
        unread += [name for name in files if os.path.splitext(name)[1].lower() in _UNREAD]
        present = set(files)
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() not in PICTURES or name.startswith("."):
                continue
            text = caption
            for file in (Path(place, each) for each in beside(name) if each in present and text is None):
                with _explained(file):
                    found = caption_beside(str(file), read_bounded(file, _LARGEST))
                text = found[0].strip() if found else None
            texts += text is not None
            rows.append((os.path.relpath(os.path.join(place, name), folder), text or ""))
    if unread:
        say(f"{len(unread):,} pictures of {folder} are passed over, e.g. {min(unread)}: {_FORMS}")
    if rows and caption is None and not texts:
        raise TrainingError(
            f"no captions: neither {', '.join(TABLES)}, nor a .txt or .json beside any picture",
            file=folder,
            found=f"{len(rows)} pictures",
            remedy="Write metadata.csv with the columns file_name and text",
        )
    return rows


def _leads_back(place: str, name: str) -> bool:
    """Return whether a folder is a link to one that it lies in."""
    path = os.path.join(place, name)
    target = os.path.realpath(path)
    return os.path.islink(path) and f"{os.path.realpath(place)}/".startswith(f"{target}/")


def _as_written(folder: Path, name: str) -> str:
    """Return a name as the disk has it: macOS writes a letter and its accent apart, tables together."""
    path = folder / name
    if path.exists() or not path.parent.is_dir():
        return name
    found = (each.name for each in path.parent.iterdir() if composed(each.name) == composed(path.name))
    return os.path.join(os.path.dirname(name), next(found, path.name))


def _size(path: Path, name: str, origin: Path) -> int:
    """Return the size of a picture's file."""
    try:
        status = path.stat()
    except OSError:
        status = None
    if status is None or not stat.S_ISREG(status.st_mode):
        raise TrainingError(
            "names a picture that is not there",
            file=origin,
            key=name,
            remedy="Put the file there, or delete the row",
        )
    return status.st_size
