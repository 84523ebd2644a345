"""What lacks of the images of one shard, and what it takes to fill that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Gap:
    """What lacks of the images of one shard."""

    images: range
    columns: frozenset[str]
    """Wanted ones that are not known, by their names in rows."""
    rows: bool
    """Whether there is no shard of these images at all: seeds and flags are not known either."""
    pictures: bool
    """Whether the pictures are wanted for their own sake, and not there."""
    kept: bool
    """Whether the pictures are there."""
    keeps: bool = False
    """Whether the pictures are to be written where the images are drawn."""

    @classmethod
    def of_all(cls, images: range, columns: Iterable[str]) -> Gap:
        """Return the gap where nothing is known."""
        return cls(images, frozenset(columns), rows=True, pictures=False, kept=False)

    def __bool__(self) -> bool:
        return self.rows or self.pictures or bool(self.columns)

    @property
    def draws(self) -> bool:
        """Whether it takes the checkpoint to fill the gap: kept pictures are not drawn again."""
        return self.rows or not self.kept
