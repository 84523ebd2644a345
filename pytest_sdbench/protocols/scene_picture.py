"""Draw scenes in whole numbers: the same bytes on every machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache, partial

import numpy as np
import numpy.typing as npt

from pytest_sdbench.protocols.pictograms import PICTOGRAMS, Pictogram
from pytest_sdbench.protocols.scene_masks import GRID, Mask, masks
from pytest_sdbench.protocols.scene_parts import BACKGROUNDS, RGB, Scene

Image = npt.NDArray[np.uint8]
Canvas = npt.NDArray[np.uint16]
"""Pictures under way, 0 to 255; sums of products with weights that add up to 256 stay below 65,536."""

_SHADOW = 77
"""Of 256, how much darker a full shadow makes the background."""


def render(scene: Scene, size: int = 64) -> Image:
    """Draw a scene, anti-aliased: uint8 RGB, [size, size, 3].

    Raises Unavailable without the font, DataError if it is another one.
    """
    canvas = ground(scene.background.name, size)
    for thing in scene.objects:
        place = (thing.x, thing.y, thing.radius)
        draw(canvas, PICTOGRAMS[thing.name], place, partial(paints, thing.colour))
    return canvas.astype(np.uint8)


def ground(name: str, size: int = 64) -> Canvas:
    """Return a canvas with a background alone, [size, size, 3]."""
    return _ground(name, size).copy()


@lru_cache(maxsize=64)
def _ground(name: str, size: int) -> Canvas:
    background = next(one for one in BACKGROUNDS if one.name == name)
    # The middles of the rows, in 2 * size-ths of the height.
    height = np.arange(size) * 2 + 1
    if background.kind == "split":
        # The horizon is two of 64 pixels soft: a hard edge would look drawn by another hand.
        height = np.clip((height - size) * 32 + size, 0, 2 * size)
    top, bottom = np.array(background.top), np.array(background.bottom)
    column = (2 * top * size + height[:, None] * (bottom - top) + size) // (2 * size)
    return np.repeat(column[:, None, :], size, axis=1).astype(np.uint16)


def draw(
    canvas: Canvas,
    pictogram: Pictogram,
    place: tuple[float, float, float],
    paint: Callable[[int], tuple[Canvas, Canvas]],
) -> None:
    """Blend one object and its soft shadow into the canvas.

    `place` is x, y and radius in pixels of a picture of 64, whole halves. `paint` returns the colours of the
    body and of the lines, [side, side, 3], in a box of this side around the object.
    """
    size = len(canvas)
    # In samples, of which a pixel has 16.
    x, y, diameter = (
        round(2 * value) * GRID * size // part for value, part in zip(place, (128, 128, 64), strict=True)
    )
    key = (pictogram.code, pictogram.lined, max(GRID, diameter), x % GRID, y % GRID)
    mask = masks(*key)
    left, upper = x // GRID - mask.reach, y // GRID - mask.reach
    step = max(1, size // 32)
    _blend(canvas, _shadow(*key), left + step, upper + step, None)
    body, lines = paint(len(mask.body))
    _blend(canvas, mask.body, left, upper, body)
    if mask.lines is not None:
        _blend(canvas, mask.lines, left, upper, lines)


def _blend(canvas: Canvas, weight: Mask, left: int, upper: int, paint: Canvas | None) -> None:
    """Lay paint, [h, w, 3], over the canvas where the weight says, of 256; without paint, darken it."""
    size, reach = len(canvas), len(weight)
    rows = slice(max(0, upper), min(size, upper + reach))
    columns = slice(max(0, left), min(size, left + reach))
    mine = (slice(rows.start - upper, rows.stop - upper), slice(columns.start - left, columns.stop - left))
    weight = weight[mine][..., None]
    box = canvas[rows, columns]
    if paint is None:
        box *= 256 - weight
    else:
        box *= 256 - weight
        box += weight * paint[mine]
    box += 128
    box >>= 8


@lru_cache(maxsize=8192)
def _shadow(code: int, lined: bool, diameter: int, across: int, down: int) -> Mask:
    """Return how much darker the ground is behind an object, of 256: the body, blurred 3 x 3."""
    body = masks(code, lined, diameter, across, down).body.astype(np.int64)
    blurred = np.zeros_like(body)
    padded = np.pad(body, 1)
    for row in range(3):
        for column in range(3):
            blurred += padded[row : row + len(body), column : column + len(body)]
    return (blurred * _SHADOW // (9 * 256)).astype(np.uint16)


@cache
def paints(colour: str, side: int) -> tuple[Canvas, Canvas]:
    """Return the colours of bodies and of lines in a box of an object, [side, side, 3]: lit from above."""
    rgb = np.array(RGB[colour])
    # Lines are a dark shade of the colour; those on black can only be lighter.
    dark = rgb + (150 - rgb) * 3 // 4 if colour == "black" else rgb * 5 // 16
    light = 269 - 28 * (2 * np.arange(side) + 1 - side) // side

    def lit(shade: npt.NDArray[np.int64]) -> Canvas:
        shades: Canvas = np.minimum(shade * light[:, None] // 256, 255).astype(np.uint16)
        return np.broadcast_to(shades[:, None, :], (side, side, 3))

    return lit(rgb), lit(dark)
