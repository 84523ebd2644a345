"""Turn a source into the pairs that a recipe asks for: encoded and cached, or read each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from training.data.batch import Pairs
from training.data.encoded import cached_pairs
from training.data.live import live_pairs
from training.data.source import Source
from training.recipes.schema import Recipe
from training.students.networks import Parts


def pairs_of(
    recipe: Recipe,
    source: Source,
    parts: Parts,
    cache: Path,
    *,
    device: str | torch.device,
    dtype: torch.dtype = torch.float32,
    say: Callable[[str], None] = print,
    record: Path | None = None,
) -> Pairs:
    """Return the pairs of a source as `recipe.data` says; what is encoded is kept in the folder `cache`.

    Corrupt pairs that are met while training are listed in the file `record`.
    The networks of `parts` encode in `dtype`, loaded from their checkpoint.
    """
    data = recipe.data
    if not data.cache:
        return live_pairs(
            source, parts.tokenizer, data.resolution, upscale=data.upscale, say=say, record=record
        )
    assert parts.checkpoint is not None  # networks from scratch have that of their autoencoder
    return cached_pairs(
        source,
        checkpoint=parts.checkpoint,
        resolution=data.resolution,
        flip=data.flip,
        text=data.cache_text,
        folder=cache,
        device=device,
        dtype=dtype,
        say=say,
        upscale=data.upscale,
    )
