"""Turn pictures into features of DINOv2 ViT-L/14, as the Frechet distance of Stein et al. 2023 wants them.

Their tool (dgm-eval) resizes to 224 x 224 with Pillow's bicubic filter and takes the normalised class token.
The network has learnt positions of 37 x 37 patches; of 224 pixels there are 16 x 16. Its authors' code
interpolates with a scale of (16 + 0.1) / 37, transformers with 16 / 37, which moves features: here the
positions are interpolated as by the authors, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sdbench.features.definition import Measure
from pytest_sdbench.features.pretrained.files import WeightsFile, of_files, read
from pytest_sdbench.features.pretrained.networks import load_network, show
from pytest_sdbench.protocols.image_steps import Images

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = WeightsFile(
    repository="facebook/dinov2-large",
    revision="47b73eefe95e8d44ec3623f8890bd894b6ea2d6c",
    name="model.safetensors",
    licence="Apache-2.0",
    size=1_217_522_888,
    sha256="399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23",
)
CONFIG: dict[str, Any] = {
    **{"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "mlp_ratio": 4},
    **{"patch_size": 14, "image_size": 518},
}
SIZE = 224
COLOURS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Of ImageNet."""
_OFFSET = 0.1
"""What the authors' code adds to the number of patches before it divides."""


def build(paths: Sequence[Path], device: str) -> Measure:
    """Load the network and return what gives features of pictures; raises as `load_network`."""
    import torch
    from torchvision import transforms

    network = load_dinov2(paths[0], device)
    resize = transforms.Resize([SIZE, SIZE], transforms.InterpolationMode.BICUBIC)
    transform = transforms.Compose([resize, transforms.ToTensor(), transforms.Normalize(**COLOURS)])

    @torch.inference_mode()
    def measure(images: Images, prompts: Sequence[str]) -> dict[str, Tensor]:
        found = network(pixel_values=show(images, transform, device))
        return {"features": found.last_hidden_state[:, 0]}

    return measure


def load_dinov2(path: Path, device: str) -> Any:
    """Return the network for pictures of 224 x 224; its last hidden state has the class token first.

    Raises CheckpointError as `load_network`.
    """
    import torch
    from transformers import Dinov2Config, Dinov2Model

    network = load_network(Dinov2Model, Dinov2Config(**CONFIG), read(WEIGHTS, path), path, device)
    embeddings = network.embeddings
    positions = interpolated(embeddings.position_embeddings, SIZE // CONFIG["patch_size"])
    embeddings.position_embeddings = torch.nn.Parameter(positions, requires_grad=False)
    return network


def interpolated(positions: Tensor, patches: int) -> Tensor:
    """Return the positions [1, 1 + n * n, D] of a class token and n x n patches, for `patches` a side."""
    import torch

    side = round((positions.shape[1] - 1) ** 0.5)
    if side == patches:
        return positions
    grid = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = (patches + _OFFSET) / side
    grid = torch.nn.functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


DINOV2 = of_files("dinov2-vitl14", {"features": 1024}, [WEIGHTS], build)
