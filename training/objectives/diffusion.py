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
from training.objectives.inputs import Inputs
from training.recipes.schema import Recipe
from training.run.randomness import Dice
from training.run.task import Task
from training.students.feature_taps import Denoiser
from training.students.networks import Parts

VALIDATION_STEPS = (50, 250, 450, 650, 850)
"""Where the loss is measured at intervals: fixed timesteps, rows and noise, so that the figures compare."""

Say = Callable[[str], None]


class DiffusionTask(Task):
    """A U-Net that learns to predict noise or velocity, and what all objectives share."""

    def __init__(self, recipe: Recipe, parts: Parts, model: Denoiser, inputs: Inputs) -> None:
        self.recipe, self.parts, self.model, self.inputs = recipe, parts, model, inputs

    def close(self) -> None:
        self.inputs.close()

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return the error of the prediction at fixed timesteps, on fixed pairs with fixed noise."""
        inputs, device = self.inputs, self.inputs.device
        count = min(self.recipe.watch.validation_rows, len(inputs.pairs))
        found = dict.fromkeys((f"error_at_{step}" for step in VALIDATION_STEPS), 0.0)
        for first in range(0, count, self.recipe.schedule.micro_batch):
            rows = range(first, min(first + self.recipe.schedule.micro_batch, count))
            examples = inputs.pairs.take(rows).to(device)
            dice = Dice(self.recipe.schedule.seed, 0, count, first, len(rows), device)
            clean = inputs.latents(examples, dice)
            noise, text = dice.normal(*clean.shape[1:]), self.conditioning(examples)
            for step in VALIDATION_STEPS:
                steps = torch.full((len(rows),), step, device=device)
                noisy = inputs.schedule.add_noise(clean, noise, steps)
                guess, _ = model(noisy, steps, text, self.guidance(len(rows)))
                error = objectives.squared_error(guess, inputs.schedule.target(clean, noise, steps))
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
            device=self.inputs.device,
            dtype=self.inputs.dtype,
        )

    def sampled(self) -> Parts:
        """Return the parts that samples are drawn with."""
        return self.parts

    def conditioning(self, examples: Examples) -> Tensor:
        """Return what the model takes as text: tokens where its text encoder learns, else states."""
        return examples.tokens if self.model.text_encoder is not None else self.inputs.text(examples)

    def empty_prompt(self) -> Tensor:
        """Return what the model takes as the empty prompt."""
        if self.model.text_encoder is not None:
            return self.inputs.empty_tokens()
        return self.inputs.empty_prompt()

    def guidance(self, count: int) -> Tensor | None:
        """Return the guidance that the model is validated at."""
        return None


def half_type(accelerator: Accelerator) -> torch.dtype:
    """Return the type of networks that do not learn."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)


def prepare_unet(unet: Any, recipe: Recipe) -> Any:
    """Let a U-Net learn, as the recipe's speed settings say."""
    unet.requires_grad_(True).train()
    if recipe.speed.channels_last:
        unet.to(memory_format=torch.channels_last)
    if recipe.speed.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet
