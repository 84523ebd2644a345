"""Read captioned pictures, wherever they lie.

Only datasets of the hub are read by `datasets`. Its WebDataset reader either streams, and does not restore a
shuffle buffer when it resumes, or copies every shard into Arrow files; its image folder knows no texts beside
pictures. fsspec finds and fetches remote shards, but its caches have no bound. A resume that is the same bit
for bit needs every row by its number, in an order that never changes: that is what `Source` promises.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from pytest_sdbench.base.errors import DataError
from pytest_sdbench.features.pixels import check_plain, pixels_of
from training.errors import TrainingError

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """One captioned picture."""

    key: str
    """What names it in messages: its file, its place in a shard, or its row."""

    image: Image.Image | Pixels
    """An RGB picture, or uint8 [H, W, 3]."""

    caption: str

    window: tuple[int, int, int] | None = None
    """Top, left and side, in pixels, of the square whose latents are learned from; none: of the whole."""


class BadSample(Exception):
    """A sample that cannot be used; it is reported, counted and left out."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key, self.reason = key, reason


class Source(Protocol):
    """Captioned pictures by row, each always the same; `read` may be called from several threads."""

    @property
    def name(self) -> str:
        """What and where it is, for messages."""
        ...

    @property
    def group_sizes(self) -> Sequence[int]:
        """Number of rows of each shard, in the order of the rows; a single number where there are none."""
        return (len(self),)

    @property
    def fingerprint(self) -> str:
        """Identify the content, from names, sizes and captions: hex digits."""
        ...

    def __len__(self) -> int: ...

    def read(self, row: int) -> Sample:
        """Return a row, the picture decoded. Raises BadSample."""
        ...


def read_patiently(path: Path, *, wait: Callable[[float], None] = time.sleep) -> bytes:
    """Return a file's content; a server of files may fail once or twice. Raises OSError."""
    for pause in (0.5, 2.0):
        try:
            return path.read_bytes()
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except OSError:
            wait(pause)
    return path.read_bytes()


def decode(key: str, content: bytes) -> Image.Image:
    """Decode a picture to RGB, upright as its EXIF data say.

    Raises BadSample, for transparency, animations and more than 8 bits a channel too.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            check_plain(image)
            image.verify()  # damage may decode to other pixels, and only the checksums of a PNG tell
        with Image.open(io.BytesIO(content)) as image:
            return Image.fromarray(pixels_of(image)[0])
    except DataError as error:
        reason = f"{error.message}; {error.remedy}"
        if error.key == "alpha":
            reason = "a transparent picture; lay it over a colour: what lies underneath is not to be learnt"
        raise BadSample(key, reason) from error
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        raise BadSample(key, f"not a readable picture: {error or type(error).__name__}") from error


def fit(sample: Sample, resolution: int | None, upscale: bool = False) -> Pixels:
    """Return the picture with its short side resized to `resolution`, then its centre: uint8 [H, W, 3].

    That is what the published scripts do with torchvision's Resize (bilinear, antialiased) and CenterCrop.
    With no resolution it stays as it is. Raises TrainingError for a picture smaller than `resolution`, unless
    `upscale`.
    """
    image = sample.image
    height, width = image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)
    if resolution is None or height == width == resolution:
        return np.asarray(image)
    if min(width, height) < resolution and not upscale:
        raise TrainingError(
            f"a picture smaller than the resolution of {resolution}",
            file=sample.key,
            key="data.resolution",
            found=f"{width}x{height}",
            remedy="Lower data.resolution, or set data.upscale: true to enlarge small pictures",
        )
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if width <= height:
        width, height = resolution, int(resolution * height / width)
    else:
        width, height = int(resolution * width / height), resolution
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - resolution) / 2.0), round((height - resolution) / 2.0)
    return np.asarray(resized.crop((left, top, left + resolution, top + resolution)))


def to_pixels(images: Sequence[Pixels], flipped: Sequence[bool] | None = None) -> Any:
    """Turn pictures of one size, uint8 [H, W, 3], into a float32 tensor [N, 3, H, W] from -1 to 1."""
    import torch

    some = [
        image[:, ::-1] if flip else image
        for image, flip in zip(images, flipped or [False] * len(images), strict=True)
    ]
    return torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2).float() / 127.5 - 1


def check_same_size(first: Sequence[str], key: str, size: str) -> None:
    """Raise TrainingError where a picture is not as large as the first one, given by key and size."""
    if first[1] != size:
        raise TrainingError(
            "pictures of different sizes",
            key="data.resolution",
            found=f"{first[0]}: {first[1]}, {key}: {size}",
            remedy="Set data.resolution: pictures are then resized and cropped to it",
        )


class Subset(Source):
    """The first `pairs` rows of a source, and what the recipe says of empty captions.

    `empty_captions`: `error` raises TrainingError when one is read, `skip` makes it a BadSample, `keep` lets
    it pass.
    """

    def __init__(self, source: Source, pairs: int | None, empty_captions: str = "error") -> None:
        if pairs is not None and pairs > len(source):
            raise TrainingError(
                f"fewer pairs than asked for: {len(source)}",
                file=source.name,
                key="data.pairs",
                found=pairs,
                remedy=f"Lower it to {len(source)}, or take all: data.pairs=null",
            )
        self._source, self._count = source, len(source) if pairs is None else pairs
        self._empty = empty_captions

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def group_sizes(self) -> Sequence[int]:
        sizes, left = [], self._count
        for size in self._source.group_sizes:
            sizes.append(min(size, left))
            left -= sizes[-1]
        return [size for size in sizes if size]

    @property
    def fingerprint(self) -> str:
        # `error` and `skip` come to the same as long as no caption is empty, and `error` ends at the first:
        # what was encoded until then need not be encoded again when the recipe changes to `skip`.
        return f"{self._source.fingerprint}-{self._count}" + ("-keep" if self._empty == "keep" else "")

    def __len__(self) -> int:
        return self._count

    def read(self, row: int) -> Sample:
        """Return a row of the source. Raises BadSample."""
        sample = self._source.read(row)
        if self._empty != "keep" and not sample.caption.strip():
            if self._empty == "skip":
                raise BadSample(sample.key, "empty caption")
            raise empty_caption(sample.key, self.name)
        return sample


def empty_caption(key: str, where: str) -> TrainingError:
    """Return the error of an empty caption that the recipe does not allow."""
    return TrainingError(
        "an empty caption",
        file=where,
        key=key,
        remedy="Write one, or say what to do with it: data.empty_captions: keep or skip",
    )
