"""Measure the peak signal-to-noise ratio of two pictures; no network is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pytest_sdbench.features.definition import Extractor, Measure, Rows

if TYPE_CHECKING:
    from pytest_sdbench.protocols.image_steps import Images

PEAK = 255
MOST = 100.0
"""Decibels of two equal pictures, whose ratio is infinite. One byte of 512x512x3 off by one is 107 dB."""
_METHOD = "RGB, peak 255, at most 100 dB"
"""Stands for weights: another way of computing it has other fingerprints."""


def psnr(images: Images, references: Images) -> Rows:
    """Return decibels, float32 [B], of pairs of uint8 [B, H, W, 3]: at most 100, which equal pictures have.

    10 log10(255^2 / MSE), where the mean square error is that of all pixels and channels together.
    What differs by less than 100 dB counts as equal: one byte of 154,000 that is off by one.
    """
    difference = images.astype(np.float64) - references
    error = np.square(difference).mean(axis=(1, 2, 3))
    least = PEAK**2 / 10 ** (MOST / 10)
    return np.asarray(10 * np.log10(PEAK**2 / np.maximum(error, least)), np.float32)


def _load(name: str, *, data_root: Path | None, device: str, download: bool) -> tuple[Measure, str]:
    return lambda images, references: {"pair": psnr(images, references)}, _METHOD


PSNR = Extractor(
    name="psnr",
    outputs={"pair": 1},
    load=_load,
    weights=lambda name: _METHOD,
    describe=lambda name, data_root: "a formula: needs no weights",
    paired=True,
)
