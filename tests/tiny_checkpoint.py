"""Make complete, tiny, random Stable Diffusion checkpoints in diffusers layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

UNET: dict[str, Any] = {
    "sample_size": 8,
    "down_block_types": (
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}
GUIDANCE_WIDTH = 8
"""Width of the guidance embedding of a consistency-distilled U-Net."""
TEXT_ENCODER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "projection_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}
VAE: dict[str, Any] = {
    "sample_size": 64,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 8, 16),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
}

TEXT_ENCODER_2 = TEXT_ENCODER | {"hidden_size": 24, "projection_dim": 12, "hidden_act": "gelu"}
UNET_XL: dict[str, Any] = UNET | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (8, 8, 16),
    "transformer_layers_per_block": (1, 1, 2),
    "cross_attention_dim": TEXT_ENCODER["hidden_size"] + TEXT_ENCODER_2["hidden_size"],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": TEXT_ENCODER_2["projection_dim"] + 6 * 4,
}


def make_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    unet: dict[str, Any] | None = None,
    dtype: str = "float32",
    **save_options: Any,
) -> Path:
    """Write the checkpoint to ``folder`` and return it: 64x64 pixels, 8x8 latents, the topology of SD v1.

    ``unet`` overrides entries of its configuration. ``save_options`` go to ``save_pretrained``:
    ``variant="fp16"``, ``safe_serialization=False``, ``max_shard_size``. Equal arguments give equal bytes.
    """
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer_folder = make_tokenizer(folder / "tokenizer")
    text_config = _text_config(tokenizer_folder, TEXT_ENCODER)
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL(**VAE),
            text_encoder=CLIPTextModel(text_config),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(**(UNET | (unet or {}))),
            scheduler=PNDMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                skip_prk_steps=True,
                set_alpha_to_one=False,
                steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    if dtype != "float32":
        pipeline.to(dtype=getattr(torch, dtype))
    pipeline.save_pretrained(folder, **save_options)
    return folder


def make_xl_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    unet: dict[str, Any] | None = None,
    vae: dict[str, Any] | None = None,
    **save_options: Any,
) -> Path:
    """Write a checkpoint with the topology of SDXL to ``folder`` and return it; arguments as above."""
    import torch
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    tokenizers = [make_tokenizer(folder / name) for name in ("tokenizer", "tokenizer_2")]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionXLPipeline(
            vae=AutoencoderKL(**VAE | {"scaling_factor": 0.13025} | (vae or {})),
            text_encoder=CLIPTextModel(_text_config(tokenizers[0], TEXT_ENCODER)),
            text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizers[1], TEXT_ENCODER_2)),
            tokenizer=CLIPTokenizer.from_pretrained(tokenizers[0]),
            tokenizer_2=CLIPTokenizer.from_pretrained(tokenizers[1]),
            unet=UNet2DConditionModel(**(UNET_XL | (unet or {}))),
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                steps_offset=1,
                timestep_spacing="leading",
            ),
            add_watermarker=False,
        )
    pipeline.save_pretrained(folder, **save_options)
    return folder


def _text_config(tokenizer: Path, config: dict[str, Any]) -> Any:
    from transformers import CLIPTextConfig

    vocabulary = json.loads((tokenizer / "vocab.json").read_text(encoding="utf-8"))
    return CLIPTextConfig(
        vocab_size=len(vocabulary),
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
        **config,
    )


def make_consistency_unet(folder: Path, **options: Any) -> Path:
    """Write a U-Net with embedded guidance and its LCMScheduler: what is published to stand on a base."""
    from diffusers import LCMScheduler

    make_checkpoint(folder, unet={"time_cond_proj_dim": GUIDANCE_WIDTH}, **options)
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    for name in ("text_encoder", "tokenizer", "vae", "scheduler"):
        shutil.rmtree(folder / name)
    (folder / "model_index.json").unlink()
    LCMScheduler.from_config(config).save_pretrained(folder / "scheduler")
    return folder


def make_tokenizer(folder: Path) -> Path:
    """Write the two vocabulary files of a CLIP tokenizer that knows single characters and a few words."""
    printable = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
    alphabet = printable + [chr(256 + i) for i in range(256 - len(printable))]
    merges = ["r e", "re d</w>", "b l", "bl u", "blu e</w>", "a n", "an d</w>"]
    vocabulary = alphabet + [f"{letter}</w>" for letter in alphabet] + [m.replace(" ", "") for m in merges]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"}
    for name, content in (
        ("vocab.json", json.dumps({token: i for i, token in enumerate(vocabulary)})),
        ("merges.txt", "\n".join(["#version: 0.2", *merges, ""])),
        ("tokenizer_config.json", json.dumps(config)),
    ):
        (folder / name).write_text(content, encoding="utf-8")
    return folder
