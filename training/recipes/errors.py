"""Say what is wrong with a recipe: all of it at once, each with its key and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pytest_sdbench.base.schema import Fault
from training.errors import TrainingError

COMMAND_LINE = "command line"


def raise_all(faults: Sequence[Fault], file: str | Path, given: Sequence[str]) -> None:
    """Raise one TrainingError that lists the faults; return if there are none.

    A fault of a key that the command line set is blamed on the command line; `given` are these keys.
    """

    def place(fault: Fault) -> str | Path:
        blamed = any(f"{fault.key}.".startswith((f"{key}.", f"{key}[")) for key in given)
        return COMMAND_LINE if blamed else file

    errors = [fault.error(TrainingError, place(fault)) for fault in faults]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise TrainingError(
            f"{len(errors)} errors in a recipe:\n" + "\n".join(f"  {error}" for error in errors)
        )


def schema_keys(recipe: BaseModel) -> list[str]:
    """Return every dotted key of a recipe."""

    def walk(value: Any, prefix: str) -> Iterator[str]:
        if isinstance(value, Mapping):
            for name, part in value.items():
                yield f"{prefix}{name}"
                yield from walk(part, f"{prefix}{name}.")

    return list(walk(recipe.model_dump(by_alias=True, exclude={"sources", "unstated"}), ""))
