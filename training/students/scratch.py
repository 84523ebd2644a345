"""Build the networks of a checkpoint that is trained from scratch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers import PNDMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from training.recipes.schema import Recipe
from training.students.networks import Parts, load_parts
from training.students.tokenizer import CONTEXT, build_tokenizer


def build_scratch(recipe: Recipe, *, download: bool = False) -> Parts:
    """Return a random U-Net and text encoder, the autoencoder that the recipe names, and SD v1's sampler.

    A recipe without a text encoder borrows that of the checkpoint of its autoencoder.
    """
    networks = recipe.student.networks
    assert networks is not None  # the recipe's own check
    lender = load_parts(networks.vae, key="student.networks.vae", download=download)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.schedule.seed)
        unet = UNet2DConditionModel(**networks.unet)
        parts = replace(lender, unet=unet, scheduler=sd_v1_scheduler())
        if networks.text_encoder is None:
            return parts
        tokenizer = build_tokenizer()
        encoder = CLIPTextModel(text_config(networks.text_encoder, len(tokenizer)))
    return replace(parts, text_encoder=encoder, tokenizer=tokenizer)


def sd_v1_scheduler() -> PNDMScheduler:
    """Return the scheduler of Stable Diffusion v1."""
    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        steps_offset=1,
        skip_prk_steps=True,
        set_alpha_to_one=False,
        prediction_type="epsilon",
    )


def text_config(arguments: dict[str, Any], vocabulary: int) -> CLIPTextConfig:
    """Return the configuration of a text encoder for a vocabulary whose last tokens are begin and end."""
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
