"""Run one stage of training: `python -m training vae`.

Two processes of one thread each train faster than one process with two threads on a busy CPU:
`python -m torch.distributed.run --nproc-per-node 2 -m training teacher --threads 1`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from torch import distributed

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
    raise ValueError(
        f"recipe names the unknown stage {recipe['stage']!r}; known: vae, teacher, classifier, clip"
    )


def _join_group() -> int:
    """Join the process group that torch.distributed.run announces, if any; return this process's rank."""
    if "WORLD_SIZE" not in os.environ:
        return 0
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    if hasattr(os, "sched_setaffinity"):
        # One core each: processes that wait for each other lose most when they are moved about.
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    return rank


def main(arguments: list[str] | None = None) -> None:
    """Train a stage, or export what it has learned so far."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument(
        "recipe", help="a recipe of training/recipes (vae, classifier, clip, teacher), or a file"
    )
    parser.add_argument("--images", type=int, help="planned number of images, instead of the recipe's")
    parser.add_argument("--stop-at", type=int, help="save and stop after this many images")
    parser.add_argument("--export", action="store_true", help="only export what is trained so far")
    parser.add_argument("--folder", type=Path, default=CHECKPOINTS, help="where exports go")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    rank = _join_group()
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
    if rank == 0:
        stage.export(options.folder)
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
