"""Find places for names beside points, so that no two lie on one another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

Spot = tuple[float, float]
Segment = tuple[Spot, Spot]
_PARTS = [part / 16 for part in range(17)]


@dataclass(frozen=True)
class Box:
    """A rectangle, in any unit."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Return the area that two share."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.top, other.top) - max(self.bottom, other.bottom)
        return wide * high if wide > 0 and high > 0 else 0.0

    def crossed(self, ends: Segment) -> bool:
        """Return whether a line runs through it."""
        (x, y), (to_x, to_y) = ends
        return any(
            self.left < x + part * (to_x - x) < self.right and self.bottom < y + part * (to_y - y) < self.top
            for part in _PARTS
        )

    def end_of(self, point: Spot) -> Spot:
        """Return where a line from a point ends at it: in the middle of its side where it stands beside."""
        x, y = point
        beside = min(max(x, self.left), self.right)
        return beside, (self.bottom + self.top) / 2 if beside != x else min(max(y, self.bottom), self.top)

    def outside(self, room: Box) -> float:
        """Return how far it stands out of a room."""
        ends = room.left - self.left, self.right - room.right, room.bottom - self.bottom, self.top - room.top
        return sum(max(0.0, end) for end in ends)


_ANGLES = [math.radians(angle) for angle in (0, 30, -30, 60, -60, 180, 90, -90, 150, -150, 120, -120)]
_FAR = 60
"""Steps that a name goes away from its point at most."""


def cross(first: Segment, second: Segment) -> bool:
    """Return whether two lines cross."""

    def side(line: Segment, point: Spot) -> float:
        (x, y), (to_x, to_y) = line
        return (to_x - x) * (point[1] - y) - (to_y - y) * (point[0] - x)

    return all(side(a, b[0]) * side(a, b[1]) < 0 for a, b in ((first, second), (second, first)))


_COVERING, _AMISS, _AWAY = 1e4, 60.0, 0.5
"""What it costs to cover anything, beside the area, or to stand out of the room by one unit; that a line runs
through a name, a point or another line, or that a name is nearer to another point than to its own; and each
unit of its distance."""


def place(
    points: Sequence[Spot],
    sizes: Sequence[tuple[float, float]],
    room: Box,
    taken: Sequence[Box] = (),
    *,
    near: float,
) -> list[Box]:
    """Return the box of each name: near its point, on nothing else and within the room.

    `sizes` are width and height of each name, `taken` what none may lie on, `near` the distance of a name
    from its point where there is room. The line from a name to its point runs through no other, where that
    can be had. Where there is no place at all, it is the one that covers least.
    """
    # The first ones have the best places: of some orders the best is taken.
    orders = [(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)]
    found = [_placed(points, sizes, room, taken, near, order) for order in orders]
    return min(found, key=lambda each: each[0])[1]


def _placed(
    points: Sequence[Spot],
    sizes: Sequence[tuple[float, float]],
    room: Box,
    taken: Sequence[Box],
    near: float,
    order: Spot,
) -> tuple[float, list[Box]]:
    """Return what the boxes cost, one after the other in a direction, and the boxes."""
    found: dict[int, Box] = {}
    lines: list[Segment] = []
    total = 0.0
    for at in sorted(range(len(points)), key=lambda at: points[at][0] * order[0] + points[at][1] * order[1]):
        others = [other for other in points if math.dist(other, points[at]) > near / 4]
        best, least = None, math.inf
        for box in _candidates(points[at], sizes[at], near):
            line = points[at], box.end_of(points[at])
            cost = _AWAY * math.dist(*line)
            if cost >= least:
                break  # those that follow are farther away
            covered = sum(box.overlap(other) for other in (*taken, *found.values()))
            cost += _COVERING * (covered > 0) + covered + _COVERING * box.outside(room)
            if cost < least:
                cost += _AMISS * _amiss(box, line, others, found.values(), lines, near)
            if cost < least:
                best, least = box, cost
        assert best is not None
        found[at] = best
        lines.append((points[at], best.end_of(points[at])))
        total += least
    return total, [found[at] for at in range(len(points))]


def _amiss(
    box: Box,
    line: Segment,
    others: Sequence[Spot],
    names: Iterable[Box],
    lines: Iterable[Segment],
    near: float,
) -> int:
    """Return how many lines run through what they should not, and how many points are nearer to the name."""
    half, own = near / 2, math.dist(*line)
    marks = [
        Box(x - half, y - half, x + half, y + half) for x, y in others if math.dist((x, y), line[0]) > near
    ]
    nearer = sum(math.dist(box.end_of(other), other) < min(own + half, 3 * near) for other in others)
    return (
        nearer
        + sum(box.crossed(other) + cross(line, other) for other in lines)
        + sum(other.crossed(line) for other in (*names, *marks))
    )


def _candidates(point: tuple[float, float], size: tuple[float, float], near: float) -> Iterator[Box]:
    (x, y), (wide, high) = point, size
    for step in range(_FAR):
        for angle in _ANGLES:
            away = near * (1 + step / 2)
            right, up = math.cos(angle), math.sin(angle)
            # The nearest side or corner of the box is what stands so far away.
            left = x + away * right - wide * (1 - right) / 2
            bottom = y + away * up - high * (1 - up) / 2
            yield Box(left, bottom, left + wide, bottom + high)
