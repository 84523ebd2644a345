"""Load a checkpoint as a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pytest_sdbench.base.errors import CheckpointError, Unavailable, first_line
from pytest_sdbench.models.checkpoint import Checkpoint
from pytest_sdbench.models.integrity import verify
from pytest_sdbench.models.layout import has_vocabulary
from pytest_sdbench.models.loading import NEWER, load_model, quiet
from pytest_sdbench.models.skeleton import unet_inputs
from pytest_sdbench.models.values import check_calls, make_scheduler
from pytest_sdbench.models.weights import COPY_AGAIN, incomplete

if TYPE_CHECKING:
    import torch


def load_pipeline(
    checkpoint: Checkpoint, *, device: str | torch.device = "cpu", dtype: str | torch.dtype = "float32"
) -> Any:
    """Verify a checkpoint and load it as ``diffusers.StableDiffusionPipeline``, or its like of SDXL.

    Safety checker and invisible watermark are off (they change images), the progress bar too; the networks
    are in evaluation mode, on ``device``, in ``dtype``; the scheduler is the checkpoint's own.
    """
    import diffusers
    import torch

    verify(checkpoint)
    check_calls(checkpoint)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    of = checkpoint.pipeline
    tokenizers = {name: load_tokenizer(checkpoint, name) for name in of.tokenizers}
    networks = {
        name: load_model(name, checkpoint.part(name), checkpoint.weights(name), dtype)
        for name in of.components
    }
    settings = {**of.options, **checkpoint.pipeline_settings}
    with quiet():
        pipeline = getattr(diffusers, of.name)(
            **networks, **tokenizers, **settings, scheduler=make_scheduler(checkpoint)
        )
    pipeline.set_progress_bar_config(disable=True)
    pipeline = pipeline.to(device)
    if (how := checkpoint.quantised("unet")) is not None:
        _try(pipeline.unet, how, checkpoint)
    return pipeline


def _try(unet: Any, how: str, checkpoint: Checkpoint) -> None:
    """Raise ``Unavailable`` where a quantised U-Net has no kernel on its device."""
    import torch

    inputs = unet_inputs(checkpoint.unet_config, device=unet.device, dtype=unet.dtype)
    try:
        with torch.inference_mode():
            unet(**inputs)
    except Exception as error:  # a missing kernel shows in as many ways as there are kernels
        what = f"the quantised U-Net, {how}, cannot be called on {unet.device}"
        file = checkpoint.config_file("unet")
        raise Unavailable(what, file=file, found=first_line(error), remedy=NEWER) from error


def load_tokenizer(checkpoint: Checkpoint, name: str = "tokenizer") -> Any:
    """Load a checkpoint's tokenizer; raise ``CheckpointError`` unless its text encoder knows every token."""
    from transformers import CLIPTokenizer

    folder, encoder = checkpoint.part(name), name.replace("tokenizer", "text_encoder")
    # Without its files the tokenizer would come up with an empty vocabulary, and without an error.
    if not has_vocabulary(folder):
        present = {path.name for path in folder.glob("*")}
        remedy = f"It needs vocab.json and merges.txt. {COPY_AGAIN}"
        raise CheckpointError("no vocabulary", file=folder, found=sorted(present), remedy=remedy)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise incomplete("unreadable vocabulary", folder, found=first_line(error)) from error
    known = checkpoint.config(encoder).get("vocab_size", 49408)
    if len(tokenizer) > known:
        raise CheckpointError(
            f"the vocabulary has more tokens than the text encoder, which knows {known}",
            file=folder,
            key=f"{encoder}.vocab_size",
            found=len(tokenizer),
            remedy="Take tokenizer and text encoder from the same checkpoint",
        )
    # Without a length prompts are not padded, and draw other images.
    longest = checkpoint.config(encoder).get("max_position_embeddings", 77)
    length = tokenizer.model_max_length
    if not (isinstance(length, int) and 2 <= length <= longest):
        what, file = (
            f"no length of prompts that the text encoder takes: up to {longest}",
            "tokenizer_config.json",
        )
        remedy = f'Write `"model_max_length": {longest}` there, of a repository of the hub into a local copy'
        raise CheckpointError(what, file=folder / file, key="model_max_length", found=length, remedy=remedy)
    return tokenizer


def cut_prompts(tokenizers: Sequence[Any], prompts: Sequence[str]) -> list[bool]:
    """Say of each prompt whether it is longer than one of the tokenizers takes: its end is cut off."""
    cut = [False] * len(prompts)
    for tokenizer in tokenizers:
        tokens = tokenizer(list(prompts), truncation=False, verbose=False).input_ids
        longer = [len(each) > tokenizer.model_max_length for each in tokens]
        cut = [one or other for one, other in zip(cut, longer, strict=True)]
    return cut
