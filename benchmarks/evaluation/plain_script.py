"""A good plain script of the same evaluation, as somebody writes it who knows the libraries.

diffusers' pipeline in large batches, pictures in memory, each network once over them in batches. Nothing is
compiled, nothing overlaps, nothing is kept: what is gained beyond it is the engine's own.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from benchmarks.evaluation.published_procedure import ISC_BATCH, Procedure
from pytest_sdbench.evaluation.sampler import image_seed
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.protocols.sections import Jpeg, SequentialSeeds


def make_images(ready: Procedure, prompts: Sequence[str], batch: int) -> list[Image.Image]:
    """Return the pictures of these prompts, `batch` at a time, after the steps of the protocol."""
    protocol, made = ready.protocol, []
    sampling, seeds = protocol.sampling, protocol.seeds
    generator: Any = torch.Generator(seeds.device if isinstance(seeds, SequentialSeeds) else "cpu")
    generator.manual_seed(seeds.seed)
    for start in range(0, len(prompts), batch):
        some = list(prompts[start : start + batch])
        if not isinstance(seeds, SequentialSeeds):
            numbers = range(start, start + len(some))
            generator = [torch.Generator().manual_seed(image_seed(seeds.seed, number)) for number in numbers]
        made += ready.pipeline(
            some,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            negative_prompt=sampling.negative_prompt and [sampling.negative_prompt] * len(some),
            height=sampling.resolution,
            width=sampling.resolution,
            generator=generator,
        ).images
    return [_through_memory(image, protocol) for image in made]


@torch.inference_mode()
def measure(
    ready: Procedure, images: Sequence[Image.Image], captions: Sequence[str]
) -> dict[str, npt.NDArray[np.float32]]:
    """Return what the networks say: `features` and `logits` [n, D], `cosine` [n] of picture and caption."""
    found: dict[str, list[Tensor]] = {"features": [], "logits": [], "cosine": []}
    clip: Any = ready.clip.model
    for start in range(0, len(images), ISC_BATCH):
        some = images[start : start + ISC_BATCH]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in some]))
        pixels = pixels.permute(0, 3, 1, 2).contiguous().to(ready.device)
        found["features"].append(ready.features(pixels))
        found["logits"].append(ready.inception(pixels)[-1])
        prepared = torch.stack([ready.clip.preprocess(image) for image in some]).to(ready.device)
        tokens = ready.clip.tokenize(captions[start : start + ISC_BATCH]).to(ready.device)
        seen, told = clip.encode_image(prepared), clip.encode_text(tokens)
        found["cosine"].append(torch.nn.functional.cosine_similarity(seen, told))
    return {name: torch.cat(parts).float().cpu().numpy() for name, parts in found.items()}


def _through_memory(image: Image.Image, protocol: Protocol) -> Image.Image:
    """Take a picture through codec and resize as the protocol says."""
    for step in protocol.image:
        if isinstance(step, Jpeg):
            file = io.BytesIO()
            image.save(file, format="JPEG", quality=step.jpeg)
            image = Image.open(file).convert("RGB")
        else:
            kernel = Image.Resampling[step.filter.removeprefix("pil-").upper()]
            image = image.resize((step.resize, step.resize), kernel)
    return image
