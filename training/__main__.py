"""Run one stage of training: `python -m training vae`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from training import loop

CHECKPOINTS = Path(__file__).parents[1] / "reference" / "checkpoints"


def build(recipe: dict[str, Any]) -> loop.Stage:
    """Build the stage that a recipe names."""
    # Each stage imports heavy libraries that the others do not need.
    if recipe["stage"] == "vae":
        from training.vae import VaeStage

        return VaeStage(recipe)
    if recipe["stage"] == "teacher":
        from training.teacher import TeacherStage

        return TeacherStage(recipe)
    if recipe["stage"] == "classifier":
        from training.classifier import ClassifierStage

        return ClassifierStage(recipe)
    if recipe["stage"] == "clip":
        from training.clip import ClipStage

        return ClipStage(recipe)
    raise ValueError(f"recipe names the unknown stage {recipe['stage']!r}; known: vae, teacher, classifier, clip")


def main(arguments: list[str] | None = None) -> None:
    """Train a stage, or export what it has learned so far."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("recipe", help="a recipe of training/recipes (vae, classifier, clip, teacher), or a file")
    parser.add_argument("--images", type=int, help="planned number of images, instead of the recipe's")
    parser.add_argument("--stop-at", type=int, help="save and stop after this many images")
    parser.add_argument("--export", action="store_true", help="only export what is trained so far")
    parser.add_argument("--folder", type=Path, default=CHECKPOINTS, help="where exports go")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    recipe = loop.read_recipe(options.recipe)
    schedule = loop.Schedule(**recipe["schedule"])
    if options.images:
        schedule = loop.Schedule(**{**recipe["schedule"], "images": options.images})
    stage = build(recipe)
    folder = loop.cache_folder(recipe.get("name", recipe["stage"]))
    if options.export:
        loop.load_trained(stage, schedule, folder)
    else:
        loop.train(stage, schedule, folder, stop_at=options.stop_at, say=lambda line: print(line, flush=True))
    stage.export(options.folder)


if __name__ == "__main__":
    main()
