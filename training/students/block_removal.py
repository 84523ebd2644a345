"""Make students by block removal: configuration, the source of every tensor, and an account of both.

A Stable Diffusion v1 or v2 U-Net has four levels of two resnets (three on the way up) with a mid block.
BK-SDM (Kim et al. 2023) keeps one resnet and attention of each pair going down and the first and third of
three going up (*base*), then drops the mid block (*small*), then the innermost level (*tiny*). Every tensor
of a student is a tensor of its teacher under another name; nothing is cut or averaged.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel

from pytest_sdbench.models.skeleton import known_keys, unet_skeleton
from training.errors import TrainingError

Removal = Literal["none", "base", "small", "tiny"]
GUIDANCE_TENSOR = "time_embedding.cond_proj.weight"
"""The one tensor that a consistency student has and its teacher has not."""

_TOPOLOGY: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
}
_PER_LEVEL = ("attention_head_dim", "num_attention_heads", "only_cross_attention", "cross_attention_dim")


def student_config(
    teacher: Mapping[str, Any], remove: Removal, *, guidance_embedding: int | None = None
) -> dict[str, Any]:
    """Return the U-Net configuration of a student of this teacher, at the teacher's widths.

    With `guidance_embedding` the student takes an embedding of the guidance scale of that width (LCM). Raises
    TrainingError for a teacher of another topology than SD v1's and v2's.
    """
    config = {key: value for key, value in known_keys(teacher).items() if not key.startswith("_")}
    if guidance_embedding is not None:
        config["time_cond_proj_dim"] = guidance_embedding
    if remove == "none":
        return config
    _check_topology(teacher)
    config = {**_TOPOLOGY, **config, "layers_per_block": 1}
    if remove in ("small", "tiny"):
        config["mid_block_type"] = None
    if remove == "tiny":
        config["down_block_types"] = list(config["down_block_types"])[:3]
        config["up_block_types"] = list(config["up_block_types"])[1:]
        config["block_out_channels"] = list(config["block_out_channels"])[:3]
        for key in _PER_LEVEL:
            if isinstance(config.get(key), list | tuple):
                config[key] = list(config[key])[:3]
    return config


def teacher_tensor(name: str, remove: Removal) -> str:
    """Return the name of the teacher tensor that a student tensor starts from."""
    if remove == "none":
        return name
    match = re.fullmatch(r"up_blocks\.(\d+)\.(.*)", name)
    if match is None:
        return name
    level = int(match[1]) + (remove == "tiny")
    rest = re.sub(r"^(resnets|attentions)\.1\.", r"\1.2.", match[2])
    return f"up_blocks.{level}.{rest}"


def mapping(
    teacher: Mapping[str, Any], remove: Removal, *, guidance_embedding: int | None = None
) -> dict[str, str]:
    """Return, for every tensor of the student, the name of the teacher tensor of the same shape.

    The tensor that embeds the guidance scale is left out where the teacher has none. Raises TrainingError
    where the teacher has no such tensor, or one of another shape.
    """
    config = student_config(teacher, remove, guidance_embedding=guidance_embedding)
    have = {
        name: tuple(value.shape) for name, value in unet_skeleton(known_keys(teacher)).state_dict().items()
    }
    need = {name: tuple(value.shape) for name, value in unet_skeleton(config).state_dict().items()}
    sources = {name: teacher_tensor(name, remove) for name in need if name != GUIDANCE_TENSOR or name in have}
    for name, source in sources.items():
        if have.get(source) != need[name]:
            raise TrainingError(
                f"the student's {name} is to start from a teacher tensor of shape {list(need[name])}",
                key=f"student.remove: {remove}",
                found=f"{source}: {list(have[source]) if source in have else 'no such tensor'}",
                remedy="The last two widths of the teacher's block_out_channels have to be equal for `tiny`",
            )
    return sources


def build_student(
    teacher: UNet2DConditionModel,
    remove: Removal,
    *,
    init: Literal["teacher", "random"] = "teacher",
    guidance_embedding: int | None = None,
    seed: int = 0,
) -> UNet2DConditionModel:
    """Return a float32 student of a teacher, started from the teacher's tensors or at random.

    Its configuration describes the student itself, so `from_pretrained` loads what `save_pretrained` writes.
    """
    config = student_config(teacher.config, remove, guidance_embedding=guidance_embedding)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = UNet2DConditionModel(**config)
    if init == "teacher":
        weights = teacher.state_dict()
        sources = mapping(teacher.config, remove, guidance_embedding=guidance_embedding)
        copied = {name: weights[source].float() for name, source in sources.items()}
        left, unknown = student.load_state_dict(copied, strict=False)
        assert set(left) <= {GUIDANCE_TENSOR}, left
        assert not unknown, unknown
    return student


def account(teacher: Mapping[str, Any], remove: Removal) -> str:
    """Say which blocks were removed and where each remaining one came from, a line each."""
    sources = mapping(teacher, remove)
    every = list(unet_skeleton(known_keys(teacher)).state_dict())
    kept = set(sources.values())
    moved: dict[str, str] = {}
    for name, source in sources.items():
        moved.setdefault(_block(name), _block(source))
    gone: Counter[str] = Counter(_block(name) for name in every if name not in kept)
    lines = [f"{len(sources)} tensors, each from one of the {len(every)} of the teacher, of the same shape"]
    lines += [f"removed  {name:<28} {count} tensors" for name, count in gone.items()]
    lines += [
        f"kept     {name:<28} {'from ' + source if source != name else 'as it is'}"
        for name, source in moved.items()
    ]
    return "\n".join(lines)


def _block(name: str) -> str:
    """Return the block that a tensor belongs to: `down_blocks.1.resnets.0`, `mid_block`, `conv_in`."""
    match = re.match(r"(down_blocks|up_blocks)\.\d+\.(resnets|attentions|downsamplers|upsamplers)\.\d+", name)
    return match[0] if match else name.split(".")[0]


def _check_topology(teacher: Mapping[str, Any]) -> None:
    for key, wanted in _TOPOLOGY.items():
        # Files of early diffusers, as SD v1.4's, leave out what is the default.
        found = teacher.get(key, wanted)
        same = tuple(found) == wanted if isinstance(found, list | tuple) else found == wanted
        if not same:
            raise TrainingError(
                "blocks can be removed from the topology of Stable Diffusion v1 and v2 alone",
                file="the teacher's U-Net",
                key=key,
                found=list(found) if isinstance(found, tuple) else found or "null",
                remedy=f"It has to be {list(wanted) if isinstance(wanted, tuple) else wanted}",
            )
