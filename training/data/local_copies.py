"""Have files of any fsspec URL as local files: fetched once, and as many kept as fit a bound.

fsspec's own `simplecache` writes under the final name and knows no bound: a fetch that is killed would leave
half a file that passes for a whole one, and a data set larger than the disk would fill it.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from filelock import FileLock

from training.errors import FULL_DISK, TrainingError, explain_write_errors

_TRIES = 3
_OPEN_FILES = 64
_AGAIN = "Try again; if it happens again, check the URL and the network"
_ELSEWHERE = "Name another folder for copies: SDBENCH_CACHE=FOLDER"


@dataclass(frozen=True)
class RemoteFile:
    """A file behind a URL."""

    url: str
    system: Any
    """Its fsspec file system."""
    path: str
    """Its path there."""
    version: str
    """Changes when the file does, as far as the file system tells: from its size, time and tag."""

    @property
    def local(self) -> bool:
        return "file" in _protocols(self.system)

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.url}\n{self.version}".encode()).hexdigest()[:24]


def locate(url: str, *, wait: Callable[[float], None] = time.sleep) -> RemoteFile:
    """Find the file of a URL or path. Raises TrainingError where it is not there or not to be reached."""
    system, path = _system(url)
    info = _patiently(url, lambda: system.info(path), wait)
    if info.get("type") == "directory":
        raise TrainingError(
            "a folder, not a tar file", file=url, key="data.urls", remedy="Write FOLDER/*.tar"
        )
    marks = ("size", "mtime", "LastModified", "last_modified", "updated", "ETag", "etag", "md5Hash")
    version = {mark: str(info[mark]) for mark in marks if info.get(mark) is not None}
    return RemoteFile(url, system, path, json.dumps(version))


def expand(url: str) -> list[str]:
    """Return the URLs that a pattern with `*`, `?` or `[...]` matches, sorted, or the URL itself."""
    if not any(sign in url.split("://")[-1] for sign in "*?[") or os.path.exists(url):
        return [url]
    system, path = _system(url)
    found = _patiently(url, lambda: system.glob(path), time.sleep)
    if "file" in _protocols(system):
        return sorted(found)
    return sorted(system.unstrip_protocol(name) for name in found)


class LocalCopies:
    """Local copies of remote files in a folder of at most `limit` bytes, and open files.

    At least the copy that was fetched last is kept. Several processes may share the folder.
    """

    def __init__(self, folder: Path, limit: int, *, wait: Callable[[float], None] = time.sleep) -> None:
        self._folder, self._limit, self._wait = folder, limit, wait
        self._open: OrderedDict[RemoteFile, BinaryIO] = OrderedDict()
        self._lock = threading.Lock()
        self._fetching: dict[RemoteFile, threading.Lock] = {}

    def open(self, remote: RemoteFile) -> BinaryIO:
        """Return the file, open; it is shared by threads: read it with `os.pread`.

        Whoever holds it may go on reading after its copy was deleted. Raises TrainingError.
        """
        with self._lock:
            lock = self._fetching.setdefault(remote, threading.Lock())
        with lock:
            with self._lock:
                file = self._open.get(remote)
                if file is not None:
                    self._open.move_to_end(remote)
                    return file
            file = self._open_local(remote)
            with self._lock:
                # Another thread may have deleted the copy since, and not have found it among these.
                if remote.local or self._path(remote).exists():
                    self._open[remote] = file
                while len(self._open) > _OPEN_FILES:
                    # Closed when its last reader lets go of it.
                    self._open.popitem(last=False)
            return file

    def _open_local(self, remote: RemoteFile) -> BinaryIO:
        if remote.local:
            try:
                return open(remote.path, "rb")
            except OSError as error:
                raise TrainingError("cannot be read", file=remote.path, found=error.strerror) from error
        path = self._path(remote)
        with explain_write_errors(self._folder, f"a local copy of {remote.url}", remedy=_ELSEWHERE):
            self._folder.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                # Opened before anyone else could delete it to make room.
                file: BinaryIO
                try:
                    file = path.open("rb")
                except FileNotFoundError:
                    file = self._fetch(remote, path)
                os.utime(file.fileno())
            self._make_room(path)
        return file

    def _path(self, remote: RemoteFile) -> Path:
        return self._folder / f"{remote.digest}.tar"

    def _fetch(self, remote: RemoteFile, path: Path) -> BinaryIO:
        temporary = path.with_suffix(f".{os.getpid()}.part")
        try:
            _patiently(remote.url, lambda: remote.system.get_file(remote.path, str(temporary)), self._wait)
            expected = json.loads(remote.version).get("size")
            found = temporary.stat().st_size
            if expected is not None and int(expected) != found:
                raise TrainingError(
                    f"arrived incomplete: {found} bytes", file=remote.url, found=expected, remedy=_AGAIN
                )
            file = temporary.open("rb")
            temporary.replace(path)
            return file
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, newest: Path) -> None:
        """Delete the copies that were used longest ago."""
        copies = []
        for copy in self._folder.glob("*.tar"):
            try:
                status = copy.stat()
            except FileNotFoundError:  # another process made room
                continue
            copies.append((status.st_mtime_ns, status.st_size, copy))
        total = sum(size for _, size, _ in copies)
        for _, size, copy in sorted(copies):
            if total <= self._limit:
                break
            if copy != newest:
                copy.unlink(missing_ok=True)
                total -= size
                with self._lock:
                    # The room is free when the file is closed, too.
                    for remote in [remote for remote in self._open if self._path(remote) == copy]:
                        del self._open[remote]


def _system(url: str) -> tuple[Any, str]:
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise TrainingError(
            "a library for this kind of URL is missing", file=url, key="data.urls", remedy=str(error)
        ) from error
    except ValueError as error:
        raise TrainingError(
            "a URL of unknown kind",
            file=url,
            key="data.urls",
            found=str(error),
            remedy="Give a path, or a URL that fsspec knows",
        ) from error
    return system, path


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def _patiently(url: str, ask: Callable[[], Any], wait: Callable[[float], None]) -> Any:
    """Ask a file system again when it fails: networks do. Raises TrainingError."""
    for number in range(_TRIES):
        try:
            return ask()
        except FileNotFoundError as error:
            raise TrainingError(
                "no such file", file=url, key="data.urls", remedy="Check the path, or the URL"
            ) from error
        except Exception as error:  # each file system has errors of its own
            if isinstance(error, OSError) and error.errno in FULL_DISK:
                raise
            if number + 1 == _TRIES or isinstance(error, PermissionError):
                raise TrainingError(
                    f"cannot be reached: {type(error).__name__}", file=url, found=str(error), remedy=_AGAIN
                ) from error
            wait(2.0 * 4**number)
    raise AssertionError("unreachable: the last try returns or raises")
