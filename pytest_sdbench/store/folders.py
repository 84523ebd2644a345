"""Read and write the files of one folder, on a disk or behind any fsspec URL.

The folder holds files that are written whole or not at all and are small enough for the memory. Everything
that fails is an EvidenceError that names the file; only a file that is not there is a FileNotFoundError.
A disk is not reached through fsspec: its local files are not flushed, so that a power cut could leave a
shard's name without its bytes, and it knows no way to create a file that only the first of two succeeds in.
"""

from __future__ import annotations

import contextlib
import errno
import ftplib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pytest_sdbench.base.errors import EvidenceError, first_line
from pytest_sdbench.base.files import FULL, create_atomically, write_atomically
from pytest_sdbench.base.paths import without_secrets

_BUCKETS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "hf"})
"""Kinds of URLs whose first part is a bucket, and no host that may be left out."""
DAMAGED = ".damaged"
"""How the name of a file ends that was set aside."""


@dataclass(frozen=True)
class Stamp:
    """What tells one content of a file from another, without reading it."""

    size: int
    """Bytes."""
    tag: str
    """Changes whenever the content does; empty where the storage says nothing that does."""
    modified: float = field(default=0.0, compare=False)
    """Seconds since the epoch, by the clock of the storage; 0 where it does not say."""


def is_url(place: str | Path) -> bool:
    """Return whether a place is a URL, and not a path."""
    return isinstance(place, str) and ("://" in place or _is_file_url(place))


def place_of(text: str, start: Path | None = None) -> Path | str:
    """Return the place that a text names: a URL as it is, ``file:`` and paths as a path from `start` on.

    Raises EvidenceError for a URL without a place, as an empty variable leaves it.
    """
    if is_url(text) and not _is_file_url(text):
        scheme, _, place = text.partition("://")
        place = place.rstrip("/")
        no_bucket = scheme.rpartition("::")[2] in _BUCKETS and place.startswith("/")
        if no_bucket or not (place or scheme == "memory"):
            remedy = f"Write {scheme}://PLACE/FOLDER. If it came from a variable, check that this is set"
            raise EvidenceError("a URL that names no place", key=text, remedy=remedy)
        return f"{scheme}://{place}"
    path = Path(_path_of(text) if is_url(text) else os.path.expanduser(text))
    return path if start is None else (start / path).absolute()


def _is_file_url(text: str) -> bool:
    return text[:6].lower() == "file:/"


def _path_of(url: str) -> str:
    """Return the path of a ``file:`` URL, with any sign in it; raises EvidenceError for no path."""
    path = unquote(url[len("file:") :].removeprefix("//").removeprefix("localhost"))
    if not path.startswith("/"):
        remedy = "Write file:///FOLDER with the whole path, or the path alone"
        raise EvidenceError("a file URL names no folder of this machine", key=url, remedy=remedy)
    return path


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
        """Return the full name of a file."""
        return self.root / name

    def within(self, name: str) -> LocalFolder:
        """Return the storage of a folder in this one."""
        return LocalFolder(self.root / name)

    def folders(self) -> list[str]:
        """Return the names of the folders in this one, sorted; none if it is not there."""
        with _explained("read", self.root), contextlib.suppress(FileNotFoundError):
            return sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())
        return []

    def files(self) -> dict[str, Stamp]:
        """Return the files by name; none if the folder is not there."""
        found = {}
        with _explained("read", self.root), contextlib.suppress(FileNotFoundError):
            for entry in list(os.scandir(self.root)):
                with contextlib.suppress(FileNotFoundError):  # removed since
                    if entry.is_file():
                        found[entry.name] = _stamp_of(entry.stat())
        return found

    def read(self, name: str, most: int | None = None) -> bytes:
        """Return the content of a file, or its first bytes; raise FileNotFoundError if there is none."""
        with _explained("read", self.where(name)), self.where(name).open("rb") as file:
            return file.read(most)

    def write(self, name: str, content: bytes) -> Stamp:
        """Write a file whole or not at all, and return its stamp; the last writer wins."""
        with _explained("written", self.where(name)):
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                write_atomically(self.where(name), content)
            except FileNotFoundError:
                self._check_link(name)
                raise
            return _stamp_of(self.where(name).stat())

    def create(self, name: str, content: bytes) -> bool:
        """Write a file if there is none, and return whether it was written: of two at once, one does it."""
        with _explained("written", self.where(name)):
            self.root.mkdir(parents=True, exist_ok=True)
            return create_atomically(self.where(name), content)

    def _check_link(self, name: str) -> None:
        """Raise EvidenceError for a link that leads nowhere, as git-annex and DVC leave it."""
        if self.where(name).is_symlink():
            what = "evidence cannot be written: this is a link to a file that is not there"
            found, remedy = os.readlink(self.where(name)), "Fetch that file, or remove the link"
            raise EvidenceError(what, file=self.where(name), found=found, remedy=remedy)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with _explained("removed", self.where(name)):
            self.where(name).unlink(missing_ok=True)

    def set_aside(self, name: str) -> str:
        """Give a file a name that nobody looks for, and return that name."""
        with _explained("set aside", self.where(name)):
            self.where(name).replace(self.where(name + DAMAGED))
        return name + DAMAGED

    def discard(self) -> None:
        """Remove all files in the folder, and the folder, unless it is a link or holds folders of others."""
        for name in self.files():
            self.remove(name)
        with _explained("removed", self.root):
            try:
                self.root.rmdir()
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise


@dataclass(frozen=True)
class RemoteFolder:
    """A folder in an object store, behind fsspec: a file is one PUT, whole or not there; there is no rename.

    Its methods are those of `LocalFolder`. The driver repeats a request that failed by the way; s3fs does so
    five times, with growing pauses.
    """

    fs: Any
    path: str

    @classmethod
    def open(cls, url: str) -> RemoteFolder:
        """Open a URL; raise EvidenceError if its kind is unknown, lacks a driver or does not answer."""
        from fsspec.core import url_to_fs

        try:
            return cls(*url_to_fs(url))
        except (ImportError, ValueError) as error:
            what = f"not the URL of a store: {error}"
            remedy = "Give a folder, or the URL of a kind that fsspec knows, such as s3://BUCKET/FOLDER"
            if isinstance(error, ImportError):  # fsspec names the package of each driver in it
                what = f"the driver of this kind of store is not installed: {error}"
                remedy = 'pip install "pytest-sdbench[s3]"' if url.startswith("s3") else "Install it"
            raise EvidenceError(what, file=without_secrets(url), remedy=remedy) from error
        except Exception as error:  # drivers that connect at once raise whatever their protocol has
            what = f"the store cannot be reached: {type(error).__name__}: {first_line(error)}"
            raise EvidenceError(what, file=without_secrets(url), remedy=_UNREACHED) from error

    @property
    def root(self) -> str:
        """The URL of the folder, without credentials."""
        return without_secrets(str(self.fs.unstrip_protocol(self.path)))

    def where(self, name: str) -> str:
        return f"{self.root}/{name}"

    def within(self, name: str) -> RemoteFolder:
        return RemoteFolder(self.fs, self._path(name))

    def folders(self) -> list[str]:
        return sorted(name for name, entry in self._entries() if entry["type"] == "directory")

    def files(self) -> dict[str, Stamp]:
        return {name: _stamp(entry) for name, entry in self._entries() if entry["type"] == "file"}

    def read(self, name: str, most: int | None = None) -> bytes:
        with _explained("read", self.where(name)):
            part = {} if most is None else {"start": 0, "end": most}
            return bytes(self.fs.cat_file(self._path(name), **part))

    def write(self, name: str, content: bytes) -> Stamp | None:
        """Write a file, as on a disk; there is no stamp where the server does not tell it."""
        with _explained("written", self.where(name)):
            answer = self._put(name, content)
        known = isinstance(answer, dict) and "ETag" in answer
        return Stamp(len(content), answer["ETag"]) if known else None

    def create(self, name: str, content: bytes) -> bool:
        """Write a file if there is none; a server that knows no conditional requests may let two do it."""
        with _explained("written", self.where(name)):
            try:
                self.fs.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                return False
            except (OSError, ftplib.Error):
                # Servers refuse in many words: that it is there, that two came at once, that they do not
                # know the condition, that there is no such folder.
                if name in self.files():
                    return False
                self._put(name, content)
        return True

    def _put(self, name: str, content: bytes) -> Any:
        """Write a file, before it its folder where the store has real ones; return the driver's answer."""
        try:
            return self.fs.pipe_file(self._path(name), content)
        except Exception:
            # A path from the root on is one of folders. Any other begins with a bucket, and whoever mistypes
            # its name does not want one.
            if not self.path.startswith("/") or self.fs.isdir(self.path):
                raise
            self.fs.makedirs(self.path, exist_ok=True)
            return self.fs.pipe_file(self._path(name), content)

    def remove(self, name: str) -> None:
        with _explained("removed", self.where(name)), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self._path(name))

    def set_aside(self, name: str) -> str:
        with _explained("set aside", self.where(name)):
            self.fs.cp_file(self._path(name), self._path(name + DAMAGED))
            self.fs.rm_file(self._path(name))
        return name + DAMAGED

    def discard(self) -> None:
        for name in self.files():
            self.remove(name)
        # Only where folders are more than a part of a name.
        with _explained("removed", self.root), contextlib.suppress(FileNotFoundError, NotImplementedError):
            if self.fs.isdir(self.path):
                self.fs.rmdir(self.path)

    def _path(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    def _entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        with _explained("read", self.root):
            # A listing that the driver keeps hides what other hosts have written since.
            self.fs.invalidate_cache(self.path)
            try:
                entries = self.fs.ls(self.path, detail=True)
            except FileNotFoundError:
                return
        for entry in entries:
            path = str(entry["name"]).rstrip("/")
            if path != self.path.rstrip("/"):  # some servers list the folder itself
                yield path.rpartition("/")[2], entry


Storage = LocalFolder | RemoteFolder
"""A folder of files."""

ELSEWHERE = "Check the folder and its permissions, or give another one with --sdbench-store."
_UNREACHED = (
    "Finished shards are kept. Check the URL, the credentials and the network and run again, or give another "
    "place with --sdbench-store."
)


@contextlib.contextmanager
def _explained(what: str, place: Path | str) -> Iterator[None]:
    """Turn a failure into an EvidenceError, but for a file to read that is not there."""
    try:
        yield
    except EvidenceError:
        raise
    except Exception as error:
        local = isinstance(place, Path)
        if local and not isinstance(error, OSError):
            raise
        if what == "read" and isinstance(error, FileNotFoundError):
            raise
        remedy = ELSEWHERE if local else _UNREACHED
        if local and getattr(error, "errno", None) in FULL:
            remedy = "Make room and run again: finished shards are kept."
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise EvidenceError(f"evidence cannot be {what}: {reason}", file=place, remedy=remedy) from error


def _stamp_of(status: os.stat_result) -> Stamp:
    # A new file of the same size may come within one tick of the clock.
    return Stamp(status.st_size, f"{status.st_ino}-{status.st_mtime_ns}", status.st_mtime)


_TAGS = ("ETag", "etag", "md5Hash", "content_md5", "blob_id", "xet_hash")
"""What listings call a checksum of the content."""
_MILLISECONDS = ("modificationTime",)
# FTP's `modify` is none of them: from many servers it tells minutes.
_TIMES = (
    *("LastModified", "last_modified", "mtime", "modified", "last_write_time", *_MILLISECONDS),
    *("created", "updated"),
)
"""What they call the time of the last change."""


def _stamp(entry: dict[str, Any]) -> Stamp:
    """Return the stamp of an entry of a listing; drivers agree on its size alone."""
    key, found = next(((key, entry[key]) for key in _TIMES if entry.get(key)), ("", ""))
    modified = found.timestamp() if hasattr(found, "timestamp") else found
    seconds = float(modified) if isinstance(modified, int | float) else 0.0
    tag = next((entry[key] for key in _TAGS if entry.get(key)), found)
    return Stamp(int(entry["size"] or 0), str(tag), seconds / 1000 if key in _MILLISECONDS else seconds)
