"""Grow arrays on disk chunk by chunk, so that a kill, or a disk that fills up, costs one chunk at most.

A folder holds one raw file per array and `progress.json`, which says how much of each file counts. It is
replaced after each chunk; what a killed process wrote beyond it is cut off by the next. `finished.json` is
its last version: where it lies, the arrays are complete.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_sdbench.base.files import write_atomically
from training.errors import TrainingError

Array = npt.NDArray[Any]
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskArrays:
    """The arrays of one folder; raises TrainingError when the disk is full, and can then be resumed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        finished, progress = folder / "finished.json", folder / "progress.json"
        self.finished = finished.is_file()
        state: dict[str, Any] = {"chunks": 0, "columns": {}, "notes": {}}
        for file in (finished, progress):
            try:
                state = json.loads(file.read_text(encoding="utf-8"))
            except FileNotFoundError:  # another process may finish between two looks
                continue
            break
        self.chunks: int = state["chunks"]
        self.notes: dict[str, Any] = state["notes"]
        self._columns: dict[str, dict[str, Any]] = state["columns"]

    def append(self, arrays: Mapping[str, Array], notes: Mapping[str, Any]) -> None:
        """Add one chunk: rows for each array (possibly none), and replace the notes."""
        with _disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, array in arrays.items():
                self._extend(name, np.ascontiguousarray(array))
            self.chunks += 1
            self.notes = dict(notes)
            self._record("progress.json")

    def require(self, size: int) -> None:
        """Raise TrainingError where the disk has no room for so many bytes more."""
        with _disk(self.folder):
            free = shutil.disk_usage(self.folder).free
        if free < size:
            raise TrainingError(
                f"not enough room on the disk: {size / 1e9:.2f} GB more are needed",
                file=self.folder,
                found=f"{free / 1e9:.2f} GB free",
                remedy="Free some space, or give another folder",
            )

    def finish(self) -> None:
        """Mark the arrays as complete."""
        with _disk(self.folder):
            self._record("finished.json")
            (self.folder / "progress.json").unlink(missing_ok=True)
        self.finished = True

    def open(self, name: str) -> Array:
        """Return an array as a read-only memory map."""
        column = self._columns[name]
        shape = (column["rows"], *column["shape"])
        if 0 in shape:
            return np.empty(shape, column["dtype"])
        path = self.folder / f"{name}.bin"
        try:
            return np.memmap(path, column["dtype"], "r", shape=shape)
        except (OSError, ValueError) as error:
            raise TrainingError(
                "a damaged cache",
                file=path,
                found=str(error),
                remedy=f"Delete {self.folder}; it is made again",
            ) from error

    def _extend(self, name: str, array: Array) -> None:
        column = self._columns.setdefault(
            name, {"rows": 0, "shape": list(array.shape[1:]), "dtype": array.dtype.str}
        )
        if [column["shape"], column["dtype"]] != [list(array.shape[1:]), array.dtype.str]:
            raise ValueError(f"{name}: rows of {array.shape[1:]} {array.dtype} do not fit {column}")
        row = array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))
        path = self.folder / f"{name}.bin"
        with open(path, "r+b" if path.is_file() else "w+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size < column["rows"] * row:
                raise TrainingError(
                    "a damaged cache: shorter than it was",
                    file=path,
                    found=f"{size} bytes",
                    remedy=f"Delete {self.folder}; it is made again",
                )
            file.truncate(column["rows"] * row)
            file.seek(0, os.SEEK_END)
            rest = memoryview(array.tobytes())
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        self._columns[name] = {**column, "rows": column["rows"] + len(array)}

    def _record(self, name: str) -> None:
        state = {"chunks": self.chunks, "columns": self._columns, "notes": self.notes}
        write_atomically(self.folder / name, json.dumps(state).encode())


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in _FULL
        raise TrainingError(
            "the disk is full" if full else "cannot be written",
            file=error.filename or folder,
            found=error.strerror,
            remedy="Free some space and run the same command again: what is there already is kept"
            if full
            else "Give a folder that can be written",
        ) from error
