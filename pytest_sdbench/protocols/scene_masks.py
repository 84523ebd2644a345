"""Fill the outlines of pictograms: how much of each pixel is covered, in whole numbers alone.

Every pixel holds 16 x 16 sample points, and a point is inside where the outline winds around it. Floating
point, whose last bits differ between machines, has no part in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pytest_sdbench.protocols.scene_glyphs import Polygon, outline

GRID = 16
"""Sample points along the side of a pixel."""

Mask = npt.NDArray[np.uint16]
Bits = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Masks:
    """Coverage of one character in a box around its centre, uint16 [h, w]; 256 is all of a pixel."""

    body: Mask
    """What is painted in the object's colour."""
    lines: Mask | None
    """The lines on the body, where the glyph draws lines."""
    reach: int
    """Pixels from the box's upper left corner to the pixel of the centre."""


@lru_cache(maxsize=8192)
def masks(code: int, lined: bool, diameter: int, across: int, down: int) -> Masks:
    """Return the masks of a character whose longer side is `diameter` samples of 1/16 pixel.

    It has a body and lines where it is `lined`, else a body alone. `across` and `down`, 0 to 15, are the
    sample of its pixel that the centre lies on.
    """
    inside, lines = _samples(code, lined, diameter)
    body = _coverage(inside, across, down)
    reach = len(inside) // (2 * GRID)
    return Masks(body, None if lines is None else _coverage(lines, across, down), reach)


@lru_cache(maxsize=1024)
def _samples(code: int, lined: bool, diameter: int) -> tuple[Bits, Bits | None]:
    """Return which sample points the body and the lines of a character hold: eight a byte, [2H, 2H / 8]."""
    contours = outline(code)
    ink = np.packbits(fill(contours, diameter), axis=1)
    if not lined:
        return ink, None
    body = fill([_filled(contour) for contour in contours], diameter)
    return np.packbits(body, axis=1), ink


def _filled(contour: Polygon) -> Polygon:
    """Return the contour turning one way, so that a contour inside another cuts no hole."""
    x, y = contour[:, 0], contour[:, 1]
    area = (x * np.roll(y, -1) - np.roll(x, -1) * y).sum()
    return contour if area > 0 else contour[::-1]


def fill(contours: tuple[Polygon, ...] | list[Polygon], diameter: int) -> npt.NDArray[np.bool_]:
    """Return which sample points the contours wind around, [2H, 2H], the middle of their box amid.

    The longer side of the box becomes `diameter` samples; H is whole pixels, the least that hold it.
    """
    half = -(-diameter // (2 * GRID)) * GRID
    points = np.concatenate(contours)
    low, high = points.min(axis=0), points.max(axis=0)
    side = int((high - low).max())
    # In units of which a sample is 2 * side wide: all coordinates are whole, the centre is 0.
    edges = [((2 * contour - low - high) * diameter) * (1, -1) for contour in contours]
    start = np.concatenate(edges)
    end = np.concatenate([np.roll(edge, -1, axis=0) for edge in edges])
    winding = np.zeros((2 * half, 2 * half + 1), np.int16)
    for direction, first, last in ((1, start, end), (-1, end, start)):
        falling = first[:, 1] < last[:, 1]
        rows, columns = _crossings(first[falling], last[falling], side)
        np.add.at(winding, (rows + half, np.clip(columns + half, 0, 2 * half)), direction)
    inside: npt.NDArray[np.bool_] = np.cumsum(winding[:, :-1], axis=1, dtype=np.int16) != 0
    return inside


def _crossings(
    first: Polygon, last: Polygon, side: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return rows that edges cross on their way down, and the first column right of each crossing.

    Row and column k have their samples at (2k + 1) * side.
    """
    above = -(-(first[:, 1] - side) // (2 * side))
    below = -(-(last[:, 1] - side) // (2 * side))
    count = below - above
    edge = np.repeat(np.arange(len(first)), count)
    rows = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + above[edge]
    step = last - first
    rise, run = step[edge, 1], step[edge, 0]
    # x = x0 + (y - y0) * run / rise; its column is the floor of (x + side) / (2 * side).
    height = (2 * rows + 1) * side - first[edge, 1]
    columns = ((first[edge, 0] + side) * rise + height * run) // (2 * side * rise)
    return rows, columns


def _coverage(inside: Bits, across: int, down: int) -> Mask:
    """Count the sample points in every pixel, 0 to 256, with the centre on one sample of its pixel."""
    size = len(inside) + GRID
    shifted = np.zeros((size, size), np.uint8)
    shifted[down : down + len(inside), across : across + len(inside)] = np.unpackbits(inside, axis=1)
    pixels = size // GRID
    # Rows first, whose sums are at most 16; then columns.
    tall = shifted.reshape(pixels, GRID, size).sum(axis=1, dtype=np.uint8)
    covered: Mask = tall.reshape(pixels, pixels, GRID).sum(axis=2, dtype=np.uint16)
    return covered
