"""Check that the networks of a recipe from scratch fit each other, before any is built."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from training.errors import TrainingError

KEY = "student.networks"
_BY_TOKENIZER = (
    "vocab_size",
    "max_position_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "hidden_act",
)
"""Of a text encoder of one's own: what the tokenizer of scenes decides, and SD v1's activation."""


def check_text(arguments: Mapping[str, Any]) -> None:
    """Raise TrainingError for arguments of a text encoder that transformers would pass over, or has set."""
    from transformers import CLIPTextConfig

    known = set(inspect.signature(CLIPTextConfig.__init__).parameters) - {"self", "kwargs"}
    if not arguments:
        remedy = "Give hidden_size and so on, or leave the key out: then the VAE's checkpoint lends its own"
        raise TrainingError("a text encoder without a width", key=f"{KEY}.text_encoder", remedy=remedy)
    for name, value in arguments.items():
        if name in _BY_TOKENIZER or name not in known:
            what = "CLIPTextConfig has no such argument"
            remedy = "Correct it, or name one checkpoint that lends its own"
            if name in _BY_TOKENIZER:
                what, remedy = "this is set by the tokenizer of scenes", "Leave it out"
            raise TrainingError(what, key=f"{KEY}.text_encoder.{name}", found=value, remedy=remedy)


def check_fit(unet: Mapping[str, Any], text: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Raise TrainingError where a U-Net of these arguments hears other text, or draws other latents."""
    from diffusers import UNet2DConditionModel

    signature = inspect.signature(UNet2DConditionModel.__init__).parameters
    given = {name: each.default for name, each in signature.items()} | dict(unet)
    if unknown := sorted(set(unet) - set(signature)):
        what, remedy = "UNet2DConditionModel has no such argument", "Correct it, or leave it out"
        raise TrainingError(what, key=f"{KEY}.unet.{unknown[0]}", found=unet[unknown[0]], remedy=remedy)
    if given["addition_embed_type"] is not None:
        what, remedy = "such a U-Net wants more than a caption, as SDXL's does", "Leave it out"
        raise TrainingError(
            what, key=f"{KEY}.unet.addition_embed_type", found=given["addition_embed_type"], remedy=remedy
        )
    widths = given["cross_attention_dim"]
    for name, found, wanted, whose in (
        ("cross_attention_dim", widths, text.get("hidden_size", 512), "the text encoder's states"),
        ("in_channels", given["in_channels"], vae.get("latent_channels", 4), "the VAE's latents"),
        ("out_channels", given["out_channels"], vae.get("latent_channels", 4), "the VAE's latents"),
    ):
        if any(each != wanted for each in (found if isinstance(found, list | tuple) else [found])):
            what = f"{whose} are {wanted} wide"
            raise TrainingError(what, key=f"{KEY}.unet.{name}", found=found, remedy=f"Write {name}: {wanted}")
