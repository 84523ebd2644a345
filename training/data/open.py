"""Open the data of a recipe: its source, and the pairs to train on, encoded and cached or read each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from training.data.batch import Pairs
from training.data.encoded import Encoding, cached_pairs, check_resolution
from training.data.live import LivePairs
from training.data.source import Source, Subset, empty_caption
from training.errors import TrainingError
from training.recipes.schema import Data, Recipe
from training.students.networks import Parts

T = TypeVar("T")


def open_source(data: Data, *, say: Callable[[str], None] = print) -> Source:
    """Open the data of a recipe: its first `pairs` pairs.

    Raises TrainingError for data that is missing or malformed, and for an empty caption where it is known
    already and the recipe does not allow it.
    """
    # Each kind imports what the others do not need.
    source: Any
    if data.kind == "scenes":
        from training.data.scenes import ScenesSource

        return ScenesSource(
            data.pairs,
            first=data.first,
            layouts=data.layouts,
            domain=data.domain,
            size=data.resolution or 64,
            close_up=data.close_up,
        )
    if data.kind == "folder":
        from training.data.folder import FolderSource

        source = FolderSource(_require(data.path, "data.path"), say=say)
    elif data.kind == "huggingface":
        from training.data.hub import HubSource

        source = HubSource(
            _require(data.name, "data.name"),
            split=data.split,
            image_column=data.image_column,
            caption_column=data.caption_column,
            revision=data.revision,
        )
    else:
        from training.data.shards import ShardsSource

        source = ShardsSource(_require(data.urls, "data.urls"), pairs=data.pairs, say=say)
    subset = Subset(source, data.pairs, data.empty_captions)
    if data.empty_captions == "error" and data.kind != "webdataset":
        for row, caption in zip(range(len(subset)), source.captions, strict=False):
            if not caption.strip():
                raise empty_caption(f"row {row}", source.name)
    return subset


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
    check_resolution(data.resolution, parts.vae.config)
    if not data.cache:
        return LivePairs(
            source, parts.tokenizer, data.resolution, upscale=data.upscale, say=say, record=record
        )
    assert parts.checkpoint is not None  # networks from scratch are written down first
    encoding = Encoding(
        parts.checkpoint, data.resolution, data.flip, data.cache_text, data.upscale, dtype, device
    )
    return cached_pairs(source, encoding, cache, say=say)


def _require(value: T | None, key: str) -> T:
    if not value:
        raise TrainingError("the recipe does not say where its data is", key=key, remedy=f"Give {key}=...")
    return value
