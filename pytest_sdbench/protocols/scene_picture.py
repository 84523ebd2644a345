"""Draw scenes in whole numbers: the same bytes on every machine."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt

from pytest_sdbench.protocols.scene_masks import GRID, Mask, masks
from pytest_sdbench.protocols.scene_parts import BACKGROUNDS, RGB, Scene, SceneObject

Image = npt.NDArray[np.uint8]
Canvas = npt.NDArray[np.uint16]
"""Pictures under way, 0 to 255; sums of products with weights that add up to 256 stay below 65,536."""

_SHADOW = 77
"""Of 256, how much darker a full shadow makes the background."""


def render(scene: Scene, size: int = 64) -> Image:
    """Draw a scene, anti-aliased: uint8 RGB, [size, size, 3].

    Raises Unavailable without the font, DataError if it is another one.
    """
    canvas = _ground(scene.background.name, size).copy()
    for thing in scene.objects:
        _draw(canvas, thing)
    return canvas.astype(np.uint8)


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


def _draw(canvas: Canvas, thing: SceneObject) -> None:
    """Blend one object and its soft shadow into the canvas, inside a box around it."""
    size = len(canvas)
    # In samples, of which a pixel has 16.
    x, y = (round(2 * value) * GRID * size // 128 for value in (thing.x, thing.y))
    diameter = max(GRID, round(2 * thing.radius) * GRID * size // 64)
    mask = masks(thing.name, diameter, x % GRID, y % GRID)
    left, upper = x // GRID - mask.reach, y // GRID - mask.reach
    step = max(1, size // 32)
    _blend(canvas, _shadow(thing.name, diameter, x % GRID, y % GRID), left + step, upper + step, None)
    paint, dark = _paints(thing.colour, len(mask.body))
    _blend(canvas, mask.body, left, upper, paint)
    if mask.lines is not None:
        _blend(canvas, mask.lines, left, upper, dark)


def _blend(canvas: Canvas, weight: Mask, left: int, upper: int, paint: Canvas | None) -> None:
    """Lay paint, [h, 1, 3], over the canvas where the weight says, of 256; without paint, darken it."""
    size, reach = len(canvas), len(weight)
    rows = slice(max(0, upper), min(size, upper + reach))
    columns = slice(max(0, left), min(size, left + reach))
    mine = slice(rows.start - upper, rows.stop - upper)
    weight = weight[mine, columns.start - left : columns.stop - left, None]
    box = canvas[rows, columns]
    if paint is None:
        box *= 256 - weight
    else:
        box *= 256 - weight
        box += weight * paint[mine]
    box += 128
    box >>= 8


@lru_cache(maxsize=8192)
def _shadow(name: str, diameter: int, across: int, down: int) -> Mask:
    """Return how much darker the ground is behind an object, of 256: the body, blurred 3 x 3."""
    body = masks(name, diameter, across, down).body.astype(np.int64)
    blurred = np.zeros_like(body)
    padded = np.pad(body, 1)
    for row in range(3):
        for column in range(3):
            blurred += padded[row : row + len(body), column : column + len(body)]
    return (blurred * _SHADOW // (9 * 256)).astype(np.uint16)


@cache
def _paints(colour: str, rows: int) -> tuple[Canvas, Canvas]:
    """Return the colour of bodies and that of lines in every row, [rows, 1, 3]: lit from above."""
    rgb = np.array(RGB[colour])
    # Lines are a dark shade of the colour; those on black can only be lighter.
    dark = rgb + (150 - rgb) * 3 // 4 if colour == "black" else rgb * 5 // 16
    light = 269 - 28 * (2 * np.arange(rows) + 1 - rows) // rows

    def lit(shade: npt.NDArray[np.int64]) -> Canvas:
        shades: Canvas = np.minimum(shade * light[:, None] // 256, 255).astype(np.uint16)
        return shades[:, None, :]

    return lit(rgb), lit(dark)
