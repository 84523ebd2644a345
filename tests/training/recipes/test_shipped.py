"""The recipes that come with the package: complete, honest about their figures, as published."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import pytest
from ruamel.yaml import YAML

from training.recipes.load import RECIPES, load_recipe, recipe_names
from training.recipes.schema import Recipe

BK_SDM = {
    "teacher": "CompVis/stable-diffusion-v1-4",
    "objective.kind": "distillation",
    "objective.pairing": "bk-sdm",
    "objective.weights": {"task": 1.0, "output": 1.0, "feature": 1.0},
    "objective.caption_dropout": 0.0,
    "data.resolution": 512,
    "data.flip": True,
    "schedule.steps": 50_000,
    "schedule.batch": 256,
    "schedule.micro_batch": 64,
    "optimizer.learning_rate": 5e-5,
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": 0,
    "optimizer.betas": (0.9, 0.999),
    "optimizer.weight_decay": 1e-2,
    "optimizer.clip": 1.0,
    "precision": "fp16",
}
DREAMBOOTH = {
    "objective.kind": "dreambooth",
    "objective.class_images": 200,
    "objective.class_model": "CompVis/stable-diffusion-v1-4",
    "objective.prior_weight": 1.0,
    "objective.train_text_encoder": True,
    "data.resolution": 512,
    "schedule.steps": 800,
    "schedule.batch": 1,
    "optimizer.schedule": "constant",
    "export.scheduler.class": "DPMSolverMultistepScheduler",
    "watch.sampling_steps": 25,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    **{
        f"bk-sdm-{name}{suffix}": BK_SDM | {"student.remove": name, "data.pairs": pairs}
        for name in ("base", "small", "tiny")
        for suffix, pairs in (("", 212_776), ("-2m", 2_256_472))
    },
    "tiny-sd": {
        "student.remove": "tiny",
        "objective.pairing": "segmind",
        "objective.weights": {"task": 1.0, "output": 0.5, "feature": 0.5},
        "data.resolution": 512,
        "schedule.steps": 125_000,
        "schedule.batch": 32 * 4,
        "schedule.micro_batch": 32,
        "optimizer.learning_rate": 1e-4,
        "precision": "fp16",
    },
    "portrait-finetuned": {
        "teacher": "segmind/tiny-sd",
        "student.remove": "none",
        "objective.kind": "prediction",
        "data.pairs": 7_000,
        "data.resolution": 768,
        "schedule.steps": 131_000,
        "schedule.batch": 32 * 4,
        "schedule.micro_batch": 32,
        "optimizer.learning_rate": 1e-4,
        "precision": "fp16",
    },
    "tiny-sd-lcm-6400": {
        "teacher": "segmind/tiny-sd",
        "objective.kind": "consistency",
        "objective.grid_steps": 50,
        "objective.guidance": (5.0, 15.0),
        "objective.target_decay": 0.95,
        "objective.huber": 1e-3,
        "objective.timestep_scaling": 10.0,
        "objective.sigma_data": 0.5,
        "objective.embedding": 256,
        "schedule.steps": 6_400,
        "optimizer.learning_rate": 1e-6,
        "optimizer.weight_decay": 0.0,
        "export.scheduler.class": "LCMScheduler",
        "watch.guidance": 8.0,
    },
    "dreambooth": DREAMBOOTH | {"objective.lora": None, "optimizer.learning_rate": 1e-6},
    "dreambooth-lora": DREAMBOOTH
    | {"objective.lora": {"rank": 16, "alpha": 27.0}, "optimizer.learning_rate": 1e-4},
}
"""What is known of each published system, written down anew from the project's sheet of facts."""


def numbers(recipe: Recipe) -> dict[str, float]:
    """Return every number of a recipe by its dotted key, defaults included; lists under one key."""
    found: dict[str, float] = {}

    def collect(value: Any, key: str) -> None:
        if isinstance(value, Mapping):
            for name, part in value.items():
                collect(part, f"{key}.{name}" if key else str(name))
        elif isinstance(value, list | tuple):
            for part in value:
                collect(part, key)
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[key] = value

    collect(recipe.model_dump(by_alias=True, exclude={"sources", "unstated"}), "")
    return found


def value(found: Any, key: str) -> Any:
    """Return what stands in nested mappings under a dotted key, None where there is nothing."""
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


@pytest.mark.parametrize("name", recipe_names())
def test_every_figure_has_a_source_or_a_reason(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    notes = recipe.sources.keys() | recipe.unstated.keys()
    parts = {key: key.split(".") for key in numbers(recipe)}
    bare = {
        key
        for key, words in parts.items()
        if not any(".".join(words[:length]) in notes for length in range(1, len(words) + 1))
    }
    # A default of zero means that something is not done; a zero that the file writes is a choice.
    written = YAML(typ="safe").load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    silent = {key for key in bare if numbers(recipe)[key] == 0 and value(written, key) is None}
    assert bare - silent == set()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_published_figures(name: str) -> None:
    recipe = load_recipe(name)
    found = recipe.model_dump(by_alias=True)
    assert {key: value(found, key) for key in PUBLISHED[name]} == PUBLISHED[name]
    assert recipe.export.license == "creativeml-openrail-m", "what is derived of Stable Diffusion keeps it"


@pytest.mark.parametrize(("suffix", "epochs"), [("", 60), ("-2m", 5.7)])
def test_bk_sdm_sees_its_pairs_as_often_as_published_and_averages(suffix: str, epochs: float) -> None:
    for size in ("base", "small", "tiny"):
        recipe = load_recipe(f"bk-sdm-{size}{suffix}")
        assert recipe.data.pairs is not None
        assert recipe.images / recipe.data.pairs == pytest.approx(epochs, rel=0.01)
        assert recipe.ema


def test_where_sources_disagree_both_are_told() -> None:
    assert {"1e-4", "1e-5"} <= set(
        re.findall(r"1e-\d", load_recipe("tiny-sd").sources["optimizer.learning_rate"])
    )
