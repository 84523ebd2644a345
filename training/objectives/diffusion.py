"""What all objectives that train a U-Net share: noisy inputs, text, validation and previews."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from training.data.batch import Examples
from training.objectives import losses as objectives
from training.objectives.inputs import Inputs, NoisyLatents
from training.recipes.schema import Recipe
from training.run.randomness import Dice
from training.run.task import Piece, Task
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
        from training.export.samples import Row, draw, gallery

        watch, device, dtype = self.recipe.watch, self.inputs.device, self.inputs.dtype
        if watch.prompts:
            steps, guidance = watch.sampling_steps, watch.guidance
            images = draw(
                self.parts, watch.prompts, guidance=guidance, steps=steps, device=device, dtype=dtype
            )
            gallery([Row(prompt, [image]) for prompt, image in zip(watch.prompts, images, strict=True)], path)

    def noisy_inputs(
        self,
        piece: Piece,
        inputs: Inputs,
        caption_dropout: float = 0.0,
        noisier_half: float | None = None,
    ) -> tuple[NoisyLatents, Tensor]:
        """Return the noisy latents of a piece, and its text, dropped from a share of the pictures."""
        examples, dice = inputs.examples(piece), piece.dice
        noisy = inputs.noisy(inputs.latents(examples, dice), dice, noisier_half)
        text = self.conditioning(examples)
        if caption_dropout:
            text = inputs.drop_captions(text, self.empty_prompt(), caption_dropout, dice)
        return noisy, text

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
