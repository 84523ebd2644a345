"""Read a dataset of the Hugging Face hub, or one in its form on this machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from training.data.source import BadSample, Sample, Source, decode, read_patiently
from training.errors import TrainingError


class HubSource(Source):
    """A split of a dataset by name (`org/name`, or a folder), with a column of pictures and one of captions.

    Where a picture has several captions the first is taken. Raises TrainingError where the library is not
    installed, for a dataset that cannot be loaded, and for an unknown column.
    """

    def __init__(
        self,
        name: str,
        *,
        split: str = "train",
        image_column: str = "image",
        caption_column: str = "text",
        revision: str | None = None,
    ) -> None:
        self._about = (name, revision, split)
        self._image, self._caption = image_column, caption_column
        table = _load(name, split, revision)
        for key, column in (("data.image_column", image_column), ("data.caption_column", caption_column)):
            if column not in table.column_names:
                raise TrainingError(
                    "unknown column",
                    file=name,
                    key=key,
                    found=column,
                    remedy=f"Its columns: {', '.join(table.column_names)}",
                )
        if not len(table):
            raise TrainingError("an empty dataset", file=name, key="data.split", found=split)
        self._texts = table.select_columns([caption_column])
        self._pictures = _encoded(table, name, image_column)

    @property
    def name(self) -> str:
        name, revision, split = self._about
        return f"{name}{'@' + revision if revision else ''} ({split})"

    @property
    def captions(self) -> Iterator[str]:
        """Every caption, in the order of the rows."""
        row = 0
        for batch in self._texts.iter(1000):
            for value in batch[self._caption]:
                yield self._first(value, row)
                row += 1

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all captions and of the sizes of the pictures, with the names of those that are files."""
        digest = hashlib.sha256(repr((self._about[1:], self._image, len(self))).encode())
        for caption in self.captions:
            digest.update(repr(caption).encode())
        digest.update(repr(_sizes(self._pictures, self._image)).encode())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._texts)

    def read(self, row: int) -> Sample:
        """Read and decode the picture of a row. Raises BadSample."""
        key = f"{self._about[0]} row {row}"
        try:
            picture = self._pictures[row][self._image]
            if picture is None:
                raise BadSample(key, "no picture")
            content = picture["bytes"]
            if content is None:
                content = read_patiently(Path(picture["path"]))
        except OSError as error:
            raise BadSample(key, f"cannot be read: {error.strerror or error}") from error
        return Sample(key, decode(key, content), self._first(self._texts[row][self._caption], row))

    def _first(self, value: Any, row: int) -> str:
        if isinstance(value, list):
            value = value[0] if value else ""
        if value is None:
            return ""
        if not isinstance(value, str):
            raise TrainingError(
                "a caption that is no text",
                file=self._about[0],
                key=f"{self._caption}, row {row}",
                found=value,
                remedy="Name the column of captions: data.caption_column",
            )
        return value


def _load(name: str, split: str, revision: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise TrainingError(
            "the library for datasets of the hub is not installed",
            key="data.kind",
            found="huggingface",
            remedy="Install it: pip install datasets",
        ) from error
    try:
        folder = Path(os.path.expanduser(name))
        if (folder / "dataset_dict.json").is_file():
            return _of_split(dict(datasets.load_from_disk(str(folder))), split)
        if (folder / "state.json").is_file():
            table = datasets.load_from_disk(str(folder))
            return _of_split({str(table.split or "train").partition("[")[0]: table}, split)
        return datasets.load_dataset(str(folder) if folder.exists() else name, split=split, revision=revision)
    except Exception as error:  # the library raises errors of many kinds, and those of its network client
        raise TrainingError(
            f"the dataset cannot be loaded: {type(error).__name__}",
            file=name,
            key="data.name",
            found=str(error),
            remedy="Check data.name, data.split and data.revision, and the network",
        ) from error


def _of_split(tables: dict[str, Any], split: str) -> Any:
    """Return a split of saved tables, or a part such as ``train[:100]``; raise ValueError for others."""
    import datasets

    sizes = {name: len(table) for name, table in tables.items()}
    parts = []
    for part in datasets.ReadInstruction.from_spec(split).to_absolute(sizes):
        parts.append(tables[part.splitname].select(range(sizes[part.splitname])[part.from_ : part.to]))
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def _encoded(table: Any, name: str, column: str) -> Any:
    """Return the column of pictures as bytes: we decode them ourselves, so that one may be corrupt."""
    import datasets

    try:
        return table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except Exception as error:
        raise TrainingError(
            "not a column of pictures",
            file=name,
            key="data.image_column",
            found=f"{column}: {table.features[column]}",
            remedy="Name the column of pictures: data.image_column",
        ) from error


def _sizes(pictures: Any, column: str) -> list[int | tuple[str, int | None]]:
    """Return the bytes of each picture, from the table's own offsets; of a file its name, too."""
    from pyarrow import compute

    content, paths = (compute.struct_field(pictures.data.column(column), name) for name in ("bytes", "path"))
    sizes, names = compute.binary_length(content).to_pylist(), paths.to_pylist()
    return [_of_file(name) if size is None else size for size, name in zip(sizes, names, strict=True)]


def _of_file(path: str | None) -> tuple[str, int | None]:
    try:
        return os.path.basename(path or ""), os.stat(path).st_size if path else None
    except OSError:  # which the row says when it is read
        return os.path.basename(path or ""), None
