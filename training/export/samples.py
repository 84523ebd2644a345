"""Draw fixed prompts and put the pictures on a sheet, to look at while a network learns and afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from pytest_sdbench.base.files import write_atomically
from pytest_sdbench.evaluation.sampler import to_uint8
from pytest_sdbench.evaluation.schedulers import with_settings
from training.data.batch import tokenize
from training.students.networks import Parts

Pixels = npt.NDArray[np.uint8]

BATCH = 8
"""Prompts that are drawn together."""
_FOR_CONSISTENCY = ("LCMScheduler", "TCDScheduler")
"""Schedulers that take the prediction of a consistency model."""


@dataclass(frozen=True)
class Row:
    """A line of a sheet: some pictures, uint8 [H, W, 3], and what they were to show."""

    caption: str
    images: Sequence[Pixels]


def draw(
    parts: Parts,
    prompts: Sequence[str],
    *,
    guidance: float,
    steps: int,
    seed: int | Sequence[int] = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    size: int | None = None,
) -> Pixels:
    """Return a picture of each prompt, uint8 [N, H, W, 3], drawn with the checkpoint's own scheduler.

    Picture i comes from a CPU generator of its own, seeded with `seed` + i, or with `seed[i]`. A float32
    U-Net computes under autocast where `dtype` is another type. One that embeds the guidance scale draws
    without a second batch, with LCMScheduler unless it has one. `size` is the side in pixels (default: the
    U-Net's own). Networks are left as they are found: mode, device, type, random state.
    """
    device = torch.device(device)
    seeds = range(seed, seed + len(prompts)) if isinstance(seed, int) else seed
    images = []
    with _placed(parts, device), torch.no_grad(), _autocast(device, dtype, parts.unet):
        for first in range(0, len(prompts), BATCH):
            some = list(prompts[first : first + BATCH])
            generators = [torch.Generator().manual_seed(number) for number in seeds[first : first + BATCH]]
            images.append(_batch(parts, some, generators, guidance, steps, size))
    return np.concatenate(images) if images else np.empty((0, 0, 0, 3), np.uint8)


def sampling_scheduler(parts: Parts) -> Any:
    """Return a fresh scheduler for the U-Net: the checkpoint's own, or one for a consistency model."""
    return with_settings(sampling_kind(parts), parts.scheduler)


def sampling_kind(parts: Parts) -> Any:
    """Return the class of that scheduler.

    What the U-Net of a consistency model predicts is no step of another solver.
    """
    from diffusers import LCMScheduler

    kind = type(parts.scheduler)
    consistent = parts.unet.config.time_cond_proj_dim is not None
    return LCMScheduler if consistent and kind.__name__ not in _FOR_CONSISTENCY else kind


def gallery(
    rows: Sequence[Row], path: Path, *, across: int | None = None, cell: int = 160, title: str | None = None
) -> None:
    """Write a sheet of pictures, each with its caption below; PNG, JPEG or WebP by the name of the file.

    The pictures of one row stand side by side over its caption. `across` is the number of rows that share a
    line of the sheet (default: what makes it nearly square), `cell` the side of a picture in pixels.
    """
    pictures = max(len(row.images) for row in rows)
    wide = pictures * cell + (pictures - 1) * _THIN
    across = across or max(1, min(len(rows), round((len(rows) * 1.5 * cell / wide) ** 0.5)))
    words = [_wrap(row.caption, wide) for row in rows]
    lines_of = [words[first : first + across] for first in range(0, len(words), across)]
    deep = [max(len(lines) for lines in line) * _LINE + 6 for line in lines_of]
    tops = [_top(title)]
    for below in deep:
        tops.append(tops[-1] + cell + below + _GAP)
    width = 2 * _MARGIN + across * wide + (across - 1) * _GAP
    sheet, pen = _paper(width, tops[-1] - _GAP + _MARGIN, title)
    for place, (row, lines) in enumerate(zip(rows, words, strict=True)):
        left, upper = _MARGIN + place % across * (wide + _GAP), tops[place // across]
        for number, image in enumerate(row.images):
            sheet.paste(_fit(image, cell), (left + number * (cell + _THIN), upper))
        _write(pen, lines, left, upper + cell + 4)
    _save(sheet, path)


# --- drawing --------------------


def _batch(
    parts: Parts,
    prompts: list[str],
    generators: list[torch.Generator],
    guidance: float,
    steps: int,
    size: int | None,
) -> Pixels:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=None,  # prompts come as states: they may be of another type than the U-Net
        tokenizer=None,
        unet=parts.unet,
        scheduler=sampling_scheduler(parts),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    dtype = parts.unet.dtype
    latents = pipeline(
        prompt_embeds=_states(parts, prompts).to(dtype),
        negative_prompt_embeds=_states(parts, [""] * len(prompts)).to(dtype),
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=generators,
        height=size,
        width=size,
        output_type="latent",
    ).images
    images = parts.vae.decode(latents.to(parts.vae.dtype) / parts.vae.config.scaling_factor).sample
    unit = (images.float() / 2 + 0.5).clamp(0, 1).nan_to_num(0)
    return to_uint8(unit.permute(0, 2, 3, 1).cpu().numpy())


def _states(parts: Parts, prompts: list[str]) -> torch.Tensor:
    tokens, _ = tokenize(parts.tokenizer, prompts)
    states: torch.Tensor = parts.text_encoder(tokens.to(parts.text_encoder.device)).last_hidden_state
    return states


@contextmanager
def _placed(parts: Parts, device: torch.device) -> Iterator[None]:
    """Put the networks on the device and into evaluation mode, and take both back, with the random state."""
    networks: list[nn.Module] = [parts.unet, parts.text_encoder, parts.vae]
    modes = [(module, module.training) for network in networks for module in network.modules()]
    places = [(network, next(network.parameters()).device) for network in networks]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            for network in networks:
                network.to(device).eval()
            yield
        finally:
            for network, place in places:
                network.to(place)
            for module, training in modes:
                module.training = training


def _autocast(device: torch.device, dtype: torch.dtype, unet: Any) -> torch.autocast:
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32 and unet.dtype == torch.float32)


# --- the sheet --------------------

_MARGIN, _GAP, _THIN, _LINE = 20, 16, 4, 16
_INK, _PAPER = (40, 40, 44), (252, 252, 250)


def _font(size: int = 12) -> Any:
    return ImageFont.load_default(size=size)


def _paper(width: int, height: int, title: str | None) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    page = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(page)
    if title:
        pen.text((_MARGIN, _MARGIN - 4), title, fill=_INK, font=_font(17))
    return page, pen


def _top(title: str | None) -> int:
    return _MARGIN + (30 if title else 0)


def _fit(image: Pixels, cell: int) -> Image.Image:
    return Image.fromarray(image).resize((cell, cell), Image.Resampling.LANCZOS)


def _write(pen: ImageDraw.ImageDraw, lines: Sequence[str], left: int, top: int) -> None:
    for number, line in enumerate(lines):
        pen.text((left, top + number * _LINE), line, fill=_INK, font=_font())


def _wrap(text: str, width: int) -> list[str]:
    """Break a text into lines of at most `width` pixels; a word that is longer stands alone."""
    font, lines = _font(), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _save(page: Image.Image, path: Path) -> None:
    """Write the file in one step: whoever watches it never sees half a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    form = Image.registered_extensions()[path.suffix.lower()]
    write_atomically(path, lambda file: page.save(file, form, optimize=True))
