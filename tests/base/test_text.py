"""How times and numbers of bytes are said."""

from __future__ import annotations

import pytest

from pytest_sdbench.base.text import duration, size_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (12_345, "12.3 kB"),
        (999_499, "999 kB"),
        (999_999, "1 MB"),
        (1_234_567, "1.23 MB"),
        (999_999_999, "1 GB"),
        (1_234_000_000_000, "1,234 GB"),
    ],
)
def test_bytes_are_said_to_three_digits(count: int, text: str) -> None:
    assert size_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.4, "1 seconds"), (119, "119 seconds"), (7300, "2 hours"), (172_800, "2 days")]
)
def test_times_are_said_in_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
