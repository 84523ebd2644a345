"""Open the source of pictures that a recipe names."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from training.errors import TrainingError

if TYPE_CHECKING:
    from training.recipes.schema import Data
from training.data.source import Source, Subset, T, empty_caption


def open_source(data: Data, *, say: Callable[[str], None] = print) -> Source:
    """Open the data of a recipe: its first `pairs` pairs.

    Raises TrainingError for data that is missing or malformed, and for an empty caption where it is known
    already and the recipe does not allow it.
    """
    # Each kind imports what the others do not need.
    source: Any
    if data.kind == "scenes":
        from training.data.scenes import ScenesSource

        return ScenesSource(data.pairs, first=data.first, layouts=data.layouts, size=data.resolution or 64)
    if data.kind == "folder":
        from training.data.folder import FolderSource

        source = FolderSource(_given(data.path, "data.path"))
    elif data.kind == "huggingface":
        from training.data.hub import HubSource

        source = HubSource(
            _given(data.name, "data.name"),
            split=data.split,
            image_column=data.image_column,
            caption_column=data.caption_column,
            revision=data.revision,
        )
    else:
        from training.data.shards import ShardsSource

        source = ShardsSource(_given(data.urls, "data.urls"), pairs=data.pairs, say=say)
    chosen = Subset(source, data.pairs, data.empty_captions)
    if data.empty_captions == "error" and data.kind != "webdataset":
        for row, caption in zip(range(len(chosen)), source.captions, strict=False):
            if not caption.strip():
                raise empty_caption(f"row {row}", source.name)
    return chosen


def _given(value: T | None, key: str) -> T:
    if not value:
        raise TrainingError("the recipe does not say where its data is", key=key, remedy=f"Give {key}=...")
    return value
