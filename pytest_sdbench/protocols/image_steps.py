"""Send images the way that the published evaluation sends them: through JPEG files and Pillow's resize.

Both move FID by more than the differences that are measured, so they belong to the protocol and are done to
the bit.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from pytest_sdbench.protocols.sections import Jpeg, Resize

Images = npt.NDArray[np.uint8]
"""RGB pictures, uint8 [B, H, W, 3]."""

FILTERS = {
    "pil-bicubic": Image.Resampling.BICUBIC,
    "pil-bilinear": Image.Resampling.BILINEAR,
    "pil-lanczos": Image.Resampling.LANCZOS,
    "pil-box": Image.Resampling.BOX,
}
"""Pillow's filters; all of them widen when they shrink a picture, as those of torch by default do not."""


def apply_image_steps(images: Images, steps: Sequence[Jpeg | Resize]) -> Images:
    """Return uint8 [B, H', W', 3] after each step in turn, exactly as Pillow does it with files.

    Raises ValueError for anything but uint8 [B, H, W, 3].
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be uint8 [B, H, W, 3], not {images.dtype} {list(images.shape)}")
    if not steps or not len(images):
        return images
    return np.stack([np.asarray(_walk(Image.fromarray(image), steps)) for image in images])


def resize(image: Image.Image, size: int, filter: str = "pil-bicubic") -> Image.Image:
    """Squash a picture to a square of `size` pixels."""
    return image.resize((size, size), FILTERS[filter])


def _walk(image: Image.Image, steps: Sequence[Jpeg | Resize]) -> Image.Image:
    for step in steps:
        image = _jpeg(image, step.jpeg) if isinstance(step, Jpeg) else resize(image, step.resize, step.filter)
    return image


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    # A buffer holds the very bytes of the file: Pillow takes both ways through one encoder and one decoder.
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    file.seek(0)
    return Image.open(file, formats=["JPEG"]).convert("RGB")
