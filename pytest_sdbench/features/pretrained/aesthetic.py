"""Score how much people like a picture, whatever its caption, with LAION's aesthetic predictor (version 2).

Schuhmann 2022, "improved-aesthetic-predictor": linear layers on CLIP ViT-L/14's image embedding of length
one, trained on ratings from 1 to 10. No activation stands between the layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sdbench.base.errors import CheckpointError, first_line
from pytest_sdbench.features.definition import Measure
from pytest_sdbench.features.pretrained.files import WeightsFile, of_files, read
from pytest_sdbench.features.pretrained.networks import VIT_L_14, clip_transform, load_image_tower, show
from pytest_sdbench.protocols.image_steps import Images

if TYPE_CHECKING:
    from torch import Tensor

CLIP = WeightsFile(
    repository="openai/clip-vit-large-patch14",
    revision="32bd64288804d66eefd0ccbe215aa642df71cc41",
    name="model.safetensors",
    licence="MIT",
    size=1_710_540_580,
    sha256="a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
)
_COMMIT = "6934dd81792f086e613a121dbce43082cb8be85e"
HEAD = WeightsFile(
    repository="christophschuhmann/improved-aesthetic-predictor",
    revision=_COMMIT,
    name="sac+logos+ava1-l14-linearMSE.pth",
    licence="Apache-2.0",
    size=3_714_759,
    sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    url="https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/"
    f"{_COMMIT}/sac%2Blogos%2Bava1-l14-linearMSE.pth",
)
WIDTHS = (1024, 128, 64, 16, 1)
PLACES = (0, 2, 4, 6, 7)
"""Where the linear layers stand in the published sequence; between them is the dropout of training."""


def build(paths: Sequence[Path], device: str) -> Measure:
    """Load both networks and return what scores pictures.

    Raises CheckpointError for weights that are damaged or of another network.
    """
    import torch
    from torch import nn

    width = VIT_L_14["projection_dim"]
    tower = load_image_tower(VIT_L_14, read(CLIP, paths[0]), paths[0], device)
    head = nn.Sequential(*map(nn.Linear, (width, *WIDTHS), WIDTHS))
    named = {f"layers.{place}.": f"{i}." for i, place in enumerate(PLACES)}
    tensors = {
        name.replace(old, new): value
        for name, value in read(HEAD, paths[1]).items()
        for old, new in named.items()
        if name.startswith(old)
    }
    try:
        head.load_state_dict(tensors)
    except RuntimeError as problem:
        what, remedy = "these are not the weights of this network", "Delete the file and fetch it again"
        raise CheckpointError(what, file=paths[1], found=first_line(problem), remedy=remedy) from problem
    head.eval().requires_grad_(False).to(device)
    transform = clip_transform(VIT_L_14["image_size"])

    @torch.inference_mode()
    def measure(images: Images, prompts: Sequence[str]) -> dict[str, Tensor]:
        seen = tower(pixel_values=show(images, transform, device)).image_embeds
        return {"aesthetic": head(nn.functional.normalize(seen, dim=-1))[:, 0]}

    return measure


LAION_AESTHETIC = of_files("laion-aesthetic-v2", {"aesthetic": 1}, [CLIP, HEAD], build)
