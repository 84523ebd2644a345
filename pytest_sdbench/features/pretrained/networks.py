"""Build the networks of transformers that published weights are of, and show them pictures and captions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import TYPE_CHECKING, Any

from PIL import Image

from pytest_sdbench.base.errors import CheckpointError, first_line
from pytest_sdbench.models.loading import quiet
from pytest_sdbench.protocols.image_steps import Images

if TYPE_CHECKING:
    from torch import Tensor

CLIP_COLOURS = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
"""Mean and standard deviation of the pictures that CLIP models are shown."""

VIT_L_14: dict[str, Any] = {
    **{"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    **{"patch_size": 14, "image_size": 224, "hidden_act": "quick_gelu", "projection_dim": 768},
}
"""The image tower of OpenAI's CLIP ViT-L/14."""

_LOCK = Lock()
"""A fast tokenizer keeps the settings of its last call in itself, and workers share one."""


def load_network(kind: Any, config: Any, tensors: Mapping[str, Tensor], path: Path, device: str) -> Any:
    """Return a network of transformers with these tensors, in eval mode and float32.

    transformers gives a tensor that lacks random values and reads over one too many: either, or another
    shape, raises CheckpointError that names the file.
    """
    what, remedy = "these are not the weights of this network", "Delete the file and fetch it again"
    try:
        with quiet():
            # It also translates the names that older versions of transformers gave to tensors.
            network, info = kind.from_pretrained(
                None, config=config, state_dict=dict(tensors), output_loading_info=True
            )
    except Exception as problem:  # what it raises depends on its version
        raise CheckpointError(what, file=path, found=first_line(problem), remedy=remedy) from problem
    lacking, surplus = sorted(map(str, info["missing_keys"])), sorted(map(str, info["unexpected_keys"]))
    if lacking or surplus:
        found = f"{len(lacking)} tensors missing, {len(surplus)} too many"
        raise CheckpointError(what, file=path, key=(lacking or surplus)[0], found=found, remedy=remedy)
    return network.float().eval().requires_grad_(False).to(device)


def load_image_tower(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path, device: str
) -> Any:
    """Return the image tower of a CLIP model with its projection, of the tensors of the whole model.

    Raises CheckpointError as `load_network`.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    seen = {name: value for name, value in tensors.items() if name.startswith(("vision_model", "visual_"))}
    return load_network(CLIPVisionModelWithProjection, CLIPVisionConfig(**config), seen, path, device)


def show(images: Images, transform: Callable[[Image.Image], Tensor], device: str) -> Tensor:
    """Return pictures, uint8 [B, H, W, 3], after a transform of each: float32 [B, 3, H, W]."""
    import torch

    return torch.stack([transform(Image.fromarray(image)) for image in images]).to(device)


def clip_transform(size: int) -> Callable[[Image.Image], Tensor]:
    """Return CLIP's own transform: shorter side to `size` (bicubic, Pillow's), middle square, its colours."""
    from torchvision import transforms

    bicubic = transforms.InterpolationMode.BICUBIC
    square = [transforms.Resize(size, bicubic), transforms.CenterCrop(size)]
    steps: Callable[[Image.Image], Tensor] = transforms.Compose(
        [*square, transforms.ToTensor(), transforms.Normalize(**CLIP_COLOURS)]
    )
    return steps


def clip_tokens(prompts: Sequence[str]) -> Any:
    """Return captions as transformers has them for CLIP: `input_ids` and `attention_mask`, [B, T]."""
    with _LOCK:
        return _clip_tokenizer()(
            list(prompts), padding=True, truncation=True, max_length=77, return_tensors="pt"
        )


@cache
def _clip_tokenizer() -> Any:
    """Make the tokenizer of the vocabulary that open_clip ships, which is the one of all CLIP models."""
    from open_clip import SimpleTokenizer
    from transformers import CLIPTokenizerFast

    known = SimpleTokenizer()
    words = [*list(known.encoder)[:-2], "<|startoftext|>", "<|endoftext|>"]
    with TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
        merges.write_text("\n".join(["#version: 0.2", *map(" ".join, known.bpe_ranks), ""]), encoding="utf-8")
        return CLIPTokenizerFast(str(vocabulary), str(merges))
