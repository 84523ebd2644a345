"""What a run stands on: where its evidence and data lie, and what computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytest_sdbench.base.part import ALONE, Part


@dataclass(frozen=True)
class Pool:
    """Workers of a Ray cluster, as a user asks for them."""

    address: str = "local"
    """Of the cluster; ``local``: one that is this machine alone."""
    gpus: float | None = None
    """Share of a GPU that a worker takes; None: a whole one, or none where the device is a CPU."""
    workers: int | None = None
    """At most so many; None: as many as the cluster has room for."""
    mixed: bool = False
    """Whether workers of other devices or library versions than the first one may take part."""


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
    part: Part = ALONE
    """This process among those that make the same images, each its share."""
    pool: Pool | None = None
    """The cluster whose workers make the images; None: this process does."""
