"""Say numbers in words that suit them."""

from __future__ import annotations


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
