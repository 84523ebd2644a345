"""Write files whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp-"
"""How the name of a file begins that is not whole yet: a killed run may leave one behind."""


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Put a file into its place at once: readers find the old one or the new one, also after a power cut.

    `content` is bytes, or a function that writes them to the open file. The file keeps the mode of the one
    that it replaces, and a link stays a link. Raises OSError; whatever was raised, the old file is as it was
    and nothing is left beside it.
    """
    target = path.resolve()
    temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            temporary.chmod(target.stat().st_mode & 0o7777)
        temporary.replace(target)
        _flush_folder(target.parent)
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
