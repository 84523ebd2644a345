"""Errors that name the file, the key, what was found and what to do."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any


class SdbenchError(Exception):
    """Say what is wrong, where, what was found and what to do about it.

    The text reads ``FILE: KEY: MESSAGE (found FOUND). REMEDY``; parts that are not given are left out.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        key: str | None = None,
        found: object = None,
        remedy: str | None = None,
    ) -> None:
        self.message, self.file, self.key, self.found, self.remedy = message, file, key, found, remedy
        where = "".join(f"{_cut(str(part))}: " for part in (file, key) if part is not None)
        what = _cut(message) if found is None else f"{_cut(message)} (found {_cut(repr(found))})"
        super().__init__(f"{where}{what}" + (f". {remedy}" if remedy else ""))

    def at(self, file: str | Path) -> SdbenchError:
        """Return the same error with the file that it came from."""
        return type(self)(self.message, file=file, key=self.key, found=self.found, remedy=self.remedy)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders under pytest-xdist, and pickling alone drops keyword arguments.
        named: dict[str, Any] = {"file": self.file, "key": self.key, "found": self.found}
        named["remedy"] = self.remedy
        return partial(type(self), **named), (self.message,)


class CardError(SdbenchError):
    """A card that cannot be read, or that claims something impossible."""


class ProtocolError(SdbenchError):
    """A protocol that is unknown, broken or contradicts itself."""


class CheckpointError(SdbenchError):
    """Weights that are damaged, incomplete or not those of their configuration."""


class DataError(SdbenchError):
    """Prompts, images or reference statistics that are malformed or not the expected ones."""


class EvidenceError(SdbenchError):
    """An evidence store that is unreadable, unwritable or damaged."""


class Unavailable(SdbenchError):
    """Something that is not on this machine: no fault of the card; the remedy says how to get it."""


def _cut(text: str, most: int = 400) -> str:
    """Return a part of a message without its end where it is too long to be read."""
    return text if len(text) <= most else f"{text[: most - 20]}... ({len(text):,} characters)"


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
