"""Keep the latents and tokens of training scenes, so that every epoch does not draw and encode them again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from pytest_sdbench import scenes
from training.vae import to_unit


@dataclass(frozen=True)
class Latents:
    """Posterior means and deviations, float16 [N, C, 8, 8] before scaling; prompt tokens int64 [N, 32]."""

    mean: Tensor
    deviation: Tensor
    tokens: Tensor


def cached_latents(
    vae_folder: Path,
    tokenizer: CLIPTokenizer,
    count: int,
    folder: Path,
    say: Callable[[str], None] = print,
) -> Latents:
    """Return the latents of the first `count` training scenes, encoding them if this VAE has not yet.

    The file's name holds a digest of the VAE's weights: another VAE never meets old latents.
    """
    weights = vae_folder / "diffusion_pytorch_model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"{weights} is missing: run `python -m training vae` first")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
    path = folder / f"latents-{digest}-{count}.npy"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _encode(AutoencoderKL.from_pretrained(vae_folder), count, path, say)
    moments = torch.from_numpy(np.load(path, mmap_mode="r+"))
    tokens = tokenize(tokenizer, scenes.captions(scenes.TRAINING[:count]))
    return Latents(moments[0], moments[1], tokens)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Turn captions into padded token numbers, int64 [N, context]."""
    tokens: Tensor = tokenizer(
        captions,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return tokens


@torch.no_grad()
def _encode(vae: AutoencoderKL, count: int, path: Path, say: Callable[[str], None]) -> None:
    vae.eval().to(memory_format=torch.channels_last)
    side = 64 // 2 ** (len(vae.config.block_out_channels) - 1)
    moments = np.empty((2, count, vae.config.latent_channels, side, side), np.float16)
    for first in range(0, count, 128):
        last = min(first + 128, count)
        with torch.autocast("cpu", torch.bfloat16):
            encoded = vae.encoder(to_unit(scenes.render_batch(scenes.TRAINING[first:last])))
            mean, log_variance = vae.quant_conv(encoded).float().chunk(2, dim=1)
        moments[0, first:last] = mean.numpy()
        moments[1, first:last] = torch.exp(0.5 * log_variance.clamp(-12, 4)).numpy()
        if first % 12800 == 0:
            say(f"latents: {first} of {count} scenes encoded")
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, moments)
    temporary.replace(path)
