"""Count the multiply-accumulates of one U-Net call, without computing it."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_sdbench.architectures import Config
from pytest_sdbench.skeleton import unet_inputs, unet_skeleton


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
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = unet_skeleton(architecture)
    model.set_default_attn_processor()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(**unet_inputs(architecture))
    flops = {str(operation).split(".")[-1]: n for operation, n in counter.get_flop_counts()["Global"].items()}
    attention = sum(flops.get(name, 0) for name in _ATTENTION)
    total = sum(flops.values())
    return Macs(total=total // 2, conv_linear=(total - attention) // 2)
