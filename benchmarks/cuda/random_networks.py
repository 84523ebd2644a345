"""Make the networks of one evaluation on the device itself, with random weights: no file is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP

from benchmarks.evaluation import random_models
from benchmarks.evaluation.published_procedure import Procedure
from benchmarks.training.scenario import _SMOKE_TEXT, _SMOKE_UNET, _SMOKE_VAE
from pytest_sdbench.base.files import sha256_of
from pytest_sdbench.features import inception
from pytest_sdbench.features.clip import ClipScorer
from pytest_sdbench.features.definition import FeatureNetwork, pixels_of
from pytest_sdbench.features.extractors import Extractors
from pytest_sdbench.models.architectures import ARCHITECTURES, SD_V1_SCHEDULER, SD_V1_TEXT_ENCODER, SD_V1_VAE
from pytest_sdbench.models.skeleton import unet_skeleton
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.protocol import Protocol
from training.students.tokenizer import build_tokenizer

CLIP_MODEL = "ViT-g-14"
_SMOKE_CLIP: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {"layers": 1, "width": 64, "patch_size": 32, "image_size": 64},
    "text_cfg": {"layers": 1, "width": 16, "heads": 2},
}


@dataclass(frozen=True)
class Networks:
    """All networks of one evaluation, loaded once for every way of running it."""

    architecture: str
    protocol: Protocol
    prompts: tuple[str, ...]
    procedure: Procedure
    """The pipeline and the extractors as the published procedure takes them."""
    extractors: Extractors
    """The same extractors as the engine takes them."""


def make_networks(
    architecture: str, folder: Path, device: torch.device, *, smoke: bool = False, n: int = 1024
) -> Networks:
    """Make a pipeline of a named architecture and the extractors of `coco30k-bksdm`, in float16 on CUDA.

    A network that reads the guidance as an embedding gets LCM's scheduler and four steps. `folder` takes the
    random Inception, which its library reads from a file.
    """
    protocol = _protocol(architecture, device, smoke=smoke, n=n)
    half = torch.float16 if device.type == "cuda" else torch.float32
    prompts = tuple(f"a photograph of thing {number} beside thing {number * 7 % 1000}" for number in range(n))
    pipeline = _pipeline(architecture, device, half, smoke=smoke)
    network = _inception(folder, device)
    scorer = _clip(device, smoke=smoke)
    ready = Procedure(
        protocol,
        str(device),
        pipeline,
        lambda pixels: inception.pytorch_fid(network, pixels),
        network,
        "logits_unbiased",
        scorer,
    )
    names = protocol.extractors
    extractors = Extractors(
        tuple(
            FeatureNetwork(name, "random", measure, outputs)
            for name, (measure, outputs) in {
                name: _measure(name, network, scorer, str(device)) for name in names
            }.items()
        )
    )
    return Networks(architecture, protocol, prompts, ready, extractors)


def _protocol(architecture: str, device: torch.device, *, smoke: bool, n: int) -> Protocol:
    protocol = load_protocol("coco30k-bksdm").with_samples(n)
    if device.type != "cuda":
        protocol = protocol.with_seeds_on("cpu").with_dtype("float32")
    changed: dict[str, Any] = {}
    if "lcm" in architecture:
        changed = {"scheduler": protocol.sampling.scheduler.model_copy(update={"must_be": None}), "steps": 4}
    if smoke:
        changed |= {"steps": 2, "resolution": 64}
    seeds = {}
    if "lcm" in architecture:
        # LCM draws noise between its steps: each picture has a generator of its own.
        seeds = {"seeds": load_protocol("scenes-lcm4-quick").seeds}
    sampling = protocol.sampling.model_copy(update=changed)
    return protocol.model_copy(update={"sampling": sampling, **seeds})


def _pipeline(architecture: str, device: torch.device, dtype: torch.dtype, *, smoke: bool) -> Any:
    from diffusers import AutoencoderKL, LCMScheduler, PNDMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = build_tokenizer()
    tokenizer.model_max_length = 77
    words = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    unet = {**_SMOKE_UNET, **_difference(architecture)} if smoke else ARCHITECTURES[architecture]
    torch.manual_seed(0)
    with torch.device(device):
        text = CLIPTextModel(
            CLIPTextConfig.from_dict({**(_SMOKE_TEXT if smoke else SD_V1_TEXT_ENCODER), **words})
        )
        vae: Any = AutoencoderKL.from_config(dict(_SMOKE_VAE if smoke else SD_V1_VAE))
    lcm = "lcm" in architecture
    pipeline = StableDiffusionPipeline(
        unet=unet_skeleton(unet, device=device, dtype=dtype),
        text_encoder=text.to(dtype).eval().requires_grad_(False),
        vae=vae.to(dtype).eval().requires_grad_(False),
        tokenizer=tokenizer,
        scheduler=LCMScheduler.from_config(dict(SD_V1_SCHEDULER))
        if lcm
        else PNDMScheduler(**SD_V1_SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _difference(architecture: str) -> dict[str, Any]:
    """Return what an architecture has otherwise than SD v1, but for the widths."""
    whole = ARCHITECTURES["sd-v1"]
    changed = {key: value for key, value in ARCHITECTURES[architecture].items() if value != whole.get(key)}
    if "block_out_channels" in changed:
        changed["block_out_channels"] = _SMOKE_UNET["block_out_channels"][
            : len(changed["block_out_channels"])
        ]
    return changed


def _inception(folder: Path, device: torch.device) -> torch.nn.Module:
    path = random_models.write_inception(folder / "inception.pth")
    return inception.load_inception(path, sha256=sha256_of(path), device=device)


def _clip(device: torch.device, *, smoke: bool) -> ClipScorer:
    torch.manual_seed(0)
    with torch.device(device):
        if smoke:
            model: Any = CLIP(**_SMOKE_CLIP)
        else:
            model = open_clip.create_model(CLIP_MODEL, device=device)
    model.eval().requires_grad_(False)
    size = model.visual.image_size
    side = size[0] if isinstance(size, tuple) else size
    preprocess = open_clip.image_transform(side, is_train=False)
    return ClipScorer(model, preprocess, open_clip.get_tokenizer(CLIP_MODEL), "random")


def _measure(
    name: str, network: torch.nn.Module, scorer: ClipScorer, device: str
) -> tuple[Any, tuple[str, ...]]:
    """Return what looks at pictures for an extractor of the protocol, and which outputs its metrics read."""
    if name == inception.PYTORCH_FID.name:
        return lambda images, _prompts: {
            "features": inception.pytorch_fid(network, pixels_of(images, device))
        }, ("features",)
    if name == inception.TORCH_FIDELITY.name:

        def logits(images: Any, _prompts: Any) -> dict[str, Any]:
            return {"logits": inception.torch_fidelity(network, pixels_of(images, device))[1]}

        return logits, ("logits",)
    return (lambda images, prompts: {"cosine": scorer(images, prompts)}), ("cosine",)
