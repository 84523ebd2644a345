"""Write files whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY = ".tmp-"
"""How the name of a file begins that is not whole yet: a killed run may leave one behind."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a disk, a quota or the largest file there may be is full."""


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Put a file into its place at once: readers find the old one or the new one, also after a power cut.

    `content` is bytes, or a function that writes them to the open file. The file keeps the mode of the one
    that it replaces, and a link stays a link. Raises OSError; whatever was raised, the old file is as it was
    and nothing is left beside it.
    """
    target = Path(os.path.realpath(path))
    with _flushed(target, content) as temporary:
        with contextlib.suppress(FileNotFoundError):
            temporary.chmod(target.stat().st_mode & 0o7777)
        temporary.replace(target)
        _flush_folder(target.parent)


def create_atomically(path: Path, content: bytes) -> bool:
    """Put a file into its place unless there is one, and return whether it was put there.

    Of two processes at the same moment one succeeds, and nobody sees half of it. Raises OSError.
    """
    if os.path.exists(path):
        return False
    with _flushed(path, content) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            # A file system without links: whoever is second finds the name taken, perhaps before its content.
            try:
                with path.open("xb") as file:
                    file.write(content)
            except FileExistsError:
                return False
        _flush_folder(path.parent)
    return True


@contextlib.contextmanager
def _flushed(target: Path, content: bytes | Callable[[BinaryIO], object]) -> Iterator[Path]:
    """Write a file beside `target` and have it on the disk; remove it, if it is still there, at the end."""
    temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Have a rename on the disk, where the system lets a folder be flushed."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file; raise OSError for any other, which could be read for ever, or wait for ever."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "this is no regular file", str(path))
    return os.fdopen(handle, "rb")


def is_of_desktop(name: str) -> bool:
    """Tell what file managers leave in a folder that somebody opens."""
    return name in (".DS_Store", "Thumbs.db", "desktop.ini") or name.startswith("._")


def is_pointer(head: bytes) -> bool:
    """Tell what Git LFS leaves in the place of a file by how it begins."""
    return head.startswith(b"version https://git-lfs")


def holds_pointer(path: Path) -> bool:
    """Tell whether Git LFS has left a pointer in the place of a file; False where it cannot be read."""
    try:
        with open_regular(path) as file:
            return is_pointer(file.read(64))
    except OSError:
        return False


def read_bounded(path: Path, most: int) -> bytes:
    """Return the content of a regular file; raise OSError, also for one of more than `most` bytes."""
    with open_regular(path) as file:
        content = file.read(most + 1)
        if len(content) > most:
            size = os.fstat(file.fileno()).st_size
            raise OSError(errno.EFBIG, f"{size:,} bytes, and at most {most:,} are read", str(path))
    return content


def json_mapping(content: bytes | str, *, unique: bool = False) -> dict[str, Any]:
    """Return the JSON object in a file; raise ValueError for whatever else is in it.

    Where keys are `unique`, ValueError is raised for one that stands twice, too; else the last one counts.
    """
    found = _json(content, unique)
    if not isinstance(found, dict):
        raise ValueError(f"not a JSON object, but a {type(found).__name__}")
    return found


def json_list(content: bytes | str, *, unique: bool = False) -> list[Any]:
    """Return the JSON list in a file; raises as `json_mapping` does."""
    found = _json(content, unique)
    if not isinstance(found, list):
        raise ValueError(f"not a JSON list, but a {type(found).__name__}")
    return found


def _json(content: bytes | str, unique: bool) -> Any:
    try:
        return json.loads(content, object_pairs_hook=_once_each if unique else None)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands twice")
        found[key] = value
    return found


def why_unwritable(path: Path, *, in_place: bool = False) -> str:
    """Return why a file cannot be written, in folders that may have to be made; empty where it can be.

    What replaces a file, as `write_atomically` does, needs its folder; what writes `in_place` needs the file.
    """
    # Unlike the methods of Path, these are no error below a folder that one may not enter.
    if os.path.isdir(path):
        return "it is a folder"
    if in_place and os.path.exists(path):
        return "" if os.access(path, os.W_OK) else "it is not writable"
    # A link stays one: the folder is that of its target.
    there = next(parent for parent in Path(os.path.realpath(path)).parents if os.path.lexists(parent))
    if not os.path.isdir(there):
        return f"{there} is no folder"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"{there} is not writable"


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256(path: Path) -> str:
    """Return the same, remembered in this process by real path, size and time of change."""
    status = path.stat()
    return _digest(Path(os.path.realpath(path)), status.st_size, status.st_mtime_ns)


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    return sha256_of(path)
