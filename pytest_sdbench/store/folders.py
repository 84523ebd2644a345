"""Read and write the files of one folder, on a disk or behind any fsspec URL.

The folder holds files that are written whole or not at all and are small enough for the memory. Everything
that fails is an EvidenceError that names the file; only a file that is not there is a FileNotFoundError.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from pytest_sdbench.base.errors import EvidenceError
from pytest_sdbench.base.files import create_atomically, write_atomically

DAMAGED = ".damaged"
"""How the name of a file ends that was set aside."""


@dataclass(frozen=True)
class Stamp:
    """What tells one content of a file from another, without reading it."""

    size: int
    """Bytes."""
    tag: str
    """Changes whenever the content does."""
    modified: float = field(default=0.0, compare=False)
    """Seconds since the epoch, by the clock of the storage; 0 where it does not say."""


class Storage(Protocol):
    """A folder of files."""

    @property
    def root(self) -> Path | str:
        """The folder: a path, or a URL without credentials."""

    def where(self, name: str) -> Path | str:
        """Return the full name of a file."""

    def within(self, name: str) -> Storage:
        """Return the storage of a folder in this one."""

    def folders(self) -> list[str]:
        """Return the names of the folders in this one, sorted; none if it is not there."""

    def files(self) -> dict[str, Stamp]:
        """Return the files by name; none if the folder is not there."""

    def read(self, name: str) -> bytes:
        """Return the content of a file; raise FileNotFoundError if there is none."""

    def write(self, name: str, content: bytes) -> Stamp | None:
        """Write a file whole or not at all, and return its stamp where it is known; the last writer wins."""

    def create(self, name: str, content: bytes) -> bool:
        """Write a file if there is none, and return whether it was written.

        Of two at the same moment one writes it; a server that knows no conditional requests may let both.
        """

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""

    def set_aside(self, name: str) -> str:
        """Give a file a name that nobody looks for, and return that name."""

    def discard(self) -> None:
        """Remove the folder with all that is in it."""


def is_url(place: str | Path) -> bool:
    """Return whether a place is a URL, and not a path."""
    return isinstance(place, str) and "://" in place


def without_secrets(url: str) -> str:
    """Return a URL for a reader: without a user's name and password."""
    return re.sub(r"://[^/@]*@", "://***@", url)


def place_of(text: str, start: Path | None = None) -> Path | str:
    """Return the place that a text names: a URL as it is, ``file://`` and paths as a path from `start` on."""
    if is_url(text) and not text.startswith("file://"):
        return text.rstrip("/")
    path = Path(unquote(urlsplit(text).path)) if is_url(text) else Path(text).expanduser()
    return path if start is None else (start / path).absolute()


def open_storage(root: Path | str) -> Storage:
    """Open a folder, given by path or by URL; nothing is read or written yet.

    Raises EvidenceError for a URL of a kind that is unknown or whose driver is not installed.
    """
    place = place_of(root) if isinstance(root, str) else root
    return LocalFolder(place) if isinstance(place, Path) else RemoteFolder.open(place)


@dataclass(frozen=True)
class LocalFolder:
    """A folder on a disk. Files are flushed to it before they have their name."""

    root: Path

    def where(self, name: str) -> Path:
        return self.root / name

    def within(self, name: str) -> LocalFolder:
        return LocalFolder(self.root / name)

    def folders(self) -> list[str]:
        with self._explained("read"):
            try:
                return sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())
            except FileNotFoundError:
                return []

    def files(self) -> dict[str, Stamp]:
        found = {}
        with self._explained("read"):
            try:
                entries = list(os.scandir(self.root))
            except FileNotFoundError:
                return {}
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # removed since
                    if entry.is_file():
                        found[entry.name] = _stamp_of(entry.stat())
        return found

    def read(self, name: str) -> bytes:
        with self._explained("read", name):
            return self.where(name).read_bytes()

    def write(self, name: str, content: bytes) -> Stamp:
        with self._explained("written", name):
            self.root.mkdir(parents=True, exist_ok=True)
            write_atomically(self.where(name), content)
            return _stamp_of(self.where(name).stat())

    def create(self, name: str, content: bytes) -> bool:
        with self._explained("written", name):
            self.root.mkdir(parents=True, exist_ok=True)
            return create_atomically(self.where(name), content)

    def remove(self, name: str) -> None:
        with self._explained("removed", name):
            self.where(name).unlink(missing_ok=True)

    def set_aside(self, name: str) -> str:
        with self._explained("set aside", name):
            self.where(name).replace(self.where(name + DAMAGED))
        return name + DAMAGED

    def discard(self) -> None:
        for name in self.files():
            self.remove(name)
        with self._explained("removed"), contextlib.suppress(FileNotFoundError):
            self.root.rmdir()

    @contextlib.contextmanager
    def _explained(self, what: str, name: str | None = None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if what == "read" and isinstance(error, FileNotFoundError):
                raise
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            raise EvidenceError(
                f"evidence cannot be {what}: {error.strerror or error}",
                file=self.root if name is None else self.where(name),
                remedy="Make room and run again: finished shards are kept." if full else ELSEWHERE,
            ) from error


ELSEWHERE = "Check the folder and its permissions, or give another one with --sdbench-store."
_UNREACHED = (
    "Finished shards are kept. Check the URL, the credentials and the network and run again, or give another "
    "place with --sdbench-store."
)


@dataclass(frozen=True)
class RemoteFolder:
    """A folder in an object store, behind fsspec: a file is one PUT, whole or not there; there is no rename.

    The driver repeats a request that failed by the way; s3fs does so five times, with growing pauses.
    """

    fs: Any
    path: str

    @classmethod
    def open(cls, url: str) -> RemoteFolder:
        """Open a URL; raise EvidenceError if it is of an unknown kind or its driver is not installed."""
        from fsspec.core import url_to_fs

        scheme, shown = url.partition("://")[0], without_secrets(url)
        try:
            return cls(*url_to_fs(url))
        except ImportError as error:
            # fsspec names the package of each driver in its error.
            remedy = 'pip install "pytest-sdbench[s3]"' if scheme in ("s3", "s3a") else "Install it"
            raise EvidenceError(
                f"the driver of this kind of store is not installed: {error}", file=shown, remedy=remedy
            ) from error
        except ValueError as error:
            raise EvidenceError(
                f"not the URL of a store: {error}",
                file=shown,
                remedy="Give a folder, or the URL of a kind that fsspec knows, such as s3://BUCKET/FOLDER",
            ) from error

    @property
    def root(self) -> str:
        return without_secrets(str(self.fs.unstrip_protocol(self.path)))

    def where(self, name: str) -> str:
        return f"{self.root}/{name}"

    def within(self, name: str) -> RemoteFolder:
        return RemoteFolder(self.fs, self._path(name))

    def folders(self) -> list[str]:
        return sorted(name for name, entry in self._entries() if entry["type"] == "directory")

    def files(self) -> dict[str, Stamp]:
        return {name: _stamp(entry) for name, entry in self._entries() if entry["type"] == "file"}

    def read(self, name: str) -> bytes:
        with self._explained("read", name):
            return bytes(self.fs.cat_file(self._path(name)))

    def write(self, name: str, content: bytes) -> Stamp | None:
        with self._explained("written", name):
            answer = self.fs.pipe_file(self._path(name), content)
        known = isinstance(answer, dict) and "ETag" in answer
        return Stamp(len(content), answer["ETag"]) if known else None

    def create(self, name: str, content: bytes) -> bool:
        with self._explained("written", name):
            try:
                self.fs.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                return False
            except OSError:
                # Servers refuse in many words: that it is there, that two came at once, that they do not
                # know the condition.
                if name in self.files():
                    return False
                self.fs.pipe_file(self._path(name), content)
        return True

    def remove(self, name: str) -> None:
        with self._explained("removed", name), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self._path(name))

    def set_aside(self, name: str) -> str:
        with self._explained("set aside", name):
            self.fs.cp_file(self._path(name), self._path(name + DAMAGED))
            self.fs.rm_file(self._path(name))
        return name + DAMAGED

    def discard(self) -> None:
        for name in self.files():
            self.remove(name)
        with self._explained("removed"), contextlib.suppress(FileNotFoundError, NotImplementedError):
            if self.fs.isdir(self.path):  # where folders are more than a part of a name
                self.fs.rmdir(self.path)

    def _path(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    def _entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        with self._explained("read"):
            # A listing that the driver keeps hides what other hosts have written since.
            self.fs.invalidate_cache(self.path)
            try:
                entries = self.fs.ls(self.path, detail=True)
            except FileNotFoundError:
                return
        for entry in entries:
            name = str(entry["name"]).rstrip("/").rpartition("/")[2]
            if str(entry["name"]).rstrip("/") != self.path.rstrip("/"):  # some servers list the folder itself
                yield name, entry

    @contextlib.contextmanager
    def _explained(self, what: str, name: str | None = None) -> Iterator[None]:
        try:
            yield
        except EvidenceError:
            raise
        except Exception as error:  # every driver has its own
            if what == "read" and isinstance(error, FileNotFoundError):
                raise
            raise EvidenceError(
                f"evidence cannot be {what}: {str(error) or type(error).__name__}",
                file=self.root if name is None else self.where(name),
                remedy=_UNREACHED,
            ) from error


def _stamp_of(status: os.stat_result) -> Stamp:
    # A new file of the same size may come within one tick of the clock.
    return Stamp(status.st_size, f"{status.st_ino}-{status.st_mtime_ns}", status.st_mtime)


def _stamp(entry: dict[str, Any]) -> Stamp:
    """Return the stamp of an entry of a listing; drivers agree on its size alone."""
    found = next((entry[key] for key in ("LastModified", "mtime", "created", "updated") if entry.get(key)), 0)
    modified = found.timestamp() if hasattr(found, "timestamp") else found
    tag = next((entry[key] for key in ("ETag", "etag", "md5Hash", "content_md5") if entry.get(key)), found)
    seconds = float(modified) if isinstance(modified, int | float) else 0.0
    return Stamp(int(entry["size"] or 0), str(tag), seconds)
