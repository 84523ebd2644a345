"""Keep networks in half precision. They compute in float32, and files of half the size are as good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn


def save_half(network: Any, folder: Path) -> None:
    """Save a network of diffusers or transformers as float16 safetensors and leave it in float32."""
    network.half().save_pretrained(folder, safe_serialization=True)
    network.float()


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the weights of a network to one file of safetensors, float16."""
    weights = {name: _half(value).cpu() for name, value in network.state_dict().items()}
    save_file(weights, path, metadata={"format": "pt"})


def _half(value: Tensor) -> Tensor:
    return value.half().contiguous() if value.is_floating_point() else value
