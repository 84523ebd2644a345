"""Say numbers in words that suit them, and show the words of others as they are."""

from __future__ import annotations

import unicodedata

_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of characters that control, turn, hide or break a line."""
_JOINERS = "\u200c\u200d"
"""Which emoji and scripts need."""


def plain(text: object) -> str:
    """Return somebody else's text as one line that a terminal shows as it is.

    What would break the line, move the cursor, colour, or turn the direction of writing is written out.
    """
    said = str(text)
    if said.isprintable():
        return said
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in _UNSEEN and char not in _JOINERS
        else char
        for char in said
    )


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
