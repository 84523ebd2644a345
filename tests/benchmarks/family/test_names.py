"""A name's row counts its objects; the rows stand in the order of frequency."""

from __future__ import annotations

import numpy as np

from benchmarks.family import names
from benchmarks.family.reading import SLOTS
from pytest_sdbench.protocols import scenes

COMMON, OTHER, RARE = scenes.NAMES[0], scenes.NAMES[40], scenes.NAMES[-1]


def read(*slots: int) -> list[float]:
    """Return a row of readings: of each object 0 for wrong, 1 for its name alone, 2 for its colour, too."""
    empty = [-1.0] * (SLOTS - len(slots))
    return [*(float(each > 0) for each in slots), *empty, *(float(each > 1) for each in slots), *empty]


CAPTIONS = (f"a small red {RARE} left of a big blue {COMMON}", f"a big green {COMMON}", f"a big red {OTHER}")


def test_objects_are_counted_by_their_name() -> None:
    rows = np.array([read(0, 2), read(1), read(2)], np.float32)
    found = names.counts(rows, CAPTIONS)
    assert found == {COMMON: (1, 2), OTHER: (1, 1), RARE: (0, 1)}
    assert list(found) == [COMMON, OTHER, RARE]
    assert names.total(found.values()) == (2, 4)


def test_the_table_has_a_row_for_all_for_quarters_and_for_each_name() -> None:
    real = {COMMON: (2, 2), OTHER: (1, 1), RARE: (1, 1)}
    drawn = {COMMON: (1, 2), OTHER: (1, 1), RARE: (0, 1)}
    text = names.report(
        {
            "protocol": "p",
            "n": 3,
            "unseen": 1,
            "read": {names.REAL: real, "scenes-tiny": drawn},
            "read_of_unseen": {names.REAL: {OTHER: (1, 1)}, "scenes-tiny": {OTHER: (0, 1)}},
        }
    )
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "%" in line]
    assert cells == [
        ["**all objects**", "4", "100.0%", "50.0%"],
        ["**all objects of captions that training had not**", "1", "100.0%", "0.0%"],
        ["**the most frequent quarter of names**", "2", "100.0%", "50.0%"],
        ["**the second quarter of names**", "1", "100.0%", "100.0%"],
        ["**the rarest quarter of names**", "1", "100.0%", "0.0%"],
        [COMMON, "2", "100.0%", "50.0%"],
        [OTHER, "1", "100.0%", "100.0%"],
        [RARE, "1", "100.0%", "0.0%"],
    ]
