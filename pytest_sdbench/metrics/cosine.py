"""Average the CLIP score."""

from __future__ import annotations

import math

import numpy as np

from pytest_sdbench.metrics.moments import Rows


def clip_score(cosines: Rows) -> tuple[float, float | None]:
    """Return the mean cosine of image and caption and its standard error, None for one image; [n] -> floats.

    Not multiplied by 100 and not clipped at zero (unlike CLIPScore of Hessel et al. 2021): as the published
    figures. Raises ValueError for no image and for a cosine outside [-1, 1].
    """
    values = np.asarray(cosines, np.float64)
    if not len(values):
        raise ValueError("no images")
    if not (np.abs(values) <= 1 + 1e-3).all():
        raise ValueError("cosines must lie in [-1, 1]")
    n = len(values)
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None
