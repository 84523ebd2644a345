"""Set up what a training benchmark runs on: a recipe, its networks, and pictures decoded in advance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pytest_sdbench.models.architectures import ARCHITECTURES, SD_V1_SCHEDULER, SD_V1_TEXT_ENCODER, SD_V1_VAE
from pytest_sdbench.models.skeleton import unet_skeleton
from training.data.batch import Examples
from training.data.encoded import CachedPairs
from training.data.live import LivePairs
from training.data.open import open_source
from training.errors import TrainingError
from training.recipes.load import load_recipe
from training.recipes.schema import Distillation, Recipe
from training.students.networks import Parts, load_parts

Size = Literal["recipe", "full", "smoke"]
NAMES: Mapping[str, str] = {"full": "Stable Diffusion v1.4", "smoke": "eight channels wide"}
"""Networks with random weights, in words."""

_SMOKE_UNET = {
    **ARCHITECTURES["sd-v1"],
    "sample_size": 8,
    "block_out_channels": (8, 8, 16, 16),
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 16,
}
_SMOKE_TEXT = {
    **SD_V1_TEXT_ENCODER,
    "vocab_size": 1000,
    "hidden_size": 16,
    "intermediate_size": 32,
    "projection_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_SMOKE_VAE = {
    **SD_V1_VAE,
    "sample_size": 64,
    "block_out_channels": (8, 8, 8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
CONFIGS: Mapping[str, Any] = {
    "full": (ARCHITECTURES["sd-v1"], SD_V1_TEXT_ENCODER, SD_V1_VAE),
    "smoke": (_SMOKE_UNET, _SMOKE_TEXT, _SMOKE_VAE),
}
"""The configurations of U-Net, text encoder and VAE."""


@dataclass(frozen=True)
class Scenario:
    """One recipe with everything that both ways of running its step share."""

    recipe: Recipe
    device: torch.device
    half: torch.dtype
    """The type of frozen networks."""
    parts: Parts
    """On the CPU, float32; `unet` is the teacher."""
    pixels: Tensor
    """float32 [N, 3, H, W], -1 to 1, on the device: reading and decoding is not what is measured."""
    cached: CachedPairs
    networks: str
    """What the weights are, to be shown."""

    @property
    def objective(self) -> Distillation:
        """What the student descends."""
        assert isinstance(self.recipe.objective, Distillation)
        return self.recipe.objective


@dataclass(frozen=True)
class PicturePairs(CachedPairs):
    """Pairs in memory that hand out pictures in the place of latents."""

    pixels: Tensor = field(kw_only=True)

    def take(self, rows: Sequence[int], flipped: Sequence[bool] | None = None) -> Examples:
        """Return the pairs of these rows."""
        examples = super().take(rows, flipped)
        return replace(examples, pixels=self.pixels[list(rows)], mean=None, deviation=None)


def open_scenario(
    name: str, *, size: Size = "recipe", device: torch.device, overrides: Sequence[str] = ()
) -> Scenario:
    """Load a distillation recipe with the networks of its teacher, or with random ones of another size.

    `full` stands for Stable Diffusion v1.4 at the recipe's resolution, `smoke` for the same topology at eight
    channels and 64 pixels. Raises TrainingError for a recipe that distils nothing.
    """
    fixed = ["data.flip=false", "optimizer.warmup_steps=0"]
    if size == "smoke":
        fixed += ["schedule.batch=4", "schedule.micro_batch=2", "data.resolution=64", "precision=fp32"]
    recipe = load_recipe(name, [*fixed, *overrides])
    if recipe.objective.kind != "distillation":
        raise TrainingError(
            "the published script distils, so its step has no counterpart here",
            file=name,
            key="objective.kind",
            found=recipe.objective.kind,
            remedy="Name a recipe that distils, such as scenes-tiny or bk-sdm-base",
        )
    # The published script drops no caption; it would be the same work.
    recipe = load_recipe(name, [*fixed, "objective.caption_dropout=0.0", *overrides])
    resolution, batch = recipe.data.resolution or 64, recipe.schedule.batch
    if size != "recipe":
        parts, networks = random_parts(size), f"random weights, {NAMES[size]}"
        generator, text = torch.Generator().manual_seed(0), parts.text_encoder.config
        pixels = torch.rand(batch, 3, resolution, resolution, generator=generator) * 2 - 1
        shape = (batch, text.max_position_embeddings)
        tokens = torch.randint(text.vocab_size, shape, generator=generator)
    else:
        assert recipe.teacher is not None  # the recipe's own check
        parts, networks = load_parts(recipe.teacher), f"weights of {recipe.teacher}"
        pairs = LivePairs(open_source(recipe.data), parts.tokenizer, resolution).take(range(4 * batch))
        assert pairs.pixels is not None
        pixels, tokens = pairs.pixels, pairs.tokens
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(recipe.precision, torch.float32)
    pixels = pixels.to(device)
    return Scenario(recipe, device, half, parts, pixels, encode(parts, pixels, tokens, half), networks)


def random_parts(size: str, **words: int) -> Parts:
    """Return networks with random weights, in evaluation mode and frozen, and the scheduler of SD v1.

    `words` tell the text encoder of another tokenizer than CLIP's.
    """
    from diffusers import AutoencoderKL, PNDMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel

    unet, text_encoder, vae = CONFIGS[size]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = CLIPTextModel(CLIPTextConfig.from_dict({**text_encoder, **words}))
        autoencoder = AutoencoderKL.from_config(vae)
    for network in (text, autoencoder):
        network.eval().requires_grad_(False)
    return Parts(unet_skeleton(unet, device="cpu"), text, autoencoder, None, PNDMScheduler(**SD_V1_SCHEDULER))


@torch.no_grad()
def encode(parts: Parts, pixels: Tensor, tokens: Tensor, dtype: torch.dtype) -> CachedPairs:
    """Return what the cache of a run holds of these pictures and captions, in memory.

    The networks are back on the CPU, in float32, when this returns.
    """
    device = pixels.device
    # As many pixels at once as fit beside nothing else.
    some = max(1, 2**22 // pixels[0, 0].numel())
    vae, text_encoder = parts.vae.to(device, dtype), parts.text_encoder.to(device, dtype)
    latents, states = [], []
    for first in range(0, len(pixels), some):
        posterior = vae.encode(pixels[first : first + some].to(dtype)).latent_dist
        latents.append(torch.stack([posterior.mean, posterior.std], dim=1).half().cpu())
        states.append(text_encoder(tokens[first : first + some].to(device)).last_hidden_state.half().cpu())
    vae.to("cpu", torch.float32)
    text_encoder.to("cpu", torch.float32)
    return CachedPairs(
        torch.cat(latents)[:, None].numpy(),
        tokens.numpy().astype(np.int32),
        {},
        torch.cat(states).numpy(),
        np.arange(len(tokens)),
    )
