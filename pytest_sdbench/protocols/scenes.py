"""Draw scenes, the embedded dataset: captioned 64x64 pictures that are pure functions of an index.

A scene holds one to three named pictograms on a background. Its caption names every object, and the objects
stand in the picture in the order in which the caption names them: left to right when they stand side by side,
top to bottom when they stand above each other, row by row when there are three. So the order can be read from
the picture alone.

Every choice is a splitmix64 hash of (index, number of the choice): integers only, the same on every machine
and with every numpy.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np

from pytest_sdbench.protocols.pictograms import (
    DOMAINS,
    LADDERS,
    NAMES,
    PICTOGRAMS,
    PLURALS,
    WEIGHTS,
    names_of,
)
from pytest_sdbench.protocols.scene_parts import (
    ALLOWED,
    BACKGROUNDS,
    COLOURS,
    LAYOUTS,
    MAX_OBJECTS,
    RGB,
    SIZES,
    Background,
    Scene,
    SceneObject,
)
from pytest_sdbench.protocols.scene_picture import Image, render
from pytest_sdbench.protocols.splitmix import Dice

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "DOMAINS",
    "EVALUATION",
    "LAYOUTS",
    "MAX_OBJECTS",
    "NAMES",
    "PICTOGRAMS",
    "REFERENCE",
    "RGB",
    "SIZES",
    "TRAINING",
    "WEIGHTS",
    "Background",
    "Image",
    "Scene",
    "SceneObject",
    "captions",
    "indices_of",
    "names_of",
    "near_misses",
    "render",
    "render_batch",
    "scene",
]

TRAINING = range(0, 10_000_000)
"""Indices that training may draw."""

EVALUATION = range(10_000_000, 10_030_000)
"""Indices of the prompts that checkpoints are judged on."""

REFERENCE = range(20_000_000, 20_030_000)
"""Indices of the real pictures behind the reference statistics."""


def scene(index: int, domain: str = "all") -> Scene:
    """Return the scene of an index; a domain takes its names from the faces, or the things, alone.

    The scenes of one index differ between domains in the names of their objects, and in nothing else.
    Raises ValueError for a negative index or one that 64 bits do not hold, and for a domain that does not
    exist.
    """
    index = operator.index(index)  # numpy's integers overflow
    if not 0 <= index < 2**64:
        raise ValueError(f"scene index {index} is not one of 0 to 2^64 - 1")
    names, ladder = names_of(domain), LADDERS[domain]
    dice = Dice(index)
    background = dice.pick(BACKGROUNDS)
    layout = dice.weighted(LAYOUTS, _LAYOUT_LADDER)
    centres, wide, tall, largest = _PLACES[layout]
    objects = []
    for x, y in centres:
        place = x + _STEP * dice.around(wide), y + _STEP * dice.around(tall)
        size = dice.pick(SIZES) if largest == "large" else "small"
        name, colour = dice.weighted(names, ladder), dice.pick(ALLOWED[background.name])
        objects.append(SceneObject(name, colour, size, *place, _RADII[size]))
    caption = _caption(index, objects, layout, background)
    return Scene(index, caption, tuple(objects), layout, background, domain)


def captions(indices: Iterable[int], domain: str = "all") -> list[str]:
    """Return the captions of the scenes with these indices."""
    return [scene(index, domain).caption for index in indices]


def indices_of(layouts: Iterable[str], indices: Iterable[int]) -> Iterator[int]:
    """Yield those of the indices whose scene has one of the layouts.

    Raises ValueError for a layout that does not exist: no scene would ever have it.
    """
    wanted = frozenset(layouts)
    if unknown := sorted(wanted.difference(LAYOUTS)):
        raise ValueError(f"no scene has the layout {unknown[0]!r}; there are {', '.join(LAYOUTS)}")
    return (index for index in indices if scene(index).layout in wanted)


def near_misses(scene: Scene, count: int) -> list[str]:
    """Return captions that are wrong in one attribute: a name, colour, size, the order or the background.

    The wording is that of the true caption. A wrong name is any other of the scene's domain, each as likely.
    Captions may repeat when `count` is large.
    """
    dice = Dice(scene.index, stream=2)
    return [_near_miss(scene, dice) for _ in range(count)]


def render_batch(indices: Sequence[int] | range, size: int = 64, domain: str = "all") -> Image:
    """Draw the scenes with these indices: uint8 RGB, [N, size, size, 3]. Raises as `render`."""
    batch = np.empty((len(indices), size, size, 3), np.uint8)
    for row, index in enumerate(indices):
        batch[row] = render(scene(index, domain), size)
    return batch


# --- the choices --------------------

_LAYOUT_LADDER = tuple(accumulate((25, 27, 27, 7, 7, 7)))

_RADII = {"small": 9.5, "large": 13.5}
"""Half the longer side of an object, in pixels."""

_STEP = 4
"""Pixels between two places of an object, as many as one latent of the embedded family covers. So an object
has the same latents wherever it stands."""

_PLACES = {
    "one": ([(32, 32)], 3, 3, "large"),
    "beside": ([(16, 32), (48, 32)], 0, 2, "large"),
    "above": ([(32, 16), (32, 48)], 2, 0, "large"),
    "row": ([(12, 32), (32, 32), (52, 32)], 0, 1, "small"),
    "two-over-one": ([(16, 16), (48, 16), (32, 48)], 0, 0, "large"),
    "one-over-two": ([(32, 16), (16, 48), (48, 48)], 0, 0, "large"),
}
"""Of each layout: centres of the objects in the order of the caption, how many steps they stray to a side and
up or down, and the largest size."""


# --- the words --------------------

_SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
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
    dice = Dice(index, stream=1)
    names = [_name(thing, dice) for thing in objects]
    sentence = dice.pick(_SENTENCES[layout]).format(*names)
    return f"{sentence} {dice.pick(background.phrases)}"


def _near_miss(scene: Scene, dice: Dice) -> str:
    objects, layout, background = list(scene.objects), scene.layout, scene.background
    which = dice.below(len(objects))
    thing, before = objects[which], objects[which - 1]
    change = dice.pick(("name", "name", "name", "colour", "colour", "size", "order", "background"))
    if change == "order" and (thing.name, thing.colour) == (before.name, before.colour):
        change = "colour"
    if change == "order":
        # Exchange the colours of two objects, or else their names: a bag of words would not see it.
        what = "colour" if thing.colour != before.colour else "name"
        objects[which] = replace(thing, **{what: getattr(before, what)})
        objects[which - 1] = replace(before, **{what: getattr(thing, what)})
    elif change == "background":
        background = dice.pick([other for other in BACKGROUNDS if other is not background])
    else:
        words = {"name": names_of(scene.domain), "colour": COLOURS, "size": SIZES}[change]
        other: Any = dice.pick([word for word in words if word != getattr(thing, change)])
        objects[which] = replace(thing, **{change: other})
    return _caption(scene.index, objects, layout, background)


def _name(thing: SceneObject, dice: Dice) -> str:
    described = f"{dice.pick(_SIZE_WORDS[thing.size])} {thing.colour} {thing.name}"
    return described if thing.name in PLURALS else f"a {described}"
