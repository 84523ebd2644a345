"""Measure what the embedded teacher and its extractors reach: `python -m training.embedded.check`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from pytest_sdbench.features import classifier
from pytest_sdbench.protocols import scenes
from training.embedded.classifier import object_accuracy
from training.embedded.clip import near_miss_accuracy
from training.embedded.vae import psnr
from training.export.samples import Row, draw, gallery
from training.students.networks import load_parts

ROOT = Path(__file__).parents[2]


def main(arguments: list[str] | None = None) -> None:
    """Print the figures as JSON, and write the contact sheet."""
    parser = argparse.ArgumentParser(prog="python -m training.embedded.check", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "reference" / "checkpoints")
    parser.add_argument("--guidance", type=float, nargs="+", default=[2.0])
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--scenes", type=int, default=512, help="real scenes for the VAE and the classifier")
    parser.add_argument(
        "--sheet",
        type=Path,
        help="sheet of the first 64 prompts: real scenes beside samples at the first guidance",
    )
    parser.add_argument("--only-samples", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    reader = classifier.load_classifier(options.folder / classifier.NAME)
    parts = load_parts(str(options.folder / "scenes-sd"))
    figures: dict[str, float] = {}
    tables: dict[str, dict[str, tuple[int, int]]] = {}
    unseen = scenes.EVALUATION[-options.scenes :]
    if not options.only_samples:
        figures["vae_psnr_db"] = psnr(parts.vae, unseen)
        figures["classifier_objects_real"] = object_accuracy(reader, unseen)
        if (options.folder / "scenes-clip").is_dir():
            figures["clip_near_miss"] = near_miss_accuracy(options.folder / "scenes-clip", unseen[:256])

    drawn = [scenes.scene(index) for index in scenes.EVALUATION[: options.prompts]]
    for number, guidance in enumerate(options.guidance):
        pictures = draw(parts, [one.caption for one in drawn], guidance=guidance, steps=25)
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        hits = classifier.object_hits(reader, images, drawn)
        figures[f"sample_objects_guidance_{guidance:g}"] = float(hits.float().mean())
        tables[f"sample_names_guidance_{guidance:g}"] = classifier.name_hits(reader, images, drawn)
        if options.sheet and number == 0:
            pairs = [
                Row(one.caption, [scenes.render(one), picture])
                for one, picture in zip(drawn[:64], pictures[:64], strict=True)
            ]
            gallery(pairs, options.sheet, across=4, cell=128)
    rounded = {name: round(value, 4) for name, value in figures.items()}
    # Of every name, objects read right and objects drawn; a line each would fill the screen.
    named = {
        table: ", ".join(f"{name} {right}/{of}" for name, (right, of) in rows.items())
        for table, rows in tables.items()
    }
    print(json.dumps({**rounded, **named}, indent=2))


if __name__ == "__main__":
    main()
