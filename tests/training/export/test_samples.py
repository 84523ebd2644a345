"""Samples are those that diffusers draws, and drawing them changes nothing that learns."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline
from PIL import Image

from tests.tiny_checkpoint import make_checkpoint
from training.export.samples import Row, draw, gallery
from training.students.networks import Parts, load_parts

PROMPTS = ["red and blue", "a large red star on a beach", "blue"]


def by_diffusers(folder: Path, number: int, *, guidance: float, lcm: bool = False) -> np.ndarray:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    if lcm:
        pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(number)
    image = pipeline(PROMPTS[number], num_inference_steps=3, guidance_scale=guidance, generator=generator)
    return np.asarray(image.images[0]).astype(int)


def test_pictures_are_those_that_diffusers_draws(pristine_checkpoint: Path, parts: Parts) -> None:
    drawn = draw(parts, PROMPTS, guidance=3.0, steps=3)
    assert (drawn.shape, drawn.dtype) == ((3, 64, 64, 3), np.uint8)
    for number in range(3):
        assert np.abs(drawn[number] - by_diffusers(pristine_checkpoint, number, guidance=3.0)).max() <= 1


@pytest.mark.slow
def test_a_consistency_model_draws_with_its_own_sampler(tmp_path: Path) -> None:
    consistency = make_checkpoint(tmp_path / "lcm", unet={"time_cond_proj_dim": 8})
    drawn = draw(load_parts(str(consistency)), PROMPTS, guidance=8.0, steps=3)
    wanted = by_diffusers(consistency, 1, guidance=8.0, lcm=True)
    assert np.abs(drawn[1] - wanted).max() <= 1


def test_a_picture_has_its_own_seed(parts: Parts) -> None:
    whole = draw(parts, PROMPTS, guidance=3.0, steps=2)
    alone = draw(parts, PROMPTS[2:], guidance=3.0, steps=2, seed=2)
    other = draw(parts, PROMPTS[2:], guidance=3.0, steps=2, seed=[7])
    assert np.abs(whole[2].astype(int) - alone[0]).max() <= 1
    assert np.abs(whole[2].astype(int) - other[0]).max() > 1


def test_drawing_changes_nothing(parts: Parts) -> None:
    unet = copy.deepcopy(parts.unet).train()
    unet.mid_block.eval()
    unet.requires_grad_(True)
    seen: list[int] = []
    unet.down_blocks[0].register_forward_hook(lambda *_: seen.append(1))
    own = replace(parts, unet=unet, vae=copy.deepcopy(parts.vae).bfloat16())
    modes = [module.training for module in unet.modules()]
    weights = copy.deepcopy(unet.state_dict())
    torch.manual_seed(5)
    before = torch.get_rng_state()
    draw(own, PROMPTS, guidance=2.0, steps=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in unet.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in unet.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in unet.parameters())
    assert own.vae.dtype == torch.bfloat16
    assert seen


def test_half_precision_draws_nearly_the_same(parts: Parts) -> None:
    full = draw(parts, PROMPTS[:1], guidance=2.0, steps=2).astype(int)
    half = draw(parts, PROMPTS[:1], guidance=2.0, steps=2, dtype=torch.bfloat16)
    assert np.abs(full - half).mean() < 8
    assert parts.unet.dtype == torch.float32


def test_a_sheet_holds_every_picture(parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "samples" / "000000001000.png"
    images = draw(parts, PROMPTS, guidance=2.0, steps=1)
    gallery([Row(prompt, [image]) for prompt, image in zip(PROMPTS, images, strict=True)], path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width > 64
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def plain(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((8, 8, 3), colour, np.uint8)


def places(path: Path, colour: tuple[int, int, int]) -> tuple[float, float, int]:
    """Return the mean column and row of a colour on a sheet, and how many pixels have it."""
    with Image.open(path) as image:
        found = (np.asarray(image.convert("RGB")) == colour).all(axis=2)
    rows, columns = found.nonzero()
    return float(columns.mean()), float(rows.mean()), len(rows)


def test_a_long_caption_stays_under_its_picture(tmp_path: Path) -> None:
    red, blue = (255, 0, 0), (0, 0, 255)
    gallery([Row("word " * 40, [plain(red)]), Row("short", [plain(blue)])], tmp_path / "sheet.jpg", across=1)
    gallery([Row("word " * 40, [plain(red)]), Row("short", [plain(blue)])], tmp_path / "sheet.png", across=1)
    with Image.open(tmp_path / "sheet.jpg") as image:
        assert image.format == "JPEG"
    (_, above, count), (_, below, _) = (places(tmp_path / "sheet.png", colour) for colour in (red, blue))
    assert count == 160 * 160
    assert below - above > 160 + 5 * 16
