"""The networks of one checkpoint, loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pytest_sdbench.base.errors import CheckpointError, Unavailable
from pytest_sdbench.models.checkpoint import Checkpoint, resolve
from pytest_sdbench.models.layout import SD
from pytest_sdbench.models.pipeline import load_pipeline


@dataclass(frozen=True)
class Parts:
    """What a diffusers pipeline is made of."""

    unet: Any
    text_encoder: Any
    vae: Any
    tokenizer: Any
    scheduler: Any
    """The scheduler that the checkpoint samples with; its configuration says what the network predicts."""
    checkpoint: Checkpoint | None = None
    """Where they were loaded from; None for networks from scratch."""


def load_parts(spec: str | dict[str, str], *, key: str = "teacher", download: bool = False) -> Parts:
    """Load and verify a checkpoint in float32 on the CPU, its networks frozen.

    `spec` is what a card's `sdbench.checkpoint` may be, of the recipe's `key`; folders are relative to where
    the command runs.
    """
    checkpoint = find(spec, key=key, download=download)
    check_family(checkpoint)
    loaded = load_pipeline(checkpoint, device="cpu", dtype=torch.float32)
    tokenizer, scheduler = loaded.tokenizer, loaded.scheduler
    return Parts(loaded.unet, loaded.text_encoder, loaded.vae, tokenizer, scheduler, checkpoint)


def find(spec: str | dict[str, str], *, key: str, download: bool = False) -> Checkpoint:
    """Return the checkpoint of a recipe's `key`; what is wrong is told with the options of this command."""
    try:
        return resolve(spec, near=Path.cwd(), download=download)
    except (CheckpointError, Unavailable) as error:
        remedy = (error.remedy or "").replace("--sdbench-weights CARD=PATH", f"{key}=FOLDER")
        remedy = remedy.replace("--sdbench-download", "--download")
        where = key if error.key == "sdbench.checkpoint" else error.key
        raise type(error)(
            error.message, file=error.file, key=where, found=error.found, remedy=remedy or None
        ) from error


def check_family(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for a checkpoint that is evaluated and not trained: SDXL's."""
    if checkpoint.pipeline is not SD:
        what = "a checkpoint with two text encoders (SDXL), which is not trained here (yet)"
        remedy = "Name one of SD v1 or v2, or of their students"
        raise CheckpointError(what, file=checkpoint.folder, found=checkpoint.pipeline.name, remedy=remedy)
