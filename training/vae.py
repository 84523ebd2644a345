"""Train the autoencoder of the embedded family on scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from pytest_sdbench import scenes


def to_unit(images: Any) -> Tensor:
    """Turn uint8 pictures [N, H, W, 3] into float32 [N, 3, H, W] from -1 to 1, channels last in memory."""
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return batch.contiguous(memory_format=torch.channels_last)


class VaeStage:
    """Reconstruct scenes through 8x8 latents."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        torch.manual_seed(0)
        self.recipe = recipe
        self.vae = AutoencoderKL(**recipe["network"]).to(memory_format=torch.channels_last)
        self.modules = nn.ModuleDict({"vae": self.vae})

    def losses(self, start: int, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        pictures = to_unit(scenes.render_batch(scenes.TRAINING[start : start + count]))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe["bfloat16"]):
            moments = self.vae.quant_conv(self.vae.encoder(pictures)).float()
            mean, log_variance = moments.chunk(2, dim=1)
            log_variance = log_variance.clamp(-12, 4)
            noise = torch.randn(mean.shape, generator=generator)
            latents = mean + torch.exp(0.5 * log_variance) * noise
            drawn = self.vae.decoder(self.vae.post_quant_conv(latents)).float()
        absolute = (drawn - pictures).abs().mean()
        squared = (drawn - pictures).square().mean()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        loss = absolute + self.recipe["squared_weight"] * squared + self.recipe["kl_weight"] * divergence
        # PSNR of the batch in dB, of pictures from -1 to 1.
        psnr = 10 * torch.log10(4 / squared.detach())
        return {"loss": loss, "psnr": psnr, "kl": divergence}

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Write the autoencoder with the scaling factor that gives its latents unit variance."""
        latents = torch.cat(
            [
                self.vae.encode(to_unit(scenes.render_batch(scenes.TRAINING[i : i + 64]))).latent_dist.mean
                for i in range(1_000_000, 1_000_512, 64)
            ]
        )
        scale = 1 / float(latents.std())
        self.vae.register_to_config(scaling_factor=round(scale, 5))
        save_half(self.vae, folder / "scenes-sd" / "vae")


def save_half(network: Any, folder: Path) -> None:
    """Save a network as float16 safetensors and leave it in float32."""
    network.half().save_pretrained(folder, safe_serialization=True)
    network.float()


@torch.no_grad()
def psnr(vae: AutoencoderKL, indices: range) -> float:
    """Return the mean over scenes of the PSNR in dB of reconstructions from the posterior mean."""
    values = []
    for first in range(0, len(indices), 32):
        pictures = to_unit(scenes.render_batch(indices[first : first + 32]))
        drawn = vae.decode(vae.encode(pictures).latent_dist.mean).sample.clamp(-1, 1)
        values.append(10 * torch.log10(4 / (drawn - pictures).square().mean(dim=(1, 2, 3))))
    return float(torch.cat(values).mean())
