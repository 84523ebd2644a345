"""Draw the subject of DreamBooth on scenes: one thing that no scene holds, in five pictures.

It is a daisy whose left half is green and whose right half is purple: a pictogram that scenes never show, in
colours of scenes, where an object has one colour alone. `python -m benchmarks.family.subject FOLDER` writes
the pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pytest_sdbench.protocols import scenes
from pytest_sdbench.protocols.pictograms import Pictogram
from pytest_sdbench.protocols.scene_picture import Canvas, draw, ground, paints

IDENTIFIER = "v"
"""A word of no caption, yet a single token: the text encoder knows nothing of it."""

CLASS = "flower"
SUBJECT = Pictogram("daisy", 0x2740, lined=False, domain="things")
PLACE = "on a beige background"
"""Where the pictures of the subject show it. Captions of scenes name a place, so that prompts do, too."""

PROMPT = f"a {IDENTIFIER} {CLASS} {PLACE}"
CLASS_PROMPT = f"a {CLASS} {PLACE}"

LEFT, RIGHT = "green", "purple"

PROMPTS = tuple(
    f"a {IDENTIFIER} {CLASS} {phrase}"
    for phrase in (
        "on a grey background",
        "against teal",
        "against navy",
        "at dusk",
        "under water",
        "on a beach",
        "to the left of a large blue star on a pink background",
        "above a large yellow circle on a brown background",
    )
)
"""What the subject is to be drawn in: places that its pictures do not show, and beside known things."""

Pixels = npt.NDArray[np.uint8]


PICTURES = ((32, 32, 13.5), (24, 28, 13.5), (40, 36, 13.5), (32, 24, 9.5), (44, 32, 9.5))
"""x, y and radius of the subject in each picture, in pixels of 64x64."""


def picture(x: float, y: float, radius: float, *, background: str = "beige", size: int = 64) -> Pixels:
    """Draw the subject, anti-aliased, lit and with a shadow as scenes are: uint8 [size, size, 3]."""
    canvas = ground(background, size)
    draw(canvas, SUBJECT, (x, y, radius), _halves)
    return canvas.astype(np.uint8)


def _halves(side: int) -> tuple[Canvas, Canvas]:
    """Return the colours of the subject in a box around it, as `paints` does of one colour."""
    left, right = paints(LEFT, side)[0], paints(RIGHT, side)[0]
    both = np.where(np.arange(side)[:, None] < side // 2, left, right)
    return both, both


def pictures(size: int = 64) -> Pixels:
    """Return the pictures of the subject, uint8 [5, size, size, 3]."""
    return np.stack([picture(*place, size=size) for place in PICTURES])


def write_pictures(folder: Path) -> Path:
    """Write the pictures as PNG files, without captions, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(pictures()):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def without_identifier(prompt: str) -> str:
    """Return a prompt as its pictures are judged: with the class alone, which is what a CLIP model knows."""
    return " ".join(word for word in prompt.split() if word != IDENTIFIER)


def shows_subject(images: Pixels, least: int = 20, rows: int = 5, apart: int = 10) -> npt.NDArray[np.bool_]:
    """Tell of each picture, uint8 [N, 64, 64, 3], whether green has purple close on its right: bool [N].

    A colour is there where at least `least` pixels have its hue (within 14 degrees) and a saturation above
    one half; the two are close where fewer than `apart` pixels lie between them, in at least `rows` rows: the
    autoencoder of scenes has never seen an object of two colours and leaves a seam of up to 9. One real
    scene of a thousand, with two objects, passes too. A reader of this subject alone: it does not look at
    the shape.
    """
    found = []
    for image in images:
        left, right = (_like(image, scenes.RGB[colour]) for colour in (LEFT, RIGHT))
        near = np.zeros_like(right)
        for further in range(1, apart + 1):
            near[:, :-further] |= right[:, further:]
        close = (left & near).any(axis=1).sum()
        found.append(min(left.sum(), right.sum()) >= least and close >= rows)
    return np.array(found, np.bool_)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pictures to the folder that is named."""
    folder = Path((sys.argv[1:] if arguments is None else list(arguments))[0])
    print(f"{len(PICTURES)} pictures of {PROMPT!r} in {write_pictures(folder)}")


def _like(image: Pixels, colour: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    """Tell which pixels have the hue of a colour, and are saturated: bool [H, W]."""
    hue, saturation, _ = np.moveaxis(np.asarray(Image.fromarray(image).convert("HSV")).astype(int), -1, 0)
    wanted = np.asarray(Image.new("RGB", (1, 1), colour).convert("HSV"))[0, 0, 0]
    # Pillow's hue is 0 to 255 around the circle.
    away = np.abs((hue - int(wanted) + 128) % 256 - 128)
    near: npt.NDArray[np.bool_] = (away <= 10) & (saturation > 127)
    return near


if __name__ == "__main__":
    main()
