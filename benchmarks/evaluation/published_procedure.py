"""The published evaluation, written down plainly and apart from our own: image by image, file by file.

An image is sampled at batch 1 by diffusers' own pipeline and saved; it is reopened, resized and saved again.
Then every score reads all files from the disk for itself: FID the way pytorch-fid does (batches of 50 through
the network, float64 moments, scipy's root of the product), the Inception score with torch-fidelity's own
functions, the CLIP score one image at a time through open_clip. Threads are torch's default.

What is shared with our evaluation is material, not procedure: which files a checkpoint consists of, the
weights of the extractors, the prompts, the seed of an image, the reference statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from PIL import Image
from torch import Tensor

from pytest_sdbench.evaluation.sampler import image_seed
from pytest_sdbench.features.clip import ClipScorer, load_clip
from pytest_sdbench.metrics.inception_score import INCEPTION_SCORE
from pytest_sdbench.metrics.moments import Array, FeatureStatistics
from pytest_sdbench.models.checkpoint import Checkpoint, scheduler_class
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.protocols.sections import Jpeg, SequentialSeeds

FID_BATCH, ISC_BATCH = 50, 64
"""Files in a forward pass: the defaults of pytorch-fid and of torch-fidelity."""


@dataclass(frozen=True)
class Procedure:
    """Everything loaded that the published evaluation of one checkpoint under one protocol needs."""

    protocol: Protocol
    device: str
    pipeline: Any
    features: Callable[[Tensor], Tensor]
    """The network of FID: uint8 [B, 3, H, W] to [B, D]."""
    inception: Any
    """torch-fidelity's extractor for the Inception score."""
    logits: str
    """Its name for the logits."""
    clip: ClipScorer


def load(
    checkpoint: Checkpoint, protocol: Protocol, *, data_root: Path | None = None, device: str = "cpu"
) -> Procedure:
    """Load a pipeline and the extractors of a protocol's FID, Inception score and CLIP score.

    Raises KeyError for a protocol that lacks one of them, Unavailable for weights that are not here.
    """
    pipeline = _pipeline(checkpoint, protocol, device)
    fid, isc, clip = (protocol.metrics[name].extractor for name in ("fid", "inception_score", "clip_score"))
    features, inception = _fid_network(fid, data_root, device), _isc_network(isc, data_root, device)
    return Procedure(protocol, device, pipeline, features, *inception, load_clip(clip, device=device))


def generate(
    procedure: Procedure, prompts: Sequence[str], folder: Path, indices: Sequence[int] | None = None
) -> list[Path]:
    """Make the images of these prompts one after the other, and return their files in the same order.

    `indices` choose among the prompts; under sequential seeds they are the first ones, or all.
    """
    protocol, pipeline = procedure.protocol, procedure.pipeline
    sampling, seeds, files = protocol.sampling, protocol.seeds, []
    generator = torch.Generator(seeds.device if isinstance(seeds, SequentialSeeds) else "cpu")
    generator.manual_seed(seeds.seed)
    for index in range(len(prompts)) if indices is None else indices:
        if not isinstance(seeds, SequentialSeeds):
            generator.manual_seed(image_seed(seeds.seed, index))
        image = pipeline(
            prompts[index],
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            negative_prompt=sampling.negative_prompt,
            height=sampling.resolution,
            width=sampling.resolution,
            generator=generator,
        ).images[0]
        files.append(_through_files(image, protocol, folder / f"{index:06d}"))
    return files


def fid_features(procedure: Procedure, files: Sequence[Path]) -> Array:
    """Return the features of all files, float64 [n, D]: a pass of its own over the files."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(files), FID_BATCH):
            pixels = torch.stack([_read(file) for file in files[start : start + FID_BATCH]])
            parts.append(procedure.features(pixels.to(procedure.device)).cpu().numpy())
    return np.concatenate(parts).astype(np.float64)


def frechet_distance(mu: Array, sigma: Array, other_mu: Array, other_sigma: Array) -> float:
    """Return FID as pytorch-fid computes it: scipy's root of the product of the covariances.

    A root that is not finite is computed again with 1e-6 on both diagonals, and what is imaginary is dropped
    where it is small; raises ValueError where it is not.
    """
    root = scipy.linalg.sqrtm(sigma @ other_sigma)
    if not np.isfinite(root).all():
        offset = np.eye(len(sigma)) * 1e-6
        root = scipy.linalg.sqrtm((sigma + offset) @ (other_sigma + offset))
    if np.iscomplexobj(root):
        if not np.allclose(np.diagonal(root).imag, 0, atol=1e-3):
            raise ValueError(f"imaginary component {np.abs(root.imag).max()}")
        root = root.real
    shift = mu - other_mu
    return float(shift @ shift + np.trace(sigma) + np.trace(other_sigma) - 2 * np.trace(root))


def fid(procedure: Procedure, files: Sequence[Path], reference: FeatureStatistics) -> float:
    """Return FID of the files."""
    features = fid_features(procedure, files)
    mu, sigma = np.mean(features, axis=0), np.cov(features, rowvar=False)
    return frechet_distance(mu, sigma, reference.mu, reference.sigma)


def inception_score(procedure: Procedure, folder: Path) -> float:
    """Return the Inception score of all files of a folder: torch-fidelity reads, measures and computes."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_input_id_to_metric

    options = INCEPTION_SCORE.options_of(procedure.protocol.metrics["inception_score"])
    found = isc_input_id_to_metric(
        1,
        procedure.inception,
        procedure.logits,
        input1=str(folder),
        isc=True,
        cuda=procedure.device.startswith("cuda"),
        batch_size=ISC_BATCH,
        isc_splits=options.splits,
        samples_shuffle=options.shuffle_seed is not None,
        rng_seed=options.shuffle_seed or 0,
        cache=False,
        verbose=False,
        # Workers that read ahead cost a fixed time to start, which is no time of an image.
        save_cpu_ram=True,
    )
    return float(found[KEY_METRIC_ISC_MEAN])


def clip_score(procedure: Procedure, files: Sequence[Path], captions: Sequence[str]) -> float:
    """Return the mean cosine of file and caption, one at a time."""
    clip, total = procedure.clip, 0.0
    model: Any = clip.model
    with torch.no_grad():
        for file, caption in zip(files, captions, strict=True):
            pixels = clip.preprocess(Image.open(file).convert("RGB")).unsqueeze(0).to(procedure.device)
            seen = model.encode_image(pixels)
            told = model.encode_text(clip.tokenize([caption]).to(procedure.device))
            total += float(torch.nn.functional.cosine_similarity(seen, told).item())
    return total / len(files)


def _pipeline(checkpoint: Checkpoint, protocol: Protocol, device: str) -> Any:
    import diffusers

    dtype = getattr(torch, protocol.sampling.dtype)
    wanted = protocol.sampling.scheduler
    name = scheduler_class(checkpoint) if wanted.name == "checkpoint" else wanted.name
    scheduler = getattr(diffusers, name).from_pretrained(checkpoint.part("scheduler"), **wanted.config)
    unet = diffusers.UNet2DConditionModel.from_pretrained(
        checkpoint.part("unet"), torch_dtype=dtype, variant=checkpoint.weights("unet").variant
    )
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        checkpoint.folder,
        unet=unet,
        scheduler=scheduler,
        torch_dtype=dtype,
        variant=checkpoint.weights("vae").variant,
        safety_checker=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _through_files(image: Image.Image, protocol: Protocol, stem: Path) -> Path:
    """Save an image as often as the protocol says, reopening it in between; without a codec as PNG, once."""
    file = None
    for step in protocol.image:
        if isinstance(step, Jpeg):
            file = stem.with_suffix(".jpg")
            image.save(file, quality=step.jpeg)
            image = Image.open(file).convert("RGB")
        else:
            file, kernel = None, Image.Resampling[step.filter.removeprefix("pil-").upper()]
            image = image.resize((step.resize, step.resize), kernel)
    if file is None:
        file = stem.with_suffix(".png")
        image.save(file)
    return file


def _read(file: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)


def _fid_network(name: str, data_root: Path | None, device: str) -> Callable[[Tensor], Tensor]:
    if name == "scenes-classifier":
        from pytest_sdbench.features.classifier import load_classifier

        classifier = load_classifier().to(device)
        return lambda pixels: classifier(pixels)["features"]
    from pytest_sdbench.features.inception import find_weights, load_inception, pytorch_fid

    network = load_inception(find_weights(data_root), device=device)
    return lambda pixels: pytorch_fid(network, pixels)


def _isc_network(name: str, data_root: Path | None, device: str) -> tuple[Any, str]:
    from torch_fidelity.utils import create_feature_extractor

    from pytest_sdbench.features import classifier, inception

    options: dict[str, Any] = {"cuda": device.startswith("cuda"), "verbose": False}
    if name == classifier.NAME:
        return create_feature_extractor(classifier.NAME, ["logits"], **options), "logits"
    weights = inception.find_weights(data_root)
    inception.check_weights(weights)
    options["feature_extractor_weights_path"] = str(weights)
    return create_feature_extractor("inception-v3-compat", ["logits_unbiased"], **options), "logits_unbiased"
