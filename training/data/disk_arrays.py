"""Grow arrays on disk chunk by chunk, so that a kill, or a disk that fills up, costs one chunk at most.

A folder holds one raw file per array and `progress.json`, which says how much of each file counts. It is
replaced after each chunk; what a killed process wrote beyond it is cut off by the next. `finished.json` is
its last version: where it lies, the arrays are complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_sdbench.base.files import write_atomically
from training.errors import TrainingError, explain_write_errors

Array = npt.NDArray[Any]


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
        with explain_write_errors(self.folder, "the cache"):
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, array in arrays.items():
                self._extend(name, np.ascontiguousarray(array))
            self.chunks += 1
            self.notes = dict(notes)
            self._record("progress.json")

    def require(self, size: int) -> None:
        """Raise TrainingError where the disk has no room for so many bytes more."""
        with explain_write_errors(self.folder, "the cache"):
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
        with explain_write_errors(self.folder, "the cache"):
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
            raise self._damaged(path, str(error)) from error

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
                raise self._damaged(path, f"only {size} bytes")
            file.truncate(column["rows"] * row)
            file.seek(0, os.SEEK_END)
            rest = memoryview(array.tobytes())
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        self._columns[name] = {**column, "rows": column["rows"] + len(array)}

    def _damaged(self, path: Path, found: str) -> TrainingError:
        remedy = f"Delete {self.folder}: it is made again"
        return TrainingError("a damaged cache", file=path, found=found, remedy=remedy)

    def _record(self, name: str) -> None:
        state = {"chunks": self.chunks, "columns": self._columns, "notes": self.notes}
        write_atomically(self.folder / name, json.dumps(state).encode())
