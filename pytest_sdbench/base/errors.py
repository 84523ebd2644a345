"""Errors that name the file, the key, what was found and what to do."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

QUOTED = 300
"""Characters of what was found that a message repeats."""
MESSAGE = 4000
"""Of a whole message, which may list several faults."""


class SdbenchError(Exception):
    """Say what is wrong, where, what was found and what to do about it.

    The text reads ``FILE: KEY: MESSAGE (found FOUND). REMEDY``; parts that are not given are left out, long
    ones cut, and secrets of URLs and the path of the user's home do not stand in it.
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
        where = "" if file is None else f"{cut(file, MESSAGE)}: "
        where += "" if key is None else f"{cut(key)}: "
        what = cut(message, MESSAGE) + ("" if found is None else f" (found {quoted(found)})")
        super().__init__(f"{where}{what}" + (f". {cut(remedy, MESSAGE)}" if remedy else ""))

    def __str__(self) -> str:
        from pytest_sdbench.base.text import plain  # which a plain pytest does not load

        # Names of files, keys and models are not ours: they break no line, and colour none.
        return plain(super().__str__())

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


class PictureLoss(EvidenceError):
    """Pictures that were kept and are gone, or damaged: who draws again has them."""


class Unavailable(SdbenchError):
    """Something that is not on this machine: no fault of the card; the remedy says how to get it."""


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    return cut((str(error).strip() or type(error).__name__).splitlines()[0])


def quoted(found: object) -> str:
    """Return what was found as a message repeats it: no more than some 300 characters of it."""
    try:
        return repr(cut(found)) if isinstance(found, str) else cut(repr(found))
    except Exception:  # too deep, or a number of too many digits
        return f"a {type(found).__name__}"


def cut(text: object, most: int = QUOTED) -> str:
    """Return a text without secrets and paths of users; of a longer one the beginning and the end."""
    from pytest_sdbench.base.paths import told  # which a plain pytest does not load

    said = told(text)
    if len(said) <= most:
        return said
    return f"{said[: most - 60]} [... {len(said):,} characters ...] {said[-30:]}"
