"""Decode one picture to the pixels that a person sees; whatever else lies in the file is refused, or said."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from pytest_sdbench.base.errors import DataError
from pytest_sdbench.features.archives import check_pointer

LARGEST = 2**25
"""Pixels that a picture may have. Its header says how many, and they would fill the memory."""

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_ORIENTATION = 0x0112
_TURNS = dict(enumerate(map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), 2))
"""What turns a picture of each orientation upright."""
_CODECS = ("JPEG", "MPO", "WEBP")
"""Pillow's names of formats that lose something; MPO is JPEG with more pictures after the first."""


def open_picture(content: bytes) -> Image.Image:
    """Open the file of a picture, which is told by its content and whose checksums are right; decode nothing.

    Raises DataError or ValueError for one too large or of another kind, and what Pillow raises for damage.
    """
    check_pointer(content)
    large, remedy = f"a picture of more than {LARGEST:,} pixels", "Scale it down, or leave it out"
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as file:
            if file.width * file.height > LARGEST:
                raise DataError(large, found=f"{file.width}x{file.height}", remedy=remedy)
            check_plain(file)
            file.verify()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(large, remedy=remedy) from None
    except UnidentifiedImageError:
        raise ValueError("no PNG, JPEG, BMP or WebP, or a damaged one") from None
    return Image.open(io.BytesIO(content), formats=_FORMATS)


def check_plain(file: ImageFile.ImageFile) -> None:
    """Raise DataError for an open picture of more than 8 bits a channel, and for one of several."""
    if file.mode[0] in "IF" or any(";16B" in str(tile[3]) for tile in file.tile):
        message = f"it has more than 8 bits a channel (mode {file.mode})"  # Pillow would clip them
        raise DataError(message, remedy="Save it with 8 bits a channel")
    if (frames := getattr(file, "n_frames", 1)) > 1 and file.format != "MPO":
        raise DataError(f"an animation of {frames} pictures", remedy="Save them as single pictures")


def pixels_of(file: Image.Image, background: str | None = None) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Return the pixels of an open picture, uint8 [H, W, 3], and in words its format and what was done to it.

    A picture is laid over `background`, a colour, where it is transparent, and turned upright. Raises
    DataError for one that is transparent where there is no background, and what Pillow raises for damage.
    """
    file.load()  # damaged pixels are no damaged EXIF data
    told, image = [str(file.format)], file
    if "A" in file.getbands() or "transparency" in file.info:
        image = file.convert("RGBA")
        lowest = int(np.asarray(image.getchannel("A")).min())
        if lowest < 255:
            if background is None:
                what = "this image is transparent, and scores would be those of the colours underneath"
                remedy = "Save it without transparency, or say what lies behind it: --background white"
                raise DataError(what, key="alpha", found=lowest, remedy=remedy)
            image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
            told.append(f"are transparent in part and were laid over {background}")
    elif file.mode == "CMYK":
        told.append("are CMYK, and were converted without their colour profile")
    image = image if image.mode == "RGB" else image.convert("RGB")
    try:
        # getexif raises but once, and perhaps did so when a JPEG was opened.
        Image.Exif().load(file.info.get("exif", b""))
        turn = _TURNS.get(file.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises errors of every kind, and no pixel depends on it
        turn = None
        told.append("have EXIF data that cannot be read, and were not turned")
    if turn is not None:
        image = image.transpose(turn)
        told.append("were turned upright as their EXIF data say")
    return np.asarray(image), told


def lossy(seen: Counter[str]) -> int:
    """Return how many of the pictures that `seen` counts went through a codec that loses something."""
    return sum(seen[codec] for codec in _CODECS)


def remarks(seen: Counter[str]) -> list[str]:
    """Return what was done to pictures that are not as their files have them, a line each."""
    return [f"{count:,} images {what}" for what, count in sorted(seen.items()) if " " in what]
