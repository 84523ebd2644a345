"""Measure the structural similarity of two pictures; no network is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pytest_sdbench.base.errors import DataError
from pytest_sdbench.features.definition import Extractor, Measure, Rows

if TYPE_CHECKING:
    from pytest_sdbench.protocols.image_steps import Images

WINDOW = 11
SIGMA = 1.5
K1, K2 = 0.01, 0.03
RANGE = 255
_METHOD = "RGB, Gaussian window 11, sigma 1.5, valid"

Maps = npt.NDArray[np.float64]


def ssim(images: Images, references: Images) -> Rows:
    """Return the mean structural similarity, float32 [B], of pairs of uint8 [B, H, W, 3].

    Wang, Bovik, Sheikh and Simoncelli 2004, equation 13, with the constants of their section III: a Gaussian
    window of 11x11 and sigma 1.5, K1 0.01, K2 0.03, range 255. Every channel has a map of its own, and their
    mean is taken. The window stays inside the picture, as in the authors' own program and in scikit-image, so
    that the 5 outermost pixels are the centre of none. torchmetrics fills in pixels beyond the border by
    reflection, and so counts those near it twice; its map has the same values inside. Raises DataError for a
    picture smaller than the window.
    """
    if min(images.shape[1:3]) < WINDOW:
        found = f"{images.shape[2]}x{images.shape[1]}"
        what, remedy = f"SSIM looks through a window of {WINDOW}x{WINDOW} pixels", "Give larger pictures"
        raise DataError(what, key="ssim", found=found, remedy=remedy)
    x, y = images.astype(np.float64), references.astype(np.float64)
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    below = (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return np.asarray((above / below).mean(axis=(1, 2, 3)), np.float32)


def _blur(maps: Maps) -> Maps:
    """Return the weighted means of all windows inside maps [B, H, W, C]: [B, H - 10, W - 10, C]."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    height, width = maps.shape[1] - WINDOW + 1, maps.shape[2] - WINDOW + 1
    rows = sum(weight * maps[:, at : at + height] for at, weight in enumerate(weights))
    blurred: Maps = sum(weight * rows[:, :, at : at + width] for at, weight in enumerate(weights))
    return blurred


def _load(name: str, *, data_root: Path | None, device: str, download: bool) -> tuple[Measure, str]:
    return lambda images, references: {"pair": ssim(images, references)}, _METHOD


SSIM = Extractor(
    name="ssim",
    outputs={"pair": 1},
    load=_load,
    weights=lambda name: _METHOD,
    describe=lambda name, data_root: "a formula: needs no weights",
    paired=True,
)
