"""Say what scenes are made of: colours, sizes, layouts, backgrounds, and the records of a scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIZES = ("small", "large")
LAYOUTS = ("one", "beside", "above", "row", "two-over-one", "one-over-two")
MAX_OBJECTS = 3

Colour = tuple[int, int, int]

RGB: dict[str, Colour] = {
    "red": (214, 36, 42),
    "orange": (252, 136, 16),
    "yellow": (250, 222, 40),
    "green": (34, 150, 62),
    "blue": (34, 84, 216),
    "purple": (140, 46, 178),
    "white": (250, 250, 250),
    "black": (26, 26, 30),
}
COLOURS = tuple(RGB)


@dataclass(frozen=True)
class Background:
    """One background: the colours of its top and bottom, and how the caption says it."""

    name: str
    kind: str
    """`plain`, `gradient` (top to bottom) or `split` (a horizon)."""
    top: Colour
    bottom: Colour
    phrases: tuple[str, ...]


def _plain(name: str, rgb: Colour) -> Background:
    return Background(name, "plain", rgb, rgb, (f"on a {name} background", f"against {name}"))


BACKGROUNDS = (
    _plain("grey", (150, 152, 156)),
    _plain("beige", (224, 206, 172)),
    _plain("pink", (242, 178, 196)),
    _plain("teal", (62, 140, 146)),
    _plain("brown", (112, 78, 56)),
    _plain("navy", (26, 36, 82)),
    Background("dawn", "gradient", (150, 186, 232), (250, 206, 196), ("at dawn", "in the morning sky")),
    Background("dusk", "gradient", (46, 40, 92), (206, 122, 128), ("at dusk", "in the evening sky")),
    Background("sea", "gradient", (120, 206, 214), (20, 74, 112), ("under water", "in the deep sea")),
    Background("meadow", "split", (166, 208, 242), (118, 184, 92), ("in a meadow", "on the grass")),
    Background("beach", "split", (150, 206, 232), (232, 210, 164), ("on a beach", "on the sand")),
)

_CONTRAST = 105
"""Least RGB distance of an object's colour from every colour of its background."""


def _allowed(background: Background) -> tuple[str, ...]:
    """Return the colours that stand out from every colour of the background."""

    def apart(colour: str, other: tuple[int, ...]) -> bool:
        distance = sum((one - two) ** 2 for one, two in zip(RGB[colour], other, strict=True))
        return distance >= _CONTRAST**2

    stops: list[tuple[int, ...]] = [background.top, background.bottom]
    if background.kind == "gradient":
        top, bottom = np.array(background.top), np.array(background.bottom)
        stops += [tuple((top + (bottom - top) * part / 4).astype(int)) for part in (1, 2, 3)]
    return tuple(colour for colour in COLOURS if all(apart(colour, stop) for stop in stops))


ALLOWED = {background.name: _allowed(background) for background in BACKGROUNDS}
"""The colours that objects may have on each background."""


@dataclass(frozen=True)
class SceneObject:
    """One object; x, y and radius are in pixels of the 64x64 picture."""

    name: str
    """One of the pictograms' names."""
    colour: str
    size: str
    x: int
    y: int
    radius: float
    """Half of its longer side."""


@dataclass(frozen=True)
class Scene:
    """One captioned picture, before it is drawn; `objects` are in the order of the caption."""

    index: int
    caption: str
    objects: tuple[SceneObject, ...]
    layout: str
    """One of `LAYOUTS`."""
    background: Background
    domain: str = "all"
    """What its names were taken from: one of `pictograms.DOMAINS`."""
