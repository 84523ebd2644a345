"""The outlines of the objects in scenes, as signed distances."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.floating[Any]]
"""One number for each pixel of a box, or of its columns or rows alone."""


def signed_distance(shape: str, u: Plane, v: Plane) -> Plane:
    """Return the distance to the outline in radii, negative inside and exact near it; v points down."""
    far: Plane = np.hypot(u, v)
    if shape == "circle":
        return far - 0.98
    if shape == "ring":
        band: Plane = np.abs(far - 0.74)
        return band - 0.27
    if shape == "square":
        box: Plane = np.maximum(np.abs(u), np.abs(v))
        return box - 0.84
    if shape == "cross":
        across, along = np.abs(u), np.abs(v)
        bars: Plane = np.minimum(
            np.maximum(across - 1.0, along - 0.33), np.maximum(across - 0.33, along - 1.0)
        )
        return bars
    if shape == "triangle":
        # An equal-sided triangle, its base below: the half planes of its three sides.
        side: Plane = np.maximum(np.abs(u) * 0.866025 - v * 0.5 - 0.6, v - 0.78)
        return side.astype(np.float32)
    if shape == "star":
        return _star(u, v)
    return _heart(u, v)


def _star(u: Plane, v: Plane) -> Plane:
    """Fold the plane onto half of one of the five points; its edge is then one straight line."""
    outer, inner = 1.12, 0.5
    part = np.pi / 5
    angle = np.arctan2(u, -v - 0.06)
    folded = np.abs(np.mod(angle + part, 2 * part) - part)
    radius = np.hypot(u, v + 0.06)
    tip = np.array([outer, 0.0])
    notch = inner * np.array([np.cos(part), np.sin(part)])
    edge = notch - tip
    normal = np.array([-edge[1], edge[0]]) / np.linalg.norm(edge)
    normal *= np.sign(normal @ tip)
    offset = float(normal @ tip)
    distance: Plane = normal[0] * radius * np.cos(folded) + normal[1] * radius * np.sin(folded) - offset
    return distance.astype(np.float32)


def _heart(u: Plane, v: Plane) -> Plane:
    """Join two discs and the wedge that is tangent to them."""
    half = np.abs(u)
    disc = np.hypot(half - 0.48, v + 0.34) - 0.53
    # The wedge's side touches the disc at 45 degrees, and both sides meet at the bottom tip.
    slope = np.float32(0.7071068)
    side = (half - 0.48) * slope + (v + 0.34) * slope - 0.53
    below = np.maximum((half - 0.48) * slope - (v + 0.34) * slope, -(v + 0.34))
    distance: Plane = np.minimum(disc, np.maximum(side, below))
    return distance.astype(np.float32)
