"""Draw scenes, the embedded dataset: captioned 64x64 pictures that are pure functions of an index.

A scene holds one to three objects on a background. Its caption names every object, and the objects stand in
the picture in the order in which the caption names them: left to right when they stand side by side, top to
bottom when they stand above each other, row by row when there are three. So the order can be read from the
picture alone.

Every choice is a splitmix64 hash of (index, number of the choice): integers only, the same on every machine
and with every numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pytest_sdbench.protocols.scene_shapes import Plane, signed_distance

TRAINING = range(0, 10_000_000)
"""Indices that training may draw."""

EVALUATION = range(10_000_000, 10_030_000)
"""Indices of the prompts that checkpoints are judged on."""

REFERENCE = range(20_000_000, 20_030_000)
"""Indices of the real pictures behind the reference statistics."""

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart")
PATTERNS = ("plain", "striped", "dotted", "checked")
SIZES = ("small", "large")
LAYOUTS = ("one", "beside", "above", "row", "two-over-one", "one-over-two")
MAX_OBJECTS = 3

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
_RGB = {
    "red": (214, 36, 42),
    "orange": (252, 136, 16),
    "yellow": (250, 222, 40),
    "green": (34, 150, 62),
    "blue": (34, 84, 216),
    "purple": (140, 46, 178),
    "white": (250, 250, 250),
    "black": (26, 26, 30),
}

Image = npt.NDArray[np.uint8]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Background:
    """One background: the colours of its top and bottom, and how the caption says it."""

    name: str
    kind: str
    """`plain`, `gradient` (top to bottom) or `split` (a horizon)."""
    top: tuple[int, int, int]
    bottom: tuple[int, int, int]
    phrases: tuple[str, ...]


def _plain(name: str, rgb: tuple[int, int, int]) -> Background:
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

_CONTRAST = 105.0
"""Least RGB distance of an object's colour from every colour of its background."""


@dataclass(frozen=True)
class SceneObject:
    """One object; x, y and radius are in pixels of the 64x64 picture."""

    shape: str
    colour: str
    size: str
    pattern: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """One captioned picture, before it is drawn; `objects` are in the order of the caption."""

    index: int
    caption: str
    objects: tuple[SceneObject, ...]
    layout: str
    """One of `LAYOUTS`."""
    background: Background


def scene(index: int) -> Scene:
    """Return the scene of an index.

    Raises ValueError for a negative index.
    """
    if index < 0:
        raise ValueError(f"scene index {index} is negative; indices start at 0")
    dice = _Dice(index)
    background = dice.pick(BACKGROUNDS)
    layout = dice.weighted(_LAYOUT_WEIGHTS)
    colours = _ALLOWED[background.name]
    places = _places(layout, dice)
    objects: list[SceneObject] = []
    for x, y, largest in places:
        size = dice.pick(SIZES) if largest == "large" else "small"
        radius = dice.between(11.2, 12.6) if size == "large" else dice.between(7.6, 8.6)
        shape, colour = dice.pick(SHAPES), dice.pick(colours)
        pattern = dice.weighted(_PATTERN_WEIGHTS)
        objects.append(SceneObject(shape, colour, size, pattern, x, y, radius))
    caption = _caption(index, objects, layout, background)
    return Scene(index, caption, tuple(objects), layout, background)


def captions(indices: Iterable[int]) -> list[str]:
    """Return the captions of the scenes with these indices."""
    return [scene(index).caption for index in indices]


def indices_of(layouts: Iterable[str], indices: Iterable[int]) -> Iterator[int]:
    """Yield those of the indices whose scene has one of the layouts.

    Raises ValueError for a layout that does not exist: no scene would ever have it.
    """
    wanted = frozenset(layouts)
    if unknown := sorted(wanted.difference(LAYOUTS)):
        raise ValueError(f"no scene has the layout {unknown[0]!r}; there are {', '.join(LAYOUTS)}")
    return (index for index in indices if scene(index).layout in wanted)


def near_misses(scene: Scene, count: int) -> list[str]:
    """Return captions that are wrong in one attribute: a shape, colour, size, pattern, order or background.

    The wording is that of the true caption. Captions may repeat when `count` is large.
    """
    dice = _Dice(scene.index, stream=2)
    return [_near_miss(scene, dice) for _ in range(count)]


def render(scene: Scene, size: int = 64) -> Image:
    """Draw a scene, anti-aliased: uint8 RGB, [size, size, 3]."""
    scale = size / 64
    canvas = _draw_background(scene.background, size)
    for thing in scene.objects:
        _draw_object(canvas, thing, scale)
    return (np.clip(canvas, 0.0, 255.0) + 0.5).astype(np.uint8)


def render_batch(indices: Sequence[int] | range, size: int = 64) -> Image:
    """Draw the scenes with these indices: uint8 RGB, [N, size, size, 3]."""
    batch = np.empty((len(indices), size, size, 3), np.uint8)
    for row, index in enumerate(indices):
        batch[row] = render(scene(index), size)
    return batch


# --- the choices --------------------

_MASK = (1 << 64) - 1


def _mix(value: int) -> int:
    """Return one output of splitmix64 (Steele, Lea and Flood 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class _Dice:
    """A stream of choices that depends on the index alone."""

    def __init__(self, index: int, stream: int = 0) -> None:
        self._key = _mix(_mix(index) ^ 0x5CE7E5 ^ (stream << 32))
        self._count = 0

    def below(self, n: int) -> int:
        self._count += 1
        return (_mix(self._key ^ self._count) >> 11) % n

    def pick(self, options: Sequence[_T]) -> _T:
        return options[self.below(len(options))]

    def weighted(self, options: Sequence[tuple[str, int]]) -> str:
        ticket = self.below(sum(weight for _, weight in options))
        for name, weight in options:
            if ticket < weight:
                return name
            ticket -= weight
        raise AssertionError("unreachable: the ticket is below the sum of the weights")

    def between(self, low: float, high: float) -> float:
        return round(low + (high - low) * self.below(1001) / 1000, 4)


_LAYOUT_WEIGHTS = tuple(zip(LAYOUTS, (25, 27, 27, 7, 7, 7), strict=True))
_PATTERN_WEIGHTS = (("plain", 4), ("striped", 1), ("dotted", 1), ("checked", 1))


def _allowed(background: Background) -> tuple[str, ...]:
    """Return the colours that stand out from every colour of the background."""

    def distance(colour: str, other: tuple[int, int, int]) -> float:
        return float(np.linalg.norm(np.subtract(_RGB[colour], other)))

    stops = [background.top, background.bottom]
    if background.kind == "gradient":
        top, bottom = np.array(background.top), np.array(background.bottom)
        stops += [tuple((top + (bottom - top) * part / 4).astype(int)) for part in (1, 2, 3)]
    return tuple(colour for colour in COLOURS if all(distance(colour, stop) >= _CONTRAST for stop in stops))


_ALLOWED = {background.name: _allowed(background) for background in BACKGROUNDS}


_NEAR = 1.2
_PLACES = {
    "one": ([(32.0, 32.0)], 10.0, 10.0, "large"),
    "beside": ([(17.0, 32.0), (47.0, 32.0)], _NEAR, 7.0, "large"),
    "above": ([(32.0, 17.0), (32.0, 47.0)], 7.0, _NEAR, "large"),
    "row": ([(11.5, 32.0), (32.0, 32.0), (52.5, 32.0)], 1.0, 5.0, "small"),
    "two-over-one": ([(17.0, 17.0), (47.0, 17.0), (32.0, 47.0)], _NEAR, _NEAR, "large"),
    "one-over-two": ([(32.0, 17.0), (17.0, 47.0), (47.0, 47.0)], _NEAR, _NEAR, "large"),
}
"""Centres of the objects in the order of the caption, how far they stray to a side and up or down, and the
largest size, of each layout."""


def _places(layout: str, dice: _Dice) -> list[tuple[float, float, str]]:
    """Return x, y and the largest size of each object, in the order of the caption."""
    centres, wide, tall, largest = _PLACES[layout]
    return [(x + dice.between(-wide, wide), y + dice.between(-tall, tall), largest) for x, y in centres]


# --- the words --------------------

_SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
_PATTERN_ENDINGS = {"striped": "with stripes", "dotted": "with dots", "checked": "with checks"}
_SENTENCES = {
    "one": ("{0}",),
    "beside": ("{0} to the left of {1}", "{0} left of {1}", "{0} with {1} to its right", "{0} beside {1}"),
    "above": ("{0} above {1}", "{0} over {1}", "{0} with {1} below it", "{0} and {1} underneath"),
    "row": ("{0}, {1} and {2} in a row", "from left to right {0}, {1} and {2}"),
    "two-over-one": ("{0} and {1} above {2}", "{0} and {1} over {2}"),
    "one-over-two": ("{0} above {1} and {2}", "{0} over {1} and {2}"),
}


def _caption(index: int, objects: Sequence[SceneObject], layout: str, background: Background) -> str:
    # The wording has its own stream, so that near misses keep the wording of the true caption.
    dice = _Dice(index, stream=1)
    names = [_name(thing, dice) for thing in objects]
    sentence = dice.pick(_SENTENCES[layout]).format(*names)
    return f"{sentence} {dice.pick(background.phrases)}"


def _near_miss(scene: Scene, dice: _Dice) -> str:
    objects, layout, background = list(scene.objects), scene.layout, scene.background
    which = dice.below(len(objects))
    thing, before = objects[which], objects[which - 1]
    change = dice.pick(("shape", "shape", "colour", "colour", "size", "pattern", "order", "background"))
    if change == "order" and (thing.shape, thing.colour) == (before.shape, before.colour):
        change = "colour"
    if change == "order":
        # Exchange the colours of two objects, or else their shapes: a bag of words would not see it.
        what = "colour" if thing.colour != before.colour else "shape"
        objects[which] = replace(thing, **{what: getattr(before, what)})
        objects[which - 1] = replace(before, **{what: getattr(thing, what)})
    elif change == "background":
        background = dice.pick([other for other in BACKGROUNDS if other is not background])
    elif change == "size":
        objects[which] = replace(thing, size="large" if thing.size == "small" else "small")
    else:
        words = {"shape": SHAPES, "colour": COLOURS, "pattern": PATTERNS}[change]
        other: Any = dice.pick([word for word in words if word != getattr(thing, change)])
        objects[which] = replace(thing, **{change: other})
    return _caption(scene.index, objects, layout, background)


def _name(thing: SceneObject, dice: _Dice) -> str:
    size = dice.pick(_SIZE_WORDS[thing.size])
    trailing = dice.below(4) == 0
    if thing.pattern == "plain":
        return f"a {size} {thing.colour} {thing.shape}"
    if trailing:
        return f"a {size} {thing.colour} {thing.shape} {_PATTERN_ENDINGS[thing.pattern]}"
    return f"a {size} {thing.pattern} {thing.colour} {thing.shape}"


# --- the picture --------------------


def _draw_background(background: Background, size: int) -> Plane:
    height = (np.arange(size, dtype=np.float32) + 0.5) / size
    if background.kind == "split":
        # The horizon is two pixels soft: a hard edge on a pixel border would look drawn by another hand.
        height = np.clip((height - 0.5) * 32 + 0.5, 0.0, 1.0)
    top, bottom = np.array(background.top, np.float32), np.array(background.bottom, np.float32)
    column = top + height[:, None] * (bottom - top)
    return np.repeat(column[:, None, :], size, axis=1)


def _draw_object(canvas: Plane, thing: SceneObject, scale: float) -> None:
    """Blend one object and its soft shadow into the canvas, inside a box around it."""
    size = len(canvas)
    shadow = max(1, round(2 * scale))
    reach = thing.radius * 1.2 * scale + shadow + 2
    x, y, radius = thing.x * scale, thing.y * scale, thing.radius * scale
    left, right = max(0, int(x - reach)), min(size, int(x + reach) + 2)
    upper, lower = max(0, int(y - reach)), min(size, int(y + reach) + 2)
    u = (np.arange(left, right, dtype=np.float32) + 0.5 - x)[None, :] / radius
    v = (np.arange(upper, lower, dtype=np.float32) + 0.5 - y)[:, None] / radius
    distance = signed_distance(thing.shape, u, v) * radius
    box = canvas[upper:lower, left:right]

    cast = np.clip(0.5 - distance[:-shadow, :-shadow] / (3 * scale), 0.0, 1.0)
    box[shadow:, shadow:] *= 1 - 0.3 * cast[..., None]

    rgb = np.array(_RGB[thing.colour], np.float32)
    # Lit from above; the mark of a pattern is a shade of the same colour (black can only get lighter).
    light = (1.05 - 0.11 * v)[..., None]
    mark = rgb * 0.25 + 0.75 * 120 if thing.colour == "black" else rgb * 0.6
    weight = _pattern(thing, u, v, radius, scale)[..., None]
    paint = np.clip((rgb + weight * (mark - rgb)) * light, 0.0, 255.0)
    cover = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
    box += cover * (paint - box)


_PERIODS = {"striped": (6.0, 7.0), "dotted": (6.0, 7.0), "checked": (8.0, 10.0)}
"""Pixels from mark to mark, on a small and on a large object."""


def _pattern(thing: SceneObject, u: Plane, v: Plane, radius: float, scale: float) -> Plane:
    """Return how much of the mark's shade each pixel has, 0 to 1; patterns are centred on the object."""
    if thing.pattern == "plain":
        return np.zeros(np.broadcast_shapes(u.shape, v.shape), np.float32)
    period = _PERIODS[thing.pattern][thing.size == "large"] * scale
    across, along = u * radius / period, v * radius / period

    def wave(phase: Plane) -> Plane:
        """Return the distance to the nearest whole phase, in pixels."""
        distance: Plane = np.abs(phase - np.round(phase)) * period
        return distance

    if thing.pattern == "striped":
        stripes: Plane = np.clip(0.5 + period / 4 - wave(across + 0 * along), 0.0, 1.0)
        return stripes
    if thing.pattern == "dotted":
        dots: Plane = np.clip(0.5 + period * 0.3 - np.hypot(wave(across), wave(along)), 0.0, 1.0)
        return dots
    first: Plane = np.clip(0.5 + period / 4 - wave(across), 0.0, 1.0)
    second: Plane = np.clip(0.5 + period / 4 - wave(along), 0.0, 1.0)
    return first + second - 2 * first * second
