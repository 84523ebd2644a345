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
from training.data.batch import Examples, tokenize
from training.data.encoded import CachedPairs
from training.data.source import Pixels, fit, to_pixels
from training.errors import TrainingError
from training.recipes.load import load_recipe
from training.recipes.schema import Distillation, Recipe
from training.students.networks import Parts, load_parts

Size = Literal["recipe", "full", "smoke"]
Config = Mapping[str, Any]

_SMOKE_UNET: Config = {
    **ARCHITECTURES["sd-v1"],
    "sample_size": 8,
    "block_out_channels": (8, 8, 16, 16),
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 16,
}
_SMOKE_TEXT: Config = {
    **SD_V1_TEXT_ENCODER,
    "vocab_size": 1000,
    "hidden_size": 16,
    "intermediate_size": 32,
    "projection_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_SMOKE_VAE: Config = {
    **SD_V1_VAE,
    "sample_size": 64,
    "block_out_channels": (8, 8, 8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


@dataclass(frozen=True)
class Scenario:
    """One recipe with everything that both ways of running its step share."""

    recipe: Recipe
    device: torch.device
    parts: Parts
    """On the CPU, float32; `unet` is the teacher."""
    pixels: Tensor
    """float32 [N, 3, H, W], -1 to 1, on the device: reading and decoding is not what is measured."""
    cached: CachedPairs
    networks: str
    """What the weights are, to be shown."""

    @property
    def half(self) -> torch.dtype:
        """The type of frozen networks."""
        types = {"fp16": torch.float16, "bf16": torch.bfloat16}
        return types.get(self.recipe.precision, torch.float32)

    @property
    def objective(self) -> Distillation:
        """What the student descends."""
        assert isinstance(self.recipe.objective, Distillation)
        return self.recipe.objective


@dataclass(frozen=True)
class MemoryPairs:
    """Pairs in memory that hand out latents or pictures, text states or only tokens."""

    cached: CachedPairs
    pixels: Tensor | None
    """Given: handed out in the place of latents."""
    text: bool
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def group_sizes(self) -> Sequence[int]:
        return self.cached.group_sizes

    def __len__(self) -> int:
        return len(self.cached)

    def take(self, rows: Sequence[int], flipped: Sequence[bool] | None = None) -> Examples:
        """Return the pairs of these rows."""
        examples = self.cached.take(rows, flipped)
        if self.pixels is not None:
            examples = replace(examples, pixels=self.pixels[list(rows)], mean=None, deviation=None)
        return examples if self.text else replace(examples, text=None)


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
    if recipe.objective.kind == "distillation":
        # The published script drops no caption; it would be the same work.
        recipe = load_recipe(name, [*fixed, "objective.caption_dropout=0.0", *overrides])
    else:
        raise TrainingError(
            "the published script distils, so its step has no counterpart here",
            file=name,
            key="objective.kind",
            found=recipe.objective.kind,
            remedy="Name a recipe that distils, such as scenes-tiny or bk-sdm-base",
        )
    resolution = recipe.data.resolution or 64
    if size == "recipe":
        if recipe.teacher is None or recipe.data.kind != "scenes":
            raise TrainingError(
                "pictures of this recipe are not at hand",
                file=name,
                key="data.kind",
                found=recipe.data.kind,
                remedy="Measure it at full size, with random weights: --full-size",
            )
        parts = load_parts(recipe.teacher)
        pixels, tokens = _scenes(recipe, parts, 4 * recipe.schedule.batch, resolution)
        networks = f"weights of {recipe.teacher}"
    else:
        full = size == "full"
        parts = random_parts(
            ARCHITECTURES["sd-v1"] if full else _SMOKE_UNET,
            SD_V1_TEXT_ENCODER if full else _SMOKE_TEXT,
            SD_V1_VAE if full else _SMOKE_VAE,
        )
        generator = torch.Generator().manual_seed(0)
        count = recipe.schedule.batch
        pixels = torch.rand(count, 3, resolution, resolution, generator=generator) * 2 - 1
        high, length = parts.text_encoder.config.vocab_size, parts.text_encoder.config.max_position_embeddings
        tokens = torch.randint(high, (count, length), generator=generator)
        networks = "random weights, " + ("Stable Diffusion v1.4" if full else "eight channels wide")
    pixels = pixels.to(device)
    scenario = Scenario(recipe, device, parts, pixels, _no_pairs(), networks)
    return replace(scenario, cached=encode(parts, pixels, tokens, scenario.half))


def random_parts(unet: Config, text_encoder: Config, vae: Config) -> Parts:
    """Return networks with random weights, in evaluation mode and frozen, and the scheduler of SD v1."""
    from diffusers import AutoencoderKL, PNDMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = CLIPTextModel(CLIPTextConfig.from_dict(dict(text_encoder)))
        autoencoder = AutoencoderKL.from_config(dict(vae))
    for network in (text, autoencoder):
        network.eval().requires_grad_(False)
    teacher = unet_skeleton(unet, device="cpu")
    return Parts(teacher, text, autoencoder, None, PNDMScheduler(**SD_V1_SCHEDULER))


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
    rows = np.arange(len(tokens))
    return CachedPairs(
        torch.cat(latents)[:, None].numpy(),
        tokens.numpy().astype(np.int32),
        {},
        torch.cat(states).numpy(),
        rows,
    )


def _scenes(recipe: Recipe, parts: Parts, count: int, resolution: int) -> tuple[Tensor, Tensor]:
    from training.data.scenes import ScenesSource

    data = recipe.data
    assert data.kind == "scenes"
    source = ScenesSource(count, first=data.first, layouts=data.layouts, size=resolution)
    samples = [source.read(row) for row in range(count)]
    pixels: Sequence[Pixels] = [fit(sample, resolution) for sample in samples]
    tokens, _ = tokenize(parts.tokenizer, [sample.caption for sample in samples])
    return to_pixels(pixels), tokens


def _no_pairs() -> CachedPairs:
    return CachedPairs(np.zeros((0, 1, 2, 1, 1, 1), np.float16), np.zeros((0, 1), np.int32), {})
