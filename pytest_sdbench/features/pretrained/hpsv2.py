"""Score what people would prefer, with HPS v2.1: an open_clip ViT-H-14 with weights of its own.

Wu et al. 2023, "Human Preference Score v2". The score is the cosine of picture and caption, as
`hpsv2.score` returns it. Its pictures are not those of CLIP: the longer side is resized to 224 (bicubic, in
floating point, antialiased as torchvision has done by default since 0.17), the rest is black. The tool runs
in half precision on a GPU; here it is float32 everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sdbench.base.errors import CheckpointError, first_line
from pytest_sdbench.features.definition import Measure
from pytest_sdbench.features.pretrained.files import WeightsFile, of_files, read
from pytest_sdbench.features.pretrained.networks import CLIP_COLOURS, show
from pytest_sdbench.protocols.image_steps import Images

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

WEIGHTS = WeightsFile(
    repository="xswu/HPSv2",
    revision="697403c78157020a1ae59d23f111aa58ced35b0a",
    name="HPS_v2.1_compressed.pt",
    licence="Apache-2.0",
    size=1_972_490_005,
    sha256="c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837",
)
MODEL = "ViT-H-14"


def build(paths: Sequence[Path], device: str) -> Measure:
    """Load the model and return what scores pictures with their captions.

    Raises CheckpointError for weights that are damaged or of another network.
    """
    import open_clip
    import torch

    (path,) = paths
    config, tensors = open_clip.get_model_config(MODEL), read(WEIGHTS, path, "state_dict")
    length = config["text_cfg"]["context_length"]
    with torch.device("meta"):  # random values for a billion parameters take longer than all else
        model: Any = open_clip.CLIP(**config)
    model.attn_mask = torch.full((length, length), -torch.inf).triu(1)  # no file has it
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as problem:
        what, remedy = "these are not the weights of this network", "Delete the file and fetch it again"
        raise CheckpointError(what, file=path, found=first_line(problem), remedy=remedy) from problem
    model.eval().requires_grad_(False).to(device)
    tokenize = open_clip.SimpleTokenizer(context_length=length)
    size = config["vision_cfg"]["image_size"]

    @torch.inference_mode()
    def measure(images: Images, prompts: Sequence[str]) -> dict[str, Tensor]:
        seen = model.encode_image(show(images, lambda image: transform(image, size), device), normalize=True)
        told = model.encode_text(tokenize(list(prompts)).to(device), normalize=True)
        return {"hps": (seen * told).sum(dim=-1)}

    return measure


def transform(image: Image.Image, size: int = 224) -> Tensor:
    """Return a picture as HPS v2 sees it: float32 [3, size, size], with black beside it."""
    from torchvision.transforms import InterpolationMode, functional

    pixels = functional.to_tensor(image)
    height, width = pixels.shape[1:]
    if (scale := size / max(height, width)) != 1:
        sides = [round(side * scale) for side in (height, width)]
        pixels = functional.resize(pixels, sides, InterpolationMode.BICUBIC, antialias=True)
        above, left = (size - sides[0]) // 2, (size - sides[1]) // 2
        pixels = functional.pad(pixels, [left, above, size - sides[1] - left, size - sides[0] - above])
    normal: Tensor = functional.normalize(pixels, **CLIP_COLOURS)
    return normal


HPSV2_1 = of_files("hpsv2.1", {"hps": 1}, [WEIGHTS], build)
