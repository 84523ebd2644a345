"""Train the autoencoder of the embedded family on scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from pytest_sdbench.protocols import scenes
from training.embedded.half import save_half
from training.recipes.schema import Autoencoder, Recipe
from training.run.randomness import Dice
from training.run.task import Piece, Task

_SCALE_FROM = 1_000_000
"""First of the training scenes that the scale of the latents is measured on."""


def to_unit(images: Any) -> Tensor:
    """Turn uint8 pictures [N, H, W, 3] into float32 [N, 3, H, W] from -1 to 1, channels last in memory."""
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return batch.contiguous(memory_format=torch.channels_last)


class Reconstruction(nn.Module):
    """An autoencoder that encodes, draws from the posterior and decodes in one call."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pictures: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the drawn pictures, and mean and logarithm of the variance of the posterior."""
        mean, log_variance = self.vae.quant_conv(self.vae.encoder(pictures)).float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-12, 4)
        latents = mean + torch.exp(0.5 * log_variance) * noise
        return self.vae.decoder(self.vae.post_quant_conv(latents)).float(), mean, log_variance


class AutoencoderTask(Task):
    """Reconstruct scenes through their latents."""

    def __init__(self, recipe: Recipe, objective: Autoencoder) -> None:
        torch.manual_seed(recipe.schedule.seed)
        self.objective = objective
        self.vae = AutoencoderKL(**objective.network).to(memory_format=torch.channels_last)
        self.model = Reconstruction(self.vae)
        side = objective.square or recipe.data.resolution or 64
        self._latents = side // 2 ** (len(self.vae.config.block_out_channels) - 1)

    def losses(self, model: nn.Module, piece: Piece) -> dict[str, Tensor]:
        pictures = to_unit(scenes.render_batch(scenes.TRAINING[piece.first : piece.first + piece.count]))
        pictures = pictures.to(piece.dice.device)
        if self.objective.square:
            pictures = squares(pictures, self.objective.square, piece.dice)
        noise = piece.dice.normal(self.vae.config.latent_channels, self._latents, self._latents)
        drawn, mean, log_variance = model(pictures, noise)
        absolute = (drawn - pictures).abs().mean()
        squared = (drawn - pictures).square().mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss = absolute + self.objective.squared_weight * squared + self.objective.kl_weight * divergence
        # PSNR of the batch in dB, of pictures from -1 to 1.
        psnr = 10 * torch.log10(4 / squared.detach())
        return {"loss": loss, "psnr": psnr, "kl": divergence.detach()}

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Write `vae/`, every channel of whose latents has mean 0 and variance 1."""
        vae = self.vae.cpu().eval()
        latents = torch.cat(
            [
                vae.encode(to_unit(scenes.render_batch(scenes.TRAINING[i : i + 64]))).latent_dist.mean
                for i in range(_SCALE_FROM, _SCALE_FROM + 512, 64)
            ]
        )
        standardise(vae, latents)
        save_half(vae, folder / "vae")


@torch.no_grad()
def standardise(vae: AutoencoderKL, latents: Tensor) -> None:
    """Give every channel of these latents [N, C, h, w] mean 0 and variance 1; pictures stay what they are.

    A channel that varies little holds strokes of pictograms. Noise would drown it, and so would the loss of a
    network that learns to remove noise. The two convolutions of 1 x 1 next to the latents take this up.
    """
    into: Any = vae.quant_conv
    out: Any = vae.post_quant_conv
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    channels = len(mean)
    into.weight[:channels] /= deviation.view(-1, 1, 1, 1)
    into.bias[:channels] = (into.bias[:channels] - mean) / deviation
    into.bias[channels:] -= 2 * deviation.log()
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= deviation.view(1, -1, 1, 1)
    vae.register_to_config(scaling_factor=1.0)


def squares(pictures: Tensor, side: int, dice: Dice) -> Tensor:
    """Cut a square of `side` pixels out of every picture, at a random place: [N, C, side, side]."""
    across = pictures.shape[-1] - side + 1
    places = dice.integers(across, 2).tolist()
    cut = [
        one[:, top : top + side, left : left + side]
        for one, (top, left) in zip(pictures, places, strict=True)
    ]
    return torch.stack(cut)


@torch.no_grad()
def psnr(vae: AutoencoderKL, indices: range) -> float:
    """Return the mean over scenes of the PSNR in dB of reconstructions from the posterior mean."""
    values = []
    for first in range(0, len(indices), 32):
        pictures = to_unit(scenes.render_batch(indices[first : first + 32]))
        drawn = vae.decode(vae.encode(pictures).latent_dist.mean).sample.clamp(-1, 1)
        values.append(10 * torch.log10(4 / (drawn - pictures).square().mean(dim=(1, 2, 3))))
    return float(torch.cat(values).mean())
