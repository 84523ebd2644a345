"""What goes wrong in a training: an error that names file, key, what was found and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.base.text import plain

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors of a full disk, a full quota, and a file that may not grow."""


class TrainingError(SdbenchError):
    """A recipe, training data or run that cannot be used as it is."""


class TrainingErrors(TrainingError):
    """Several of them, a line each."""

    def __str__(self) -> str:
        return "\n".join(map(plain, str(self.args[0]).split("\n")))


@contextmanager
def explain_write_errors(
    file: Path, what: str, *, remedy: str = "Give a folder that can be written"
) -> Iterator[None]:
    """Turn an OSError into a TrainingError: the disk is full, or `what` cannot be written to `file`."""
    try:
        yield
    except OSError as error:
        full = error.errno in FULL_DISK
        raise TrainingError(
            f"the disk is full: {what} cannot be written" if full else f"{what} cannot be written",
            file=error.filename or file,
            found=error.strerror or str(error),
            remedy="Free some space and run the same command again: what is there already is kept"
            if full
            else remedy,
        ) from error
