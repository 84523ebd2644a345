"""Say numbers in words that suit them, and show the words of others as they are."""

from __future__ import annotations

import re
import unicodedata

_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of characters that control, turn, hide or break a line."""
_JOINERS = "\u200c\u200d"
"""Which emoji and scripts need."""
_COMMAND = re.compile(r"(?<!\S):(?=:)|##(?=\[)")
"""What makes a line of a log a command to the runner of GitHub Actions: ``::error::`` and ``##[error]``.

Any word may come to be the first one of a line.
"""


def plain(text: object) -> str:
    """Return somebody else's text as one line that a terminal shows as it is.

    What would break the line, move the cursor, colour, turn the direction of writing, or command the runner
    of a CI is written out.
    """
    said = _COMMAND.sub(_written_out, str(text))
    if said.isprintable():
        return said
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in _UNSEEN and char not in _JOINERS
        else char
        for char in said
    )


def _written_out(found: re.Match[str]) -> str:
    return "#\\x23" if found[0] == "##" else "\\x3a"


def duration(seconds: float) -> str:
    """Say a time in the unit that suits it: it is an estimate."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def size_text(count: int) -> str:
    """Say a number of bytes in the unit that suits it, to three digits (1 MB is 10^6 bytes)."""
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= 0.9995 * size:
            number = count / size
            return f"{number:.3g} {unit}" if number < 999.5 else f"{number:,.0f} {unit}"
    return f"{count} B"


def columns(text: str) -> int:
    """Return how many columns of a terminal a text takes: wide characters two, marks on others none."""
    if text.isascii():
        return len(text)
    return sum(_columns_of(char) for char in text)


def _columns_of(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def shortened(name: str, most: int) -> str:
    """Return a name of so many columns at most; of a longer one both ends: runs of one model begin alike."""
    if columns(name) <= most:
        return name
    tail = max(most, 1) // 2
    return clipped(name, max(most, 1) - tail) + clipped(name[::-1], tail + 1)[::-1].removeprefix("…")


def clipped(text: str, most: int) -> str:
    """Return a text of so many columns at most; of a longer one the beginning and an ellipsis."""
    if columns(text) <= most:
        return text
    kept, room = "", max(most, 1) - 1
    for char in text:
        room -= _columns_of(char)
        if room < 0:
            break
        kept += char
    return f"{kept.rstrip()}…"
