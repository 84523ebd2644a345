"""What a run stands on: where its evidence and data lie, and what computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    """The store, the data, the device and the habits of a run, which travel as one."""

    store: Path | str = ".sdbench"
    """Evidence store: a folder, or an fsspec URL."""
    data_root: Path | None = None
    """Folder of prompts, reference statistics and extractor weights; None: only what the package has."""
    device: str = "cpu"
    """Torch device."""
    dtype: str | None = None
    """Precision of the pipeline in place of the protocol's; scores then compare with no claim."""
    download: bool = False
    """Whether weights that are missing may be downloaded."""
    progress: bool = True
    """Whether to show progress bars."""
    keep_images: int | str = "auto"
    """Images of a draw whose pictures are kept; `all`, or `auto`: some, where they are made anyway."""
