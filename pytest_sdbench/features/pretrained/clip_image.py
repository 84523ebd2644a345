"""Turn pictures into CLIP's image embeddings as CMMD does: ViT-L/14 at 336 pixels, of length one.

Jayasumana et al. 2023, "Rethinking FID". Their tool cuts out the middle square, resizes it to 336 with
Pillow's bicubic filter, and normalises the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sdbench.features.definition import Measure
from pytest_sdbench.features.pretrained.files import WeightsFile, of_files, read
from pytest_sdbench.features.pretrained.networks import CLIP_COLOURS, VIT_L_14, load_image_tower, show
from pytest_sdbench.protocols.image_steps import Images

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = WeightsFile(
    repository="openai/clip-vit-large-patch14-336",
    revision="ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
    name="pytorch_model.bin",
    licence="MIT",
    size=1_711_974_081,
    sha256="c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",
)
CONFIG = VIT_L_14 | {"image_size": 336}


def build(paths: Sequence[Path], device: str) -> Measure:
    """Load the network and return what embeds pictures; raises as `load_network`."""
    import torch
    from torchvision import transforms

    (path,) = paths
    tower = load_image_tower(CONFIG, read(WEIGHTS, path), path, device)
    resize = transforms.Resize([CONFIG["image_size"]] * 2, transforms.InterpolationMode.BICUBIC)

    @torch.inference_mode()
    def measure(images: Images, prompts: Sequence[str]) -> dict[str, Tensor]:
        middle = transforms.CenterCrop(min(images.shape[1:3]))
        colours = [transforms.ToTensor(), transforms.Normalize(**CLIP_COLOURS)]
        pixels = show(images, transforms.Compose([middle, resize, *colours]), device)
        seen = tower(pixel_values=pixels).image_embeds
        return {"features": torch.nn.functional.normalize(seen, dim=-1)}

    return measure


CLIP_VIT_L_14_336 = of_files("clip-vit-l14-336", {"features": 768}, [WEIGHTS], build)
