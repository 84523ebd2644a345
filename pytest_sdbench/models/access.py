"""Say which file of a checkpoint this user may not read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_sdbench.base.errors import CheckpointError

LET_READ = "Let its owner run: chmod -R a+rX FOLDER"


def forbidden(file: Path) -> CheckpointError:
    """Return the error of a file that this user may not read; a closed folder above it is named instead."""
    closed = next((folder for folder in reversed(file.parents) if not os.access(folder, os.X_OK)), None)
    if closed is not None:
        return CheckpointError("this user may not look into the folder", file=closed, remedy=LET_READ)
    why = ": safetensors 0.8 saves it for its owner alone" if file.suffix == ".safetensors" else ""
    return CheckpointError(f"this user may not read the file{why}", file=file, remedy=LET_READ)


@contextmanager
def readable() -> Iterator[None]:
    """Turn what the system keeps from this user into a ``CheckpointError`` that names the file."""
    try:
        yield
    except PermissionError as error:
        raise forbidden(Path(error.filename or "the checkpoint")) from error
