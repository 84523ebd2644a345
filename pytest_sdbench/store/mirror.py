"""Keep copies of a remote store's shards on this machine: metrics pass over the rows several times.

fsspec's caches (`filecache`) would do without their bounds: they grow until somebody clears them, and their
index is one file that processes overwrite for each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from pytest_sdbench.base.files import TEMPORARY
from pytest_sdbench.base.paths import user_cache
from pytest_sdbench.store.folders import Stamp

LIMIT = 4 << 30
"""Bytes on the disk; what was not used for the longest time goes first."""


@dataclass
class Mirror:
    """A folder of copies, shared by the processes of a user, that may be removed at any moment."""

    folder: Path = field(default_factory=lambda: user_cache() / "mirror")
    limit: int = LIMIT
    _room: int = 0
    """Bytes that this process may add before it looks again how much there is."""

    def get(self, where: str, stamp: Stamp) -> bytes | None:
        """Return the copy of a file with this stamp, or None; there is none where a stamp has no tag."""
        path = self._path(where, stamp)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if len(content) != stamp.size:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return content

    def put(self, where: str, stamp: Stamp, content: bytes) -> None:
        """Keep a copy; a disk without room for it costs another download and nothing else."""
        if not stamp.tag or len(content) > self.limit:
            return
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            if len(content) > self._room:
                self._make_room(len(content))
            # Not flushed: whoever reads a copy checks it.
            path = self._path(where, stamp)
            temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
            try:
                temporary.write_bytes(content)
                temporary.replace(path)
                self._room -= len(content)
            finally:
                temporary.unlink(missing_ok=True)

    def forget(self, where: str, stamp: Stamp) -> None:
        """Remove a copy."""
        with contextlib.suppress(OSError):
            self._path(where, stamp).unlink()

    def _path(self, where: str, stamp: Stamp) -> Path:
        key = f"{where} {stamp.size} {stamp.tag}"
        return self.folder / hashlib.sha256(key.encode()).hexdigest()[:32]

    def _make_room(self, size: int) -> None:
        """Remove the oldest copies until a tenth of the limit, and `size` at least, is free."""
        copies = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):  # by a process beside this one
                status = entry.stat()
                copies.append((status.st_mtime, status.st_size, entry.path))
        used, wanted = sum(each[1] for each in copies), max(size, self.limit // 10)
        for _, bytes_there, path in sorted(copies):
            if used + wanted <= self.limit:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            used -= bytes_there
        self._room = wanted
