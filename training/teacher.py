"""Train the teacher of the embedded family: a small Stable Diffusion, text encoder and U-Net together."""

from __future__ import annotations

import json
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from training import loop
from training.data import Latents, cached_latents, tokenize
from training.tokenizer import CONTEXT, build_tokenizer, save_tokenizer

CHECKPOINTS = Path(__file__).parents[1] / "reference" / "checkpoints"

NOISE_SCHEDULE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""The schedule of Stable Diffusion v1."""


class TeacherStage:
    """Predict the noise in the latents of training scenes, given their captions."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        torch.manual_seed(0)
        self.recipe = recipe
        self.vae_folder = CHECKPOINTS / "scenes-sd" / "vae"
        self.tokenizer = build_tokenizer()
        self.text_encoder = CLIPTextModel(_text_config(recipe["text_encoder"], len(self.tokenizer)))
        self.unet = UNet2DConditionModel(**recipe["unet"]).to(memory_format=torch.channels_last)
        self.modules = nn.ModuleDict({"text_encoder": self.text_encoder, "unet": self.unet})
        self.signal = noise_schedule()

    @cached_property
    def latents(self) -> Latents:
        return cached_latents(
            self.vae_folder, self.tokenizer, self.recipe["scenes"], loop.cache_folder("latents")
        )

    @cached_property
    def scaling(self) -> float:
        return float(AutoencoderKL.load_config(self.vae_folder)["scaling_factor"])

    @cached_property
    def nothing(self) -> Tensor:
        """The tokens of the empty prompt, [1, context]."""
        return tokenize(self.tokenizer, [""])

    def losses(self, start: int, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(self.latents.tokens), (count,), generator=generator)
        mean, deviation = self.latents.mean[rows].float(), self.latents.deviation[rows].float()
        clean = (mean + deviation * torch.randn(mean.shape, generator=generator)) * self.scaling
        noise = torch.randn(clean.shape, generator=generator)
        steps = torch.randint(len(self.signal), (count,), generator=generator)
        drop = torch.rand(count, generator=generator) < self.recipe["caption_dropout"]
        tokens = torch.where(drop[:, None], self.nothing, self.latents.tokens[rows])

        signal = self.signal[steps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        text = self.text_encoder(tokens).last_hidden_state
        guess = self.unet(noisy.contiguous(memory_format=torch.channels_last), steps, text).sample
        errors = (guess - noise).square().mean(dim=(1, 2, 3))
        # Min-SNR weights (Hang et al. 2023) for noise prediction.
        ratio = self.signal[steps] / (1 - self.signal[steps])
        weight = ratio.clamp(max=self.recipe["min_snr"]) / ratio
        return {"loss": (weight * errors).mean() / 0.5, "error": errors.detach().mean()}

    def export(self, folder: Path) -> None:
        """Write the whole pipeline in diffusers layout, float16, replacing the folder in one step."""
        target = folder / "scenes-sd"
        temporary = folder / "scenes-sd.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL.from_pretrained(self.vae_folder),
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=sampling_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.to(dtype=torch.float16)
        pipeline.save_pretrained(temporary, safe_serialization=True)
        self.modules.float()
        save_tokenizer(self.tokenizer, temporary / "tokenizer")
        # transformers loads the type that the config names, diffusers float32: they have to agree.
        _edit_config(temporary / "text_encoder" / "config.json", {"dtype": "float32"})
        # diffusers notes the folder that the VAE came from, which means nothing on another machine.
        _edit_config(temporary / "vae" / "config.json", {"_name_or_path": None})
        if target.exists():
            target.rename(folder / "scenes-sd.old")
        temporary.rename(target)
        shutil.rmtree(folder / "scenes-sd.old", ignore_errors=True)


def _edit_config(path: Path, changes: dict[str, Any]) -> None:
    """Set keys of a JSON config; None removes the key."""
    settings = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    kept = {name: value for name, value in settings.items() if name not in changes or value is not None}
    path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def noise_schedule() -> Tensor:
    """Return the share of signal variance left after each of the 1,000 noise steps, float32."""
    first, last = NOISE_SCHEDULE["beta_start"], NOISE_SCHEDULE["beta_end"]
    betas = torch.linspace(first**0.5, last**0.5, 1000, dtype=torch.float64).square()
    return (1 - betas).cumprod(0).float()


def sampling_scheduler() -> PNDMScheduler:
    """Return the scheduler of Stable Diffusion v1."""
    return PNDMScheduler(
        **NOISE_SCHEDULE,
        num_train_timesteps=1000,
        steps_offset=1,
        skip_prk_steps=True,
        set_alpha_to_one=False,
        prediction_type="epsilon",
    )


def _text_config(recipe: dict[str, Any], vocabulary: int) -> CLIPTextConfig:
    end = vocabulary - 1
    return CLIPTextConfig(
        **recipe,
        vocab_size=vocabulary,
        max_position_embeddings=CONTEXT,
        hidden_act="quick_gelu",
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
