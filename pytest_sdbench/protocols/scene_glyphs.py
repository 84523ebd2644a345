"""Read the outlines of pictograms from DejaVu Sans, which matplotlib ships, in whole numbers."""

from __future__ import annotations

import hashlib
import threading
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_sdbench.base.errors import DataError, Unavailable

SHA256 = "3fdf69cabf06049ea70a00b5919340e2ce1e6d02b0cc3c4b44fb6801bd1e0d22"
"""Of DejaVuSans.ttf 2.37, as matplotlib 3.8 to 3.11 ship it."""

INSTALL = "Drawing scenes needs a font: pip install 'pytest-sdbench[scenes]'"

Polygon = npt.NDArray[np.int64]
"""[points, 2]: x to the right and y up, in eighths of a font unit."""

_READING = threading.RLock()
"""fontTools unpacks a glyph when it is first asked for, and a second thread would see half of it."""

_STEPS = 8
"""Straight pieces of a curve; a quadratic curve at eighths is a whole number of 64ths."""


def font_file() -> Path:
    """Return the font that scenes are drawn with.

    Raises Unavailable if it is not installed, DataError if it is another file.
    """
    with _READING:
        return _checked()[0]


@cache
def outline(code: int) -> tuple[Polygon, ...]:
    """Return the closed contours of a character, turning as in the font.

    Raises as `font_file`, and DataError if the font has no such character.
    """
    with _READING:
        return _read(code)


def _read(code: int) -> tuple[Polygon, ...]:
    path, glyphs, names = _checked()
    if code not in names:
        raise DataError("the font has no such character", file=path, found=f"U+{code:04X}", remedy=INSTALL)
    from fontTools.pens.recordingPen import DecomposingRecordingPen

    pen = DecomposingRecordingPen(glyphs)
    glyphs[names[code]].draw(pen)
    contours: list[list[tuple[int, int]]] = []
    for operator, points in pen.value:
        known = [(_fine(x), _fine(y)) for x, y in filter(None, points)]
        if None in points:
            # A contour without a point on the curve: it starts half way between two off it.
            contours.append([_half(known[-1], known[0])])
            known.append(contours[-1][0])
        _follow(contours, operator, known)
    polygons = (np.array(contour, np.int64) for contour in contours if len(contour) > 2)
    # From 128ths of a unit to eighths, rounded.
    return tuple((polygon + 8) >> 4 for polygon in polygons)


def _fine(value: float) -> int:
    """Return a coordinate in 128ths of a font unit: twice, for points half way, and 64 times, for curves."""
    return round(value * 2) * 64


def _follow(contours: list[list[tuple[int, int]]], operator: str, points: list[tuple[int, int]]) -> None:
    """Add one stroke of the pen to the contours."""
    if operator == "moveTo":
        contours.append(points)
    elif operator == "lineTo":
        contours[-1].extend(points)
    elif operator == "qCurveTo":
        *controls, end = points
        for number, control in enumerate(controls):
            last = number == len(controls) - 1
            # Between two points off the curve lies one on it, half way.
            middle = _half(control, end if last else controls[number + 1])
            _bend(contours[-1], control, end if last else middle)


def _half(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return (one[0] + other[0]) // 2, (one[1] + other[1]) // 2


def _bend(contour: list[tuple[int, int]], control: tuple[int, int], end: tuple[int, int]) -> None:
    """Add a quadratic curve as straight pieces: P(k) = ((8-k)^2 P0 + 2k(8-k) P1 + k^2 P2) / 64."""
    start = contour[-1]
    for k in range(1, _STEPS + 1):
        rest = _STEPS - k
        x, y = (
            (rest * rest * start[axis] + 2 * k * rest * control[axis] + k * k * end[axis]) // _STEPS**2
            for axis in (0, 1)
        )
        contour.append((x, y))


@lru_cache(maxsize=1)
def _checked() -> tuple[Path, Any, dict[int, str]]:
    """Return the font's path, its glyphs, and the glyph's name of every character."""
    found = find_spec("matplotlib")
    if found is None or found.origin is None or find_spec("fontTools") is None:
        lacks = "matplotlib" if found is None or found.origin is None else "fonttools"
        raise Unavailable(f"scenes cannot be drawn here: {lacks} is not installed", remedy=INSTALL)
    path = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    if not path.is_file():
        raise Unavailable("the font that scenes are drawn with is missing", file=path, remedy=_OTHER)
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    if checksum != SHA256:
        message = f"another font than the one of scenes, sha256 {SHA256}"
        raise DataError(message, file=path, found=f"{checksum} of matplotlib {_version()}", remedy=_OTHER)
    from fontTools.ttLib import TTFont

    font = TTFont(path)
    return path, font.getGlyphSet(), font.getBestCmap()


_OTHER = "matplotlib 3.8 to 3.11 ship the right one: pip install --force-reinstall 'matplotlib>=3.8,<3.12'"


def _version() -> str:
    try:
        return version("matplotlib")
    except PackageNotFoundError:
        return "of an unknown version"
