"""Build the networks of a checkpoint that is trained from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pytest_sdbench.base.errors import CheckpointError, first_line
from training.recipes.schema import Recipe
from training.students.fit import check_fit, check_text
from training.students.networks import Parts, load_parts
from training.students.straight import straighten
from training.students.tokenizer import CONTEXT, build_tokenizer, save_tokenizer


def build_scratch(recipe: Recipe, *, download: bool = False) -> Parts:
    """Return a new U-Net, SD v1's sampler, and the autoencoder and text encoder that the recipe names.

    A recipe without a text encoder borrows that of the checkpoint of its autoencoder.
    """
    networks = recipe.student.networks
    assert networks is not None  # the recipe's own check
    (vae,) = _lend(networks.vae, "vae", key="student.networks.vae", download=download)
    own = isinstance(networks.text_encoder, dict)
    if isinstance(networks.text_encoder, dict):
        tokenizer = build_tokenizer()
        config = text_config(networks.text_encoder, len(tokenizer))
    else:
        lender = networks.text_encoder or networks.vae
        of = f"student.networks.{'text_encoder' if networks.text_encoder else 'vae'}"
        encoder, tokenizer = _lend(lender, "text_encoder", "tokenizer", key=of, download=download)
        config = encoder.config
    check_fit(networks.unet, config.to_dict(), dict(vae.config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.schedule.seed)
        unet = UNet2DConditionModel(**networks.unet)
        if own:
            encoder = CLIPTextModel(config)
    if networks.start == "straight":
        straighten(unet)
    return Parts(unet, encoder, vae, tokenizer, sd_v1_scheduler(networks.prediction))


_LOADERS: dict[str, Any] = {"vae": AutoencoderKL, "text_encoder": CLIPTextModel, "tokenizer": CLIPTokenizer}


def _lend(spec: str | dict[str, str], *names: str, key: str, download: bool) -> list[Any]:
    """Load parts of a checkpoint, or of a folder that holds these parts alone.

    Raises CheckpointError for parts that are damaged.
    """
    folder = Path(spec) if isinstance(spec, str) else None
    alone = folder is not None and not (folder / "model_index.json").exists()
    if not alone or not all((folder / name).is_dir() for name in names if folder):
        parts = load_parts(spec, key=key, download=download)
        return [getattr(parts, name) for name in names]
    try:
        loaded = [
            _LOADERS[name].from_pretrained(folder, subfolder=name, local_files_only=True) for name in names
        ]
    except (OSError, ValueError, SafetensorError) as error:
        what = f"the {' and the '.join(names)} of this folder cannot be read: {first_line(error)}"
        raise CheckpointError(what, file=folder, key=key, remedy="Export or download it again") from error
    # Kept as float16, computed with as float32: as a whole checkpoint is loaded.
    return [part.float().eval() if isinstance(part, nn.Module) else part for part in loaded]


def write_down(parts: Parts, folder: Path) -> None:
    """Write networks as a checkpoint, so that what does not learn of them can be read again, and be known."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        unet=parts.unet,
        scheduler=parts.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    save_tokenizer(parts.tokenizer, folder / "tokenizer")


def sd_v1_scheduler(prediction: str = "epsilon") -> PNDMScheduler:
    """Return the scheduler of Stable Diffusion v1, for what a U-Net predicts."""
    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        steps_offset=1,
        skip_prk_steps=True,
        set_alpha_to_one=False,
        prediction_type=prediction,
    )


def text_config(arguments: dict[str, Any], vocabulary: int) -> CLIPTextConfig:
    """Return the configuration of a text encoder for a vocabulary whose last tokens are begin and end.

    Raises TrainingError for arguments that there are none of.
    """
    check_text(arguments)
    end = vocabulary - 1
    return CLIPTextConfig(
        **arguments,
        vocab_size=vocabulary,
        max_position_embeddings=CONTEXT,
        hidden_act="quick_gelu",
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
