"""Define an extractor: a network that looks at images, and what it says of each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from pytest_sdbench.base.errors import DataError
from pytest_sdbench.metrics.definition import column

if TYPE_CHECKING:
    from torch import Tensor

    from pytest_sdbench.protocols.image_steps import Images

Rows = npt.NDArray[np.float32]

Measure = Callable[["Images", Any], Mapping[str, Any]]
"""Looks at uint8 [B, H, W, 3] and their captions, or their references where the extractor is paired; gives
each output by name, tensor or array."""

_CHUNK = 32
"""Pictures in one forward pass: bounds the memory at 299 pixels, whatever batches the sampler makes."""


class Load(Protocol):
    """Loads an extractor onto a device, and tells which weights it has found."""

    def __call__(
        self, name: str, *, data_root: Path | None, device: str, download: bool
    ) -> tuple[Measure, str]: ...


@dataclass(frozen=True)
class Extractor:
    """One extractor: its name, its outputs, and how it is loaded."""

    name: str
    """As protocols have it. With a colon at the end it is a prefix: what follows says which network."""
    outputs: Mapping[str, int]
    """What it says of an image, and in how many numbers: ``features``, ``logits``, ``cosine`` (with the
    caption), or outputs of its own. One number is a column [B], more are [B, D]."""
    load: Load
    """Return what measures images, and the checksum (or version) of weights and front end.

    Raises Unavailable for weights that are not on this machine, CheckpointError for damaged ones. Only with
    `download` may anything be fetched."""
    weights: Callable[[str], str | None] = lambda name: None
    """Return that checksum without loading; None where it is known only then. Raises as `load`."""
    describe: Callable[[str, Path | None], str] = lambda name, data_root: "loads"
    """Say in one line which verified file would be used; raises as `load`."""
    size: int | None = None
    """Pixels that the sides of a picture must have; None where it takes any."""
    download: Callable[[str], tuple[str, int | None] | None] | None = None
    """Return what would be downloaded and its size in bytes; None where nothing can be."""
    paired: bool = False
    """Whether it measures pairs: of a picture and the reference's picture of the same prompt and noise, which
    `measure` gets in place of the captions, uint8 [B, H, W, 3] as well."""
    found: Callable[[str, Path | None, bool], str] | None = None
    """Return the checksum of the files in a data root or a cache, where `weights` does not know it; they are
    fetched where the last argument says so. Raises as `load`."""


@dataclass(frozen=True)
class FeatureNetwork:
    """An extractor at work: what it says becomes columns of evidence."""

    name: str
    weights: str
    measure: Measure
    outputs: tuple[str, ...] = ("features",)
    """Those that are wanted."""
    size: int | None = None
    """Pixels that the sides of a picture must have; None where it takes any."""
    paired: bool = False
    """Whether it measures pairs."""

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.name, self.weights)

    def __call__(
        self, images: Images, prompts: Sequence[str] = (), references: Images | None = None
    ) -> dict[str, Rows]:
        """Return float32 columns of uint8 [B, H, W, 3]; only some networks need prompts, or references.

        Raises DataError for pictures of a size that the network does not take, and for pairs without
        references.
        """
        if self.paired and (references is None or references.shape != images.shape):
            what = "it compares each picture with the reference's of the same prompt and noise"
            found = "none" if references is None else f"shape {list(references.shape)}"
            raise DataError(what, key=self.name, found=found, remedy="Keep the reference's pictures")
        if self.size and images.shape[1:3] != (self.size, self.size):
            what, (height, width) = f"it takes pictures of {self.size}x{self.size}", images.shape[1:3]
            found, remedy = f"{width}x{height}", "Resize them: --resize, or image steps"
            raise DataError(what, key=self.name, found=found, remedy=remedy)
        chunks = [slice(start, start + _CHUNK) for start in range(0, len(images), _CHUNK)]
        beside: Any = references if self.paired else prompts
        parts = [self.measure(images[chunk], beside[chunk]) for chunk in chunks]
        return {
            column(self.name, output): np.concatenate([_array(part[output]) for part in parts])
            for output in self.outputs
        }


def fingerprint(name: str, weights: str) -> str:
    """Return 16 hex digits that stand for an extractor with these weights."""
    return hashlib.sha256(f"{name}\n{weights}".encode()).hexdigest()[:16]


def pixels_of(images: Images, device: str) -> Tensor:
    """Return pictures, uint8 [B, H, W, 3], as uint8 [B, 3, H, W] on a device."""
    import torch

    return torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C")).to(device)


def _array(values: Any) -> Rows:
    return np.asarray(values.float().cpu().numpy() if hasattr(values, "cpu") else values, np.float32)
