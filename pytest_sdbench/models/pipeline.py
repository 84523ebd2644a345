"""Load a checkpoint as a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pytest_sdbench.base.errors import CheckpointError, first_line
from pytest_sdbench.models.checkpoint import Checkpoint
from pytest_sdbench.models.integrity import verify
from pytest_sdbench.models.values import check_calls, make_scheduler
from pytest_sdbench.models.weights import COPY_AGAIN, incomplete

if TYPE_CHECKING:
    import torch


def load_pipeline(
    checkpoint: Checkpoint, *, device: str | torch.device = "cpu", dtype: str | torch.dtype = "float32"
) -> Any:
    """Verify a checkpoint and load it as a ``diffusers.StableDiffusionPipeline``.

    The safety checker is off (it blacks images out), the progress bar too; the networks are in evaluation
    mode, on ``device``, in ``dtype``; the scheduler is the checkpoint's own.
    """
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    verify(checkpoint)
    check_calls(checkpoint)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    tokenizer = load_tokenizer(checkpoint)
    with _quiet():
        pipeline = StableDiffusionPipeline(
            unet=_load_model(UNet2DConditionModel, "unet", checkpoint, dtype),
            text_encoder=_load_model(CLIPTextModel, "text_encoder", checkpoint, dtype),
            vae=_load_model(AutoencoderKL, "vae", checkpoint, dtype),
            tokenizer=tokenizer,
            scheduler=make_scheduler(checkpoint),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    for model in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        model.eval().requires_grad_(False)
    return pipeline.to(device)


def _load_model(kind: Any, name: str, checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """Load one network with its library's own loader, and do not trust that everything arrived."""
    weights = checkpoint.weights(name)
    try:
        model, info = kind.from_pretrained(
            checkpoint.part(name),
            torch_dtype=dtype,
            variant=weights.variant,
            use_safetensors=weights.safetensors,
            local_files_only=True,
            output_loading_info=True,
            # A configuration may name another implementation of attention, code from the hub included.
            **({"attn_implementation": "sdpa"} if name == "text_encoder" else {}),
        )
    except Exception as error:  # loaders fail in as many ways as there are wrong values
        what, folder = f"{kind.__name__} cannot be loaded", checkpoint.part(name)
        raise incomplete(what, folder, found=f"{type(error).__name__}: {first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        what = f"{kind.__name__} left {len(missing)} tensors at random values"
        remedy = "Save the checkpoint again with the installed versions of diffusers and transformers"
        raise CheckpointError(what, file=weights.files[0], key=missing[0], remedy=remedy)
    return model


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Load a checkpoint's tokenizer; raise ``CheckpointError`` unless its text encoder knows every token."""
    from transformers import CLIPTokenizer

    folder = checkpoint.part("tokenizer")
    present = {path.name for path in folder.glob("*")}
    # Without its files the tokenizer would come up with an empty vocabulary, and without an error.
    if not ({"vocab.json", "merges.txt"} <= present or "tokenizer.json" in present):
        remedy = f"It needs vocab.json and merges.txt. {COPY_AGAIN}"
        raise CheckpointError("no vocabulary", file=folder, found=sorted(present), remedy=remedy)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise incomplete("unreadable vocabulary", folder, found=first_line(error)) from error
    known = checkpoint.config("text_encoder").get("vocab_size", 49408)
    if len(tokenizer) > known:
        raise CheckpointError(
            f"the vocabulary has more tokens than the text encoder, which knows {known}",
            file=folder,
            key="text_encoder.vocab_size",
            found=len(tokenizer),
            remedy="Take tokenizer and text encoder from the same checkpoint",
        )
    # Without a length prompts are not padded, and draw other images.
    longest = checkpoint.config("text_encoder").get("max_position_embeddings", 77)
    length = tokenizer.model_max_length
    if not (isinstance(length, int) and 2 <= length <= longest):
        what, file = (
            f"no length of prompts that the text encoder takes: up to {longest}",
            "tokenizer_config.json",
        )
        remedy = f'Write `"model_max_length": {longest}` there'
        raise CheckpointError(what, file=folder / file, key="model_max_length", found=length, remedy=remedy)
    return tokenizer


def cut_prompts(tokenizer: Any, prompts: Sequence[str]) -> list[bool]:
    """Say of each prompt whether it is longer than the tokenizer takes: its end is cut off."""
    tokens = tokenizer(list(prompts), truncation=False, verbose=False).input_ids
    return [len(each) > tokenizer.model_max_length for each in tokens]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' own progress bars and notices out of test output."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (verbosity, bar) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bar:
                library.enable_progress_bar()
