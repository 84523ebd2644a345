"""Name the networks of Stable Diffusion v1, of its block-removed students and of SDXL: plain data, no torch.

A card says ``architecture: bk-sdm-small`` and means the U-Net configuration of that name here; a
configuration may also stand in the card itself. Text encoder and VAE are those of SD v1 in every system; SDXL
has a second text encoder beside them.

Beware of one clash of names. segmind's ``small-sd`` is the architecture that BK-SDM calls *Base* (here
``bk-sdm-base``), not BK-SDM-*Small*; segmind's ``tiny-sd`` is BK-SDM-*Tiny* (``bk-sdm-tiny``).

Source of the configurations: the ``config.json`` files of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

Config = Mapping[str, Any]
"""Constructor arguments of one network, by their diffusers (U-Net, VAE) or transformers (CLIP) names."""

_DOWN, _UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
_SD_V1: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": (_DOWN, _DOWN, _DOWN, "DownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D", _UP, _UP, _UP),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "use_linear_projection": False,
}

_BK_BASE = _SD_V1 | {"layers_per_block": 1}
_BK_SMALL = _BK_BASE | {"mid_block_type": None}
_BK_TINY = _BK_SMALL | {
    "down_block_types": (_DOWN, _DOWN, _DOWN),
    "up_block_types": (_UP, _UP, _UP),
    "block_out_channels": (320, 640, 1280),
}
_SDXL = _SD_V1 | {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", _DOWN, _DOWN),
    "up_block_types": (_UP, _UP, "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}

ARCHITECTURES: Mapping[str, Config] = MappingProxyType(
    {
        "sd-v1": MappingProxyType(_SD_V1),
        "bk-sdm-base": MappingProxyType(_BK_BASE),
        "bk-sdm-small": MappingProxyType(_BK_SMALL),
        "bk-sdm-tiny": MappingProxyType(_BK_TINY),
        "bk-sdm-tiny-lcm": MappingProxyType(_BK_TINY | {"time_cond_proj_dim": 256}),
        "sdxl": MappingProxyType(_SDXL),
    }
)
"""U-Net configurations by name, as a card's ``sdbench.architecture`` gives it."""

SD_V1_TEXT_ENCODER: Config = MappingProxyType(
    {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "projection_dim": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
)
"""The text model of CLIP ViT-L/14 (``transformers.CLIPTextConfig``)."""

SDXL_TEXT_ENCODER_2: Config = MappingProxyType(
    {
        "vocab_size": 49408,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "projection_dim": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "max_position_embeddings": 77,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }
)
"""The text model of OpenCLIP ViT-bigG/14, with its projection (``transformers.CLIPTextConfig``)."""

SD_V1_VAE: Config = MappingProxyType(
    {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "act_fn": "silu",
        "latent_channels": 4,
        "norm_num_groups": 32,
        "sample_size": 512,
    }
)
"""The image auto-encoder (``diffusers.AutoencoderKL``)."""

SD_V1_SCHEDULER: Config = MappingProxyType(
    {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "skip_prk_steps": True,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
)
"""Settings of the PNDM scheduler (``diffusers.PNDMScheduler``)."""
