"""Average the CLIP score."""

from __future__ import annotations

import numpy as np

from pytest_sdbench.metrics.moments import Rows
from pytest_sdbench.metrics.spread import Groups, standard_error


def clip_score(cosines: Rows, groups: Groups | None = None) -> tuple[float, float | None]:
    """Return the mean cosine of image and caption and its standard error, None for one image; [n] -> floats.

    `groups` tell which images share a prompt: the error then is that of the means of prompts. Not multiplied
    by 100 and not clipped at zero (unlike CLIPScore of Hessel et al. 2021): as the published figures.
    Raises ValueError for no image and for a cosine outside [-1, 1].
    """
    values = np.asarray(cosines, np.float64)
    if not len(values):
        raise ValueError("no images")
    if not (np.abs(values) <= 1 + 1e-3).all():
        raise ValueError("cosines must lie in [-1, 1]")
    mean = float(values.mean())
    return mean, standard_error(values - mean, groups)
