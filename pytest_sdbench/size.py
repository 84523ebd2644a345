"""Count the parameters of each component, exactly."""

from __future__ import annotations

import math

from pytest_sdbench.architectures import SD_V1_TEXT_ENCODER, Config
from pytest_sdbench.checkpoint import Checkpoint
from pytest_sdbench.integrity import stored_parameters
from pytest_sdbench.skeleton import text_encoder_skeleton, unet_config, unet_skeleton, vae_skeleton
from pytest_sdbench.tensors import read_shapes


def component_sizes(source: str | Config | Checkpoint) -> dict[str, int]:
    """Count parameters: ``unet``, ``text_encoder``, ``image_decoder``, and ``whole``, the sum of the three.

    ``source`` is an architecture by name or inline, whose other components are SD v1's, or a checkpoint,
    whose stored tensors are counted. The image decoder is the VAE's decoder: without the encoder, which
    drawing an image does not need, and without ``post_quant_conv``. An inline U-Net that does not fit SD
    v1's text encoder is counted alone.
    """
    if isinstance(source, Checkpoint):
        sizes = {
            "unet": _stored(source, "unet"),
            "text_encoder": _stored(source, "text_encoder"),
            "image_decoder": _stored(source, "vae", prefix="decoder."),
        }
    else:
        config = unet_config(source)
        sizes = {"unet": _count(unet_skeleton(config))}
        if config.get("cross_attention_dim") != SD_V1_TEXT_ENCODER["hidden_size"]:
            return sizes
        sizes |= {
            "text_encoder": _count(text_encoder_skeleton()),
            "image_decoder": _count(vae_skeleton().decoder),
        }
    return sizes | {"whole": sum(sizes.values())}


def _count(model: object) -> int:
    return sum(parameter.numel() for parameter in model.parameters())  # type: ignore[attr-defined]


def _stored(checkpoint: Checkpoint, component: str, prefix: str = "") -> int:
    stored = stored_parameters(component, read_shapes(checkpoint.weights(component)))
    return sum(math.prod(tensor.shape) for name, tensor in stored.items() if name.startswith(prefix))
