"""Name the checkpoints of the embedded family."""

from __future__ import annotations

BASE = "embedded:scenes-sd"
FAMILY = ("scenes-sd", "scenes-base", "scenes-small", "scenes-small-2m", "scenes-tiny")
"""The teacher and its students."""


def spec(name: str) -> str | dict[str, str]:
    """Return the checkpoint of a member of the family, as a card names it."""
    return BASE if name == "scenes-sd" else {"base": BASE, "unet": f"embedded:{name}"}
