"""Score what people would prefer, with PickScore: a CLIP ViT-H-14 with weights of its own.

Kirstain et al. 2023, "Pick-a-Pic". The score is the cosine of picture and caption times the model's logit
scale (its README), about 20; pictures and captions are those of CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sdbench.features.definition import Measure
from pytest_sdbench.features.pretrained.files import WeightsFile, of_files, read
from pytest_sdbench.features.pretrained.networks import clip_tokens, clip_transform, load_network, show
from pytest_sdbench.protocols.image_steps import Images

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = WeightsFile(
    repository="yuvalkirstain/PickScore_v1",
    revision="a4e4367c6dfa7288a00c550414478f865b875800",
    name="model.safetensors",
    licence="MIT for its code, none stated for the model",
    size=3_940_000_000,
    sha256=None,
)
CONFIG: dict[str, Any] = {
    "projection_dim": 1024,
    "vision_config": {
        **{"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16},
        **{"intermediate_size": 5120, "patch_size": 14, "image_size": 224, "hidden_act": "gelu"},
    },
    "text_config": {
        **{"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
        **{"intermediate_size": 4096, "hidden_act": "gelu"},
    },
}
"""CLIP ViT-H-14."""


def build(paths: Sequence[Path], device: str) -> Measure:
    """Load the model and return what scores pictures with their captions; raises as `load_network`."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    (path,) = paths
    model = load_network(CLIPModel, CLIPConfig(**CONFIG), read(WEIGHTS, path), path, device)
    transform = clip_transform(CONFIG["vision_config"]["image_size"])

    @torch.inference_mode()
    def measure(images: Images, prompts: Sequence[str]) -> dict[str, Tensor]:
        pixels = show(images, transform, device)
        found = model(**clip_tokens(prompts).to(device), pixel_values=pixels)
        cosines = (found.image_embeds * found.text_embeds).sum(dim=-1)
        return {"pickscore": model.logit_scale.exp() * cosines}

    return measure


PICKSCORE = of_files("pickscore", {"pickscore": 1}, [WEIGHTS], build)
