"""Write a checkpoint in the layout of the original Stable Diffusion: one file, names of the CompVis code."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file

_LAYERS = 2
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_VAE = {
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def original_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a tiny checkpoint of two layers a block by their original names."""
    found = {}
    for name, value in load_file(folder / "unet" / "diffusion_pytorch_model.safetensors").items():
        found["model.diffusion_model." + _unet_name(name)] = value
    for name, value in load_file(folder / "vae" / "diffusion_pytorch_model.safetensors").items():
        known = _vae_name(name)
        # Attention was made of convolutions.
        projection = ".attn_1." in known and known.endswith("weight") and value.dim() == 2
        found["first_stage_model." + known] = value[:, :, None, None] if projection else value
    for name, value in load_file(folder / "text_encoder" / "model.safetensors").items():
        bare = name.removeprefix("text_model.")
        found["cond_stage_model.transformer.text_model." + bare] = value
    return {name: value.clone().contiguous() for name, value in found.items()}


def _unet_name(name: str) -> str:
    inside = _RESNET if ".resnets." in name else {}
    for ours, theirs in _UNET.items():
        name = re.sub(rf"^{re.escape(ours)}\.", f"{theirs}.", name)
    if found := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name):
        side, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        at = block * (_LAYERS + 1) + layer
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (_LAYERS + 1)}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            # The first block of the way up has no attention before its upsampling.
            return f"output_blocks.{at + _LAYERS}.{1 if block == 0 else 2}.{rest}"
        first, place = ("input", at + 1) if side == "down" else ("output", at)
        name = f"{first}_blocks.{place}.{int(kind == 'attentions')}.{rest}"
    for ours, theirs in inside.items():
        name = re.sub(rf"\.{ours}\.(weight|bias)$", rf".{theirs}.\1", name)
    return name


def _vae_name(name: str) -> str:
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{3 - int(m[1])}.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{3 - int(m[1])}.upsample.", name)
    for ours, theirs in _VAE.items():
        name = name.replace(ours, theirs)
    return name
