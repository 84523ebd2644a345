"""Count balls for recall and coverage, and tell how sure these shares of real images are.

Images of one prompt are a unit: they come and go together. The influence of a unit is what the share loses
without it. The jackknife adds up the squares of these, and so counts what depends on r units together r times
(Efron and Stein 1981). It is much too wide here, and what it is wider by is told in two ways.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pytest_sdbench.metrics.distances.rows import Mask, nearest
from pytest_sdbench.metrics.moments import Array, Rows
from pytest_sdbench.metrics.standard_error import Groups

_SPLITS = 64
"""Ways in which the images are split into halves."""

_KEPT = 40
"""Neighbours of each image that are known: in a half of the images, some 20 of them are left."""

_TOLD = 4
"""Units of a ball that are told apart: of more than three their number is all the same."""


def units_of(groups: Groups | None, n: int) -> Groups:
    """Return the unit of each of n images, [n], numbered without a gap."""
    return np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]


class Coverage:
    """Which units the balls of real images hold.

    With p the chance that a unit falls into a ball, the variance of the number of empty balls is the sum over
    pairs of balls of P(both empty) (1 - exp(-L)), L being the expected number of units in both (Poisson). The
    sum of P(both empty) L is the expected number of pairs of balls that hold one and the same unit and no
    other, which is the jackknife. Pairs that hold the same two, or three, units and no others tell mean and
    variance of L among these pairs, and so by what share of the jackknife the variance is less: the mean of
    (1 - exp(-L)) / L, for L from a gamma distribution.
    """

    def __init__(self, units: Groups, real: int) -> None:
        self.units = units
        self.count = int(units.max()) + 1
        self.real = real
        self._contents = np.full((real, _TOLD), -1, np.intp)
        """The first units that each ball was found to hold, so many at most."""
        self._sizes = np.zeros(real, np.intp)
        """How many these are."""

    def update(self, ball: int, image: int, inside: Mask) -> None:
        """Count which images, from the one at `image` on, lie in balls, from `ball` on: [B, images]."""
        balls, images = np.nonzero(inside & (self._sizes[ball : ball + len(inside), None] < _TOLD))
        balls, units = balls + ball, self.units[image + images]
        new = (self._contents[balls] != units[:, None]).all(axis=1)
        balls, units = np.divmod(np.unique(balls[new] * self.count + units[new]), self.count)
        # Behind those that are known, in the order of their units.
        places = self._sizes[balls] + np.arange(len(balls)) - np.searchsorted(balls, balls)
        fits = places < _TOLD
        self._contents[balls[fits], places[fits]] = units[fits]
        self._sizes += np.bincount(balls[fits], minlength=self.real)

    def _holding(self, size: int) -> npt.NDArray[np.intp]:
        """Return the units of the balls that hold so many, [balls, size], ascending."""
        return np.sort(self._contents[self._sizes == size, :size], axis=1)

    @property
    def share(self) -> float:
        return int(np.count_nonzero(self._sizes)) / self.real

    @property
    def changes(self) -> Array:
        """Return how many balls hold each unit and no other, [units]."""
        alone = self._holding(1)[:, 0]
        return np.bincount(alone, minlength=self.count).astype(np.float64)

    def variance(self) -> float | None:
        """Return the variance of the share; None for fewer than two units."""
        if self.count < 2:
            return None
        pairs = []
        for size in (1, 2, 3):
            counts = np.unique(self._holding(size), axis=0, return_counts=True)[1]
            pairs.append(float(np.square(counts).sum()))
        jackknife = float(np.square(self.changes - self.changes.mean()).sum())
        return _share_of_jackknife(*pairs) * jackknife / self.real**2


def _share_of_jackknife(one: float, two: float, three: float) -> float:
    """Return the mean of (1 - exp(-L)) / L for L of mean 2 two / one and mean square 6 three / one."""
    if not (one and two):
        return 1.0
    mean, square = 2 * two / one, 6 * three / one
    scale = max((square - mean**2) / mean, 1e-9)
    shape = mean / scale
    if abs(shape - 1) < 1e-6:
        return math.log1p(scale) / scale
    return math.expm1((1 - shape) * math.log1p(scale)) / (scale * (1 - shape))


@dataclass
class Recall:
    """Which real images lie in the balls around images, of all, of halves, and of all units but one.

    A ball grows when a neighbour goes, so the balls of a half are not some of those of all. In two halves,
    drawn at random, a real image lies in some ball of the one and in none of the other, or it does not: the
    mean square of the sum of these differences is twice the variance of half of the images. It has two parts.
    What each real image adds by itself is the same for any number of images, since a ball holds its k
    neighbours whatever their number. What pairs add falls with the number: with twice the images the balls
    hold half as many real ones.
    """

    units: Groups
    count: int
    k: int
    radii: Array
    """Squared radius of the ball around each image, [n]."""
    first: Mask
    """Which images are in the first half, [splits, n]."""
    of_halves: Array
    """Squared radii in its own half, [splits, n]."""
    without: Array
    """Squared radii without the unit of each of the k neighbours, [k, n]."""
    neighbours: npt.NDArray[np.intp]
    """The units of the k neighbours, [k, n]."""
    real: int = 0
    changes: Array = field(default_factory=lambda: np.zeros(0))
    """How many real images fewer there are without each unit, [units]."""
    _held: int = 0
    _unlike: float = 0.0
    _differences: Array = field(default_factory=lambda: np.zeros(_SPLITS))

    @classmethod
    def around(cls, features: Rows, k: int, units: Groups) -> Recall:
        """Return the balls around features, [n, D]."""
        n, count = len(features), int(units.max()) + 1
        kept = min(n - 1, max(_KEPT, 8 * k, k + int(np.bincount(units).max())))
        squares, places = nearest(features, kept)
        near = units[places]
        rng = np.random.default_rng(0)
        first = np.empty((_SPLITS, n), bool)
        of_halves = np.empty((_SPLITS, n))
        for split in range(_SPLITS):
            sides = rng.permutation(count) < count // 2
            first[split] = sides[units]
            of_halves[split] = _kth(squares, sides[near] == first[split][:, None], k)
        slots = [_kth(squares, near != near[:, slot, None], k) for slot in range(k)]
        balls = cls(units, count, k, squares[:, k - 1], first, of_halves, np.array(slots), near[:, :k].T)
        balls.changes = np.zeros(count)
        return balls

    def update(self, squares: Array) -> None:
        """Count some real images, given their squared distances from all images, [B, n]."""
        reach = np.maximum(self.of_halves.max(axis=0), np.maximum(self.radii, self.without.max(axis=0)))
        rows, images = np.nonzero(squares <= reach)
        values, total = squares[rows, images], len(squares)
        hits = values <= self.radii[images]
        held = np.bincount(rows[hits], minlength=total)
        self.real += total
        self._held += int(np.count_nonzero(held))
        for split in range(_SPLITS):
            inside, first = values <= self.of_halves[split, images], self.first[split, images]
            found = [np.bincount(rows[inside & side], minlength=total) > 0 for side in (first, ~first)]
            self._unlike += np.count_nonzero(found[0] != found[1])
            self._differences[split] += np.count_nonzero(found[0]) - np.count_nonzero(found[1])
        self._leave_out(rows, images, values, hits, held)

    def _leave_out(
        self, rows: Groups, images: Groups, values: Array, hits: Mask, held: npt.NDArray[np.intp]
    ) -> None:
        """Count the real images that are lost and won without each unit."""
        # A ball that grows, since the unit of a neighbour goes, may hold a real image that it did not.
        grown = [
            rows[won] * self.count + self.neighbours[slot, images[won]]
            for slot in range(self.k)
            for won in [
                ~hits
                & (values <= self.without[slot, images])
                & (self.neighbours[slot, images] != self.units[images])
            ]
        ]
        saved = np.unique(np.concatenate(grown))
        row, unit = np.divmod(saved, self.count)
        np.subtract.at(self.changes, unit[held[row] == 0], 1)
        if not hits.any():
            return
        # Rows come in order. Those whose balls are all of one unit are lost with it.
        hit_rows, hit_units = rows[hits], self.units[images[hits]]
        starts = np.flatnonzero(np.diff(hit_rows, prepend=-1))
        least, most = (function.reduceat(hit_units, starts) for function in (np.minimum, np.maximum))
        alone = least == most
        keys = hit_rows[starts][alone] * self.count + least[alone]
        np.add.at(self.changes, keys[~np.isin(keys, saved)] % self.count, 1)

    @property
    def share(self) -> float:
        return self._held / self.real

    def variance(self) -> float | None:
        """Return the variance of the share; None where half of the units have too few neighbours."""
        if self.count < 4 * (self.k + 1):
            return None
        by_itself = self._unlike / _SPLITS / 2
        of_pairs = float(np.square(self._differences).mean()) / 2 - by_itself
        return (by_itself + max(of_pairs, 0.0) / 2) / self.real**2


def _kth(squares: Array, allowed: Mask, k: int) -> Array:
    """Return the k-th allowed squared distance of each row, [n]; the last known where there is none."""
    counts = np.cumsum(allowed, axis=1) >= k
    places = np.where(counts.any(axis=1), counts.argmax(axis=1), squares.shape[1] - 1)
    return np.asarray(np.take_along_axis(squares, places[:, None], axis=1)[:, 0])
