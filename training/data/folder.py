"""Read a folder of pictures: captions in `metadata.csv`, `metadata.jsonl` or a `.txt` beside each."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from training.data.source import BadSample, Sample, Source, decode
from training.errors import TrainingError

METADATA = ("metadata.csv", "metadata.jsonl")
PICTURES = (".jpg", ".jpeg", ".png", ".webp")


class FolderSource(Source):
    """The pictures that the metadata names, in its order, as the Hugging Face image folder has them.

    The metadata has the columns `file_name`, relative to the folder, and `text`. Without metadata every
    picture of the folder and its subfolders is taken, by name, with the text of the `.txt` of the same name;
    one that has none has an empty caption. With `caption` that is the caption of every picture of the folder.

    Raises TrainingError for a missing or empty folder, for metadata that cannot be read, and for a row
    without its file.
    """

    def __init__(self, path: str | Path, *, caption: str | None = None) -> None:
        self._path = Path(path).expanduser()
        if not self._path.is_dir():
            raise TrainingError(
                "no such folder", key="data.path", found=str(path), remedy="Give a folder of pictures"
            )
        found = [self._path / name for name in METADATA if (self._path / name).is_file()]
        if len(found) > 1 and caption is None:
            raise TrainingError(
                "two files of captions", file=self._path, found=list(METADATA), remedy="Leave one of them"
            )
        listed = bool(found) and caption is None
        rows = _metadata(found[0]) if listed else _captioned(self._path, caption)
        self._names = [name for name, _ in rows]
        self.captions = [text for _, text in rows]
        origin = found[0] if listed else self._path
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
            content = Path(key).read_bytes()
        except OSError as error:
            raise BadSample(key, f"cannot be read: {error.strerror}") from error
        return Sample(key, decode(key, content), self.captions[row])


def _metadata(file: Path) -> list[tuple[str, str]]:
    """Read file names and captions of an image folder's metadata."""
    rows = []
    try:
        for line, entry in _table(file) if file.suffix == ".csv" else _lines(file):
            for column in ("file_name", "text"):
                if not isinstance(entry.get(column), str):
                    raise TrainingError(
                        f"row without {column!r}",
                        file=file,
                        key=f"line {line}",
                        found=sorted(str(name) for name in entry),
                        remedy="Each row has the columns file_name and text",
                    )
            rows.append((entry["file_name"], entry["text"]))
    except (UnicodeDecodeError, csv.Error) as error:
        raise TrainingError(
            "cannot be read", file=file, found=str(error), remedy="Write it as UTF-8"
        ) from error
    return rows


def _table(file: Path) -> Iterator[tuple[int, dict[Any, Any]]]:
    # Some editors put a byte order mark before the first column.
    with file.open(encoding="utf-8-sig", newline="") as stream:
        table = csv.DictReader(stream)
        for entry in table:
            yield table.line_num, entry


def _lines(file: Path) -> Iterator[tuple[int, dict[Any, Any]]]:
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise TrainingError(
                    "not JSON", file=file, key=f"line {number}", found=str(error), remedy="One object a line"
                ) from error
            if not isinstance(entry, dict):
                raise TrainingError(
                    "not an object", file=file, key=f"line {number}", found=entry, remedy="One object a line"
                )
            yield number, entry


def _captioned(folder: Path, caption: str | None) -> list[tuple[str, str]]:
    """Find the pictures of a folder, and the text beside each."""
    rows, texts = [], 0
    for place, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        present = set(files)
        for name in sorted(files):
            stem, ending = os.path.splitext(name)
            if ending.lower() not in PICTURES or name.startswith("."):
                continue
            text = caption
            if text is None and stem + ".txt" in present:
                text, texts = _text(Path(place) / (stem + ".txt")), texts + 1
            rows.append((os.path.relpath(os.path.join(place, name), folder), text or ""))
    if rows and caption is None and not texts:
        raise TrainingError(
            "no captions: neither metadata.csv, metadata.jsonl, nor a .txt beside any picture",
            file=folder,
            found=f"{len(rows)} pictures",
            remedy="Write metadata.csv with the columns file_name and text",
        )
    return rows


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise TrainingError("not UTF-8", file=file, found=str(error), remedy="Write it as UTF-8") from error


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
