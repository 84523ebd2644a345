"""Sample the images of a protocol: prompts and seeds in, uint8 batches out.

Under per-image seeds every image has its own CPU generator, seeded from (protocol seed, index): an image does
not depend on batch size, order or process, up to the rounding of the arithmetic. Under sequential seeds one
generator is consumed image by image; the noise of images that are skipped is drawn and thrown away, so that a
resumed or divided run equals the uninterrupted one on the same kind of device. Schedulers that draw no noise
between steps make this noise all there is: it is drawn one image at a time, and may be used in batches.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from pytest_sdbench.base.errors import CheckpointError, ProtocolError
from pytest_sdbench.evaluation.schedulers import draws_noise, scheduler_factory
from pytest_sdbench.models.layout import SD, SDXL
from pytest_sdbench.models.pipeline import cut_prompts
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.protocols.sections import SequentialSeeds

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@dataclass(frozen=True)
class Batch:
    """Some images of a protocol, as the VAE decoded them: before any codec or resize."""

    indices: npt.NDArray[np.int64]
    seeds: npt.NDArray[np.int64]
    """Seed of each image's generator; under sequential seeds, of the one generator."""
    prompts: tuple[str, ...]
    images: npt.NDArray[np.uint8]
    """[B, height, width, 3]"""
    blacked_out: npt.NDArray[np.bool_]
    """Images that a safety checker replaced by black; a pipeline should not have one."""
    truncated: npt.NDArray[np.bool_]
    """Prompts longer than the tokenizer takes; their end was cut off."""


@dataclass(frozen=True, eq=False)
class Latents:
    """Some images as the U-Net leaves them."""

    indices: tuple[int, ...]
    seeds: tuple[int, ...]
    tensor: torch.Tensor | None
    """[B, C, h, w] on the pipeline's device; None where the pipeline is none that can be stopped there."""
    truncated: npt.NDArray[np.bool_]
    output: Any = None
    """What such a pipeline returned."""


class Sampler:
    """Draws images of one protocol with one pipeline, in two stages; each thread has its own.

    `draw` is the U-Net's part, `decode` the VAE's: they may run in different threads. The pipeline itself is
    left as it is. Raises ProtocolError for a scheduler that does not exist or does not fit the seeds,
    CheckpointError if the checkpoint's scheduler is not the one that the protocol demands.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        protocol: Protocol,
        prompts: Sequence[str],
        *,
        remember_text: bool = True,
    ) -> None:
        self._protocol, self._prompts = protocol, prompts
        self._schedule = scheduler_factory(pipeline, protocol)
        self._staged, self._xl = is_staged(pipeline), is_xl(pipeline)
        # The networks are shared; what a call leaves behind (scheduler, guidance) is not.
        self._pipeline = copy.copy(pipeline)
        # A fast tokenizer keeps the settings of its last call in itself.
        names = (SDXL if self._xl else SD).tokenizers
        self._tokenizers = [copy.deepcopy(getattr(pipeline, name)) for name in names]
        for name, tokenizer in zip(names, self._tokenizers, strict=True):
            setattr(self._pipeline, name, tokenizer)
        if self._xl and pipeline.vae.dtype == torch.float16 and pipeline.vae.config.force_upcast:
            # SDXL's VAE overflows in float16. Its pipeline casts it and back: other threads may be at it.
            vae = copy.deepcopy(pipeline.vae)
            self._pipeline.vae = vae.to(torch.float32) if self._staged else vae
        # SDXL's pipeline makes the states of no negative prompt without a text encoder.
        self._remember_text = remember_text and self._staged and not self._xl
        self._negative: torch.Tensor | None = None
        self._sequence = None
        if isinstance(protocol.seeds, SequentialSeeds):
            self._sequence = _Sequence(pipeline, protocol, protocol.seeds)

    @torch.inference_mode()
    def draw(self, group: Sequence[int]) -> Latents:
        """Run the denoising loop for the images with these indices, as one batch."""
        sampling, seed = self._protocol.sampling, self._protocol.seeds.seed
        seeds = [seed] * len(group)
        noise: dict[str, Any]
        if self._sequence is None:
            seeds = [image_seed(seed, index) for index in group]
            noise = {"generator": [torch.Generator().manual_seed(each) for each in seeds]}
        elif not self._staged:
            (index,) = group
            noise = {"generator": self._sequence.at(index)}
        else:
            noise = {"latents": torch.cat([self._sequence.noise(index) for index in group])}
        # PNDM keeps the last model outputs and a sample: what one call leaves must not reach the next.
        self._pipeline.scheduler = self._schedule()
        prompts = [self._prompts[index] for index in group]
        output = self._pipeline(
            **self._text(prompts),
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            height=sampling.resolution,
            width=sampling.resolution,
            **noise,
            output_type="latent" if self._staged else "np",
        )
        truncated = np.array(cut_prompts(self._tokenizers, prompts), np.bool_)
        if self._staged:
            return Latents(tuple(group), tuple(seeds), output.images, truncated)
        return Latents(tuple(group), tuple(seeds), None, truncated, output)

    @torch.inference_mode()
    def decode(self, latents: Latents, chunk: int | None = None) -> Batch:
        """Turn latents into pictures, `chunk` at a time; raises CheckpointError for NaN and infinity."""
        if latents.tensor is None:
            images = np.asarray(latents.output.images)
            # Only pipelines that may have a safety checker say what it found.
            blacked = getattr(latents.output, "nsfw_content_detected", None) or [False] * len(images)
            self._check_finite(np.isfinite(images).all(axis=(1, 2, 3)), latents.indices)
            pixels = to_uint8(images)
        else:
            chunk = chunk or len(latents.indices)
            parts = [
                self._decode(latents.tensor[at : at + chunk], latents.indices[at : at + chunk])
                for at in range(0, len(latents.indices), chunk)
            ]
            pixels = np.concatenate([part for part, _ in parts])
            blacked = [flag for _, flags in parts for flag in flags]
        return Batch(
            indices=np.asarray(latents.indices, np.int64),
            seeds=np.asarray(latents.seeds, np.int64),
            prompts=tuple(self._prompts[index] for index in latents.indices),
            images=pixels,
            blacked_out=np.array(blacked, np.bool_),
            truncated=latents.truncated,
        )

    def _text(self, prompts: list[str]) -> dict[str, Any]:
        """Return what tells the pipeline its prompts: the text itself, or its states.

        The text that guidance leads away from is one for all images: its states are computed once.
        """
        sampling = self._protocol.sampling
        if not (self._remember_text and is_guided(self._protocol, self._pipeline.unet.config)):
            negative = sampling.negative_prompt
            return {
                "prompt": prompts,
                "negative_prompt": None if negative is None else [negative] * len(prompts),
            }
        if self._negative is None:
            self._negative = self._states([sampling.negative_prompt or ""])
        return {
            "prompt_embeds": self._states(prompts),
            "negative_prompt_embeds": self._negative.expand(len(prompts), -1, -1),
        }

    def _states(self, texts: list[str]) -> torch.Tensor:
        states: torch.Tensor = self._pipeline.encode_prompt(
            texts, self._pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )[0]
        return states

    def _decode(
        self, latents: torch.Tensor, indices: Sequence[int]
    ) -> tuple[npt.NDArray[np.uint8], Sequence[bool]]:
        """Return uint8 [B, H, W, 3] of latents, rounded on the device, and which of them are blacked out."""
        pipeline, vae, flags = self._pipeline, self._pipeline.vae, None
        if self._xl:
            images = vae.decode(_as_encoded(latents.to(vae.dtype), vae.config), return_dict=False)[0]
        else:
            images = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
            images, flags = pipeline.run_safety_checker(images, pipeline.device, images.dtype)
        self._check_finite(images.isfinite().flatten(1).all(dim=1).cpu().numpy(), indices)
        flags = flags or [False] * len(images)
        images = pipeline.image_processor.postprocess(
            images, output_type="pt", do_denormalize=[not flag for flag in flags]
        )
        # Half to even, as `to_uint8`; a quarter of the bytes leave the device.
        pixels = images.permute(0, 2, 3, 1).float().mul(255).round().to(torch.uint8)
        return pixels.cpu().numpy(), flags

    def _check_finite(self, finite: npt.NDArray[np.bool_], indices: Sequence[int]) -> None:
        if not finite.all():
            broken = indices[int(np.flatnonzero(~finite)[0])]
            precision = self._protocol.sampling.dtype
            if precision == "float32":
                what = f"image {broken} holds NaN or infinity"
                remedy = (
                    "The checkpoint has diverged, or does not go with the protocol's scheduler and settings"
                )
            else:
                what = f"image {broken} holds NaN or infinity: the networks overflow in {precision}"
                remedy = "Try --sdbench-dtype float32: if that works, this precision was too coarse."
            raise CheckpointError(what, key=f"prompt {broken}", found=self._prompts[broken], remedy=remedy)


def draws_singly(pipeline: Any, protocol: Protocol) -> bool:
    """Tell whether a batch holds one image alone.

    So it is under sequential seeds where the pipeline is not Stable Diffusion's: it is handed the generator.
    """
    return isinstance(protocol.seeds, SequentialSeeds) and not is_staged(pipeline)


def is_xl(pipeline: Any) -> bool:
    """Tell whether a pipeline is diffusers' of SDXL."""
    from diffusers import StableDiffusionXLPipeline

    return isinstance(pipeline, StableDiffusionXLPipeline)


def is_staged(pipeline: Any) -> bool:
    """Tell whether a pipeline can be stopped before its VAE: a watermark is put into what that decodes."""
    from diffusers import StableDiffusionPipeline

    return isinstance(pipeline, StableDiffusionPipeline) or (is_xl(pipeline) and pipeline.watermark is None)


def is_guided(protocol: Protocol, unet: Mapping[str, Any]) -> bool:
    """Tell whether each step calls the U-Net with and without the prompt, as diffusers decides it.

    `unet` is its configuration: a network that reads the guidance as an embedding is called once.
    """
    return protocol.sampling.guidance > 1 and unet.get("time_cond_proj_dim") is None


def image_seed(seed: int, index: int) -> int:
    """Return the seed of one image's generator, in 0 to 2^32 - 1.

    torch's CPU generator reads the low 32 bits of a seed alone. The map is therefore a permutation of 32-bit
    numbers (two rounds of MurmurHash3's finaliser, keyed by the sha256 of the protocol's seed in decimal): no
    two images of a protocol have the same noise.
    """
    key = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "little")
    return _mix(_mix(index ^ (key & 0xFFFFFFFF)) ^ (key >> 32))


def to_uint8(images: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Turn pictures in 0 to 1 into bytes, rounded as diffusers does for Pillow (half to even)."""
    return (images * 255).round().astype(np.uint8)


class _Sequence:
    """One generator, moved on image by image."""

    def __init__(self, pipeline: StableDiffusionPipeline, protocol: Protocol, seeds: SequentialSeeds) -> None:
        scheduler = scheduler_factory(pipeline, protocol)()
        if draws_noise(scheduler):
            raise ProtocolError(
                "sequential seeds need a scheduler that draws no noise between steps, such as PNDMScheduler",
                file=protocol.path,
                key="seeds.kind",
                found=type(scheduler).__name__,
                remedy="Give `kind: per-image`.",
            )
        if seeds.device == "cuda" and pipeline.device.type != "cuda":
            what = f"the generator of this protocol is on cuda, the pipeline on {pipeline.device.type}"
            remedy = "Sample `protocol.with_seeds_on('cpu')`: comparable scores of another draw."
            raise ProtocolError(what, file=protocol.path, key="seeds.device", remedy=remedy)
        # Of several GPUs that of the pipeline: the noise is the same on all.
        place = pipeline.device if seeds.device == "cuda" else seeds.device
        self._generator, self._seed, self._position = torch.Generator(place), seeds.seed, 0
        self._generator.manual_seed(self._seed)
        side = protocol.sampling.resolution // pipeline.vae_scale_factor
        self._shape = (1, pipeline.unet.config.in_channels, side, side)
        self._dtype = pipeline.unet.dtype

    def at(self, index: int) -> torch.Generator:
        """Return the generator as the image with this index finds it, to be used for that image."""
        if index < self._position:  # a shard that another process left undone
            self._generator.manual_seed(self._seed)
            self._position = 0
        while self._position < index:
            self._draw()
            self._position += 1
        self._position += 1
        return self._generator

    def noise(self, index: int) -> torch.Tensor:
        """Return the initial latents of the image with this index, [1, C, h, w]."""
        self.at(index)
        return self._draw()

    def _draw(self) -> torch.Tensor:
        place = self._generator.device
        return torch.randn(self._shape, generator=self._generator, device=place, dtype=self._dtype)


def _as_encoded(latents: torch.Tensor, vae: Mapping[str, Any]) -> torch.Tensor:
    """Return latents on the scale of an encoder, as SDXL's pipeline undoes what its VAE's configuration says.

    With mean and standard deviation of each channel where both are given.
    """
    scale, moments = float(vae["scaling_factor"]), (vae.get("latents_mean"), vae.get("latents_std"))
    if None in moments:
        return latents / scale
    mean, deviation = (torch.tensor(each).view(1, -1, 1, 1).to(latents) for each in moments)
    return latents * deviation / scale + mean


def _mix(value: int) -> int:
    """Permute 32-bit numbers (the finaliser of MurmurHash3, Appleby 2008)."""
    value = (value ^ (value >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
    value = (value ^ (value >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
    return value ^ (value >> 16)
