"""Measure what the embedded teacher and its extractors reach: `python -m training.embedded.check`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from torch import Tensor

from pytest_sdbench.features import classifier
from pytest_sdbench.protocols import scenes
from training.embedded.classifier import object_accuracy
from training.embedded.clip import near_miss_accuracy
from training.embedded.vae import psnr

ROOT = Path(__file__).parents[2]


def draw(
    pipeline: StableDiffusionPipeline,
    captions: Sequence[str],
    *,
    guidance: float,
    steps: int = 25,
    batch: int = 32,
) -> Tensor:
    """Sample one picture per caption, each from its own seed: uint8 [N, 3, 64, 64]."""
    pictures = []
    for first in range(0, len(captions), batch):
        some = list(captions[first : first + batch])
        generators = [torch.Generator().manual_seed(first + row) for row in range(len(some))]
        drawn = pipeline(
            some, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="np"
        ).images
        pictures.append(torch.from_numpy((drawn * 255).round().astype(np.uint8)).permute(0, 3, 1, 2))
    return torch.cat(pictures)


def contact_sheet(drawn: Sequence[scenes.Scene], generated: Tensor, path: Path) -> None:
    """Write a sheet of captioned pairs, real left and generated right, four pairs a row."""
    pair, height, columns = 2 * 128 + 8, 128 + 34, 4
    rows = -(-len(drawn) // columns)
    sheet = Image.new("RGB", (columns * (pair + 16) + 16, rows * (height + 10) + 10), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (one, picture) in enumerate(zip(drawn, generated, strict=True)):
        left, top = 16 + place % columns * (pair + 16), 10 + place // columns * (height + 10)
        for offset, pixels in ((0, scenes.render(one)), (136, picture.permute(1, 2, 0).numpy())):
            sheet.paste(
                Image.fromarray(pixels).resize((128, 128), Image.Resampling.BICUBIC), (left + offset, top)
            )
        for line, words in enumerate(_wrap(one.caption, 46)):
            pen.text((left, top + 129 + 11 * line), words, fill="black", font_size=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def main(arguments: list[str] | None = None) -> None:
    """Print the figures as JSON, and write the contact sheet."""
    parser = argparse.ArgumentParser(prog="python -m training.embedded.check", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "reference" / "checkpoints")
    parser.add_argument("--guidance", type=float, nargs="+", default=[2.0])
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--scenes", type=int, default=512, help="real scenes for the VAE and the classifier")
    parser.add_argument(
        "--sheet", type=Path, help="contact sheet of the first 64 prompts, at the first guidance"
    )
    parser.add_argument("--only-samples", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    reader = classifier.load_classifier(options.folder / classifier.NAME)
    pipeline = StableDiffusionPipeline.from_pretrained(
        options.folder / "scenes-sd", torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    figures: dict[str, float] = {}
    unseen = scenes.EVALUATION[-options.scenes :]
    if not options.only_samples:
        figures["vae_psnr_db"] = psnr(pipeline.vae, unseen)
        figures["classifier_objects_real"] = object_accuracy(reader, unseen)
        if (options.folder / "scenes-clip").is_dir():
            figures["clip_near_miss"] = near_miss_accuracy(options.folder / "scenes-clip", unseen[:256])

    drawn = [scenes.scene(index) for index in scenes.EVALUATION[: options.prompts]]
    for number, guidance in enumerate(options.guidance):
        generated = draw(pipeline, [one.caption for one in drawn], guidance=guidance)
        hits = classifier.object_hits(reader, generated, drawn)
        figures[f"sample_objects_guidance_{guidance:g}"] = float(hits.float().mean())
        if options.sheet and number == 0:
            contact_sheet(drawn[:64], generated[:64], options.sheet)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}, indent=2))


def _wrap(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines[:3]


if __name__ == "__main__":
    main()
