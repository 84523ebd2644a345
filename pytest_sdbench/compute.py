"""Count the multiply-accumulates of one U-Net call, without computing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pytest_sdbench.architectures import Config
from pytest_sdbench.skeleton import unet_inputs, unet_skeleton, vae_skeleton


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one U-Net call at batch 1."""

    total: int
    """Convolutions, linear layers and the two matrix products of every attention."""

    conv_linear: int
    """Convolutions and linear layers only, as most papers count."""


_ATTENTION = ("bmm", "baddbmm")


def unet_macs(architecture: str | Config) -> Macs:
    """Count on ``meta`` tensors with ``torch.utils.flop_counter``, at the latent size of the configuration.

    A MAC is two of the counter's FLOPs. Attention runs through diffusers' plain processor, whose products
    are two ordinary batched matrix products: which fused kernel ``scaled_dot_product_attention`` picks
    depends on device and torch version, and not every kernel has a formula in the counter.
    """
    model = unet_skeleton(architecture)
    flops = _flops(model, lambda: model(**unet_inputs(architecture)))
    attention = sum(flops.get(name, 0) for name in _ATTENTION)
    total = sum(flops.values())
    return Macs(total=total // 2, conv_linear=(total - attention) // 2)


def decoder_macs(config: Config, side: int) -> int:
    """Count as `unet_macs` what a VAE takes to turn latents of ``side`` x ``side`` into one picture."""
    import torch

    model = vae_skeleton({key: value for key, value in config.items() if not key.startswith("_")}).eval()
    latents = torch.empty(1, model.config.latent_channels, side, side, device="meta")
    return sum(_flops(model, lambda: model.decode(latents)).values()) // 2


def _flops(model: Any, call: Callable[[], object]) -> dict[str, int]:
    """Return the counter's FLOPs of a call by the kind of operation."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model.set_default_attn_processor()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        call()
    return {str(operation).split(".")[-1]: n for operation, n in counter.get_flop_counts()["Global"].items()}
