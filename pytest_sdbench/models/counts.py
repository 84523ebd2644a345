"""Count the parameters of networks, and the multiply-accumulates of a call without computing it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pytest_sdbench.base.errors import CardError, first_line
from pytest_sdbench.models.architectures import Config
from pytest_sdbench.models.checkpoint import Checkpoint
from pytest_sdbench.models.integrity import stored_parameters
from pytest_sdbench.models.skeleton import (
    text_encoder_skeletons,
    unet_config,
    unet_inputs,
    unet_skeleton,
    vae_skeleton,
)
from pytest_sdbench.models.weights import read_shapes


def component_sizes(source: str | Config | Checkpoint) -> dict[str, int]:
    """Count parameters: ``unet``, ``text_encoder``, ``image_decoder``, and ``whole``, the sum of the three.

    ``source`` is an architecture by name or inline, whose other components are SD v1's or SDXL's, or a
    checkpoint, whose stored tensors are counted. Two text encoders count as one, the projection of the
    second included. The image decoder is the VAE's decoder: without the encoder, which drawing an image does
    not need, and without ``post_quant_conv``. An inline U-Net that fits neither text is counted alone.
    """
    if isinstance(source, Checkpoint):
        sizes = {
            "unet": _stored(source, "unet"),
            "text_encoder": sum(_stored(source, name) for name in source.pipeline.text_encoders),
            "image_decoder": _stored(source, "vae", prefix="decoder."),
        }
    else:
        config = unet_config(source)
        sizes = {"unet": parameter_count(unet_skeleton(config))}
        if not (encoders := text_encoder_skeletons(config)):
            return sizes
        sizes |= {
            "text_encoder": sum(map(parameter_count, encoders)),
            "image_decoder": parameter_count(vae_skeleton().decoder),
        }
    return sizes | {"whole": sum(sizes.values())}


def parameter_count(model: Any) -> int:
    """Return how many parameters a network has, also one without storage."""
    return sum(parameter.numel() for parameter in model.parameters())


def _stored(checkpoint: Checkpoint, component: str, prefix: str = "") -> int:
    stored = stored_parameters(component, read_shapes(checkpoint.weights(component)))
    return sum(math.prod(tensor.shape) for name, tensor in stored.items() if name.startswith(prefix))


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one U-Net call at batch 1."""

    total: int
    """Convolutions, linear layers and the two matrix products of every attention."""
    conv_linear: int
    """Convolutions and linear layers only, as most papers count."""


def unet_macs(architecture: str | Config) -> Macs:
    """Count on ``meta`` tensors with ``torch.utils.flop_counter``, at the latent size of the configuration.

    A MAC is two of the counter's FLOPs. Attention runs through diffusers' plain processor, whose products
    are two ordinary batched matrix products: which fused kernel ``scaled_dot_product_attention`` picks
    depends on device and torch version, and not every kernel has a formula in the counter.
    """
    model, inputs = unet_skeleton(architecture), unet_inputs(architecture)
    try:
        flops = _flops(model, lambda: model(**inputs))
    except Exception as error:  # a wrong value fails wherever it is used first
        what, remedy = "not a U-Net that can be called", "Compare it with the config.json of the unet folder"
        raise CardError(what, key="sdbench.architecture", found=first_line(error), remedy=remedy) from error
    total, attention = flops
    return Macs(total=total // 2, conv_linear=(total - attention) // 2)


def decoder_macs(config: Config, side: int) -> int:
    """Count as `unet_macs` what a VAE takes to turn latents of ``side`` x ``side`` into one picture."""
    import torch

    model = vae_skeleton({key: value for key, value in config.items() if not key.startswith("_")}).eval()
    latents = torch.empty(1, model.config.latent_channels, side, side, device="meta")
    return _flops(model, lambda: model.decode(latents))[0] // 2


def _flops(model: Any, call: Callable[[], object]) -> tuple[int, int]:
    """Return the counter's FLOPs of a call: all, and those of the products of attention.

    A linear layer may be a batched product, too, as those of SD v2 and SDXL before and after attention are.
    """
    import torch
    from diffusers.models.attention_processor import Attention
    from torch.utils.flop_counter import FlopCounterMode

    model.set_default_attn_processor()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        call()
    counts, root = counter.get_flop_counts(), type(model).__name__
    inside = [f"{root}.{name}" for name, module in model.named_modules() if isinstance(module, Attention)]
    products = sum(
        n
        for name in inside
        for operation, n in counts.get(name, {}).items()
        if str(operation).split(".")[-1] in ("bmm", "baddbmm")
    )
    return sum(counts["Global"].values()), products
