"""Build what a recipe trains: its networks, its data and its objective."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from training.data.batch import Examples
from training.objectives import losses as objectives
from training.objectives.inputs import Material
from training.recipes.load import Recipe
from training.run.randomness import Dice
from training.run.task import Task
from training.students.feature_taps import Tapped
from training.students.networks import Parts

VALIDATION_STEPS = (50, 250, 450, 650, 850)
"""Where the loss is measured at intervals: fixed timesteps, rows and noise, so that the figures compare."""

Say = Callable[[str], None]


class DiffusionTask(Task):
    """A U-Net that learns to predict noise or velocity, and what all objectives share."""

    def __init__(self, recipe: Recipe, parts: Parts, model: Tapped, material: Material) -> None:
        self.recipe, self.parts, self.model, self.material = recipe, parts, model, material

    def close(self) -> None:
        self.material.close()

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return the error of the prediction at fixed timesteps, on fixed pairs with fixed noise."""
        material, device = self.material, self.material.device
        count = min(self.recipe.watch.validation_rows, len(material.pairs))
        found = dict.fromkeys((f"error_at_{step}" for step in VALIDATION_STEPS), 0.0)
        for first in range(0, count, self.recipe.schedule.micro_batch):
            rows = range(first, min(first + self.recipe.schedule.micro_batch, count))
            examples = material.pairs.take(rows).to(device)
            dice = Dice(self.recipe.schedule.seed, 0, count, first, len(rows), device)
            clean = material.latents(examples, dice)
            noise, text = dice.normal(*clean.shape[1:]), self.conditioning(examples)
            for step in VALIDATION_STEPS:
                steps = torch.full((len(rows),), step, device=device)
                noisy = material.schedule.add_noise(clean, noise, steps)
                guess, _ = model(noisy, steps, text, self.guidance(len(rows)))
                error = objectives.squared_error(guess, material.schedule.target(clean, noise, steps))
                found[f"error_at_{step}"] += float(error) * len(rows) / count
        return found

    def preview(self, model: nn.Module, path: Path) -> None:
        from training.export.samples import sample_sheet

        watch = self.recipe.watch
        if not watch.prompts:
            return
        sample_sheet(
            self.sampled(),
            watch.prompts,
            path,
            guidance=watch.guidance,
            steps=watch.sampling_steps,
            device=self.material.device,
            dtype=self.material.dtype,
        )

    def sampled(self) -> Parts:
        """Return the parts that samples are drawn with."""
        return self.parts

    def conditioning(self, examples: Examples) -> Tensor:
        """Return what the model takes as text: tokens where its text encoder learns, else states."""
        return examples.tokens if self.model.text_encoder is not None else self.material.text(examples)

    def nothing(self) -> Tensor:
        """Return what the model takes as the empty prompt."""
        if self.model.text_encoder is not None:
            return self.material.nothing_tokens()
        return self.material.nothing()

    def guidance(self, count: int) -> Tensor | None:
        """Return the guidance that the model is validated at."""
        return None


def half_type(accelerator: Accelerator) -> torch.dtype:
    """Return the type of networks that do not learn."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)


def prepared(unet: Any, recipe: Recipe) -> Any:
    """Let a U-Net learn, as the recipe's speed settings say."""
    unet.requires_grad_(True).train()
    if recipe.speed.channels_last:
        unet.to(memory_format=torch.channels_last)
    if recipe.speed.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet
