"""Build what a recipe trains: its networks, its data and its objective."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from training import objectives
from training.data.batch import Examples
from training.dice import Dice
from training.loop import Piece, Task
from training.material import Material
from training.parts import Parts
from training.recipe import Recipe
from training.recipe_schema import Consistency, Distillation, Prediction
from training.state import full
from training.taps import Tapped, without_gradient

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


class PredictionTask(DiffusionTask):
    """Learn from noise alone: training from scratch and fine-tuning."""

    def losses(self, model: nn.Module, piece: Piece) -> dict[str, Tensor]:
        objective = self.recipe.objective
        assert isinstance(objective, Prediction)
        examples, dice = self.material.examples(piece), piece.dice
        noisy = self.material.noisy(self.material.latents(examples, dice), dice)
        text = self.conditioning(examples)
        if objective.caption_dropout:
            text = self.material.without_captions(text, self.nothing(), objective.caption_dropout, dice)
        guess, _ = model(noisy.latents, noisy.steps, text)
        return objectives.prediction_losses(
            guess, noisy.target, noisy.steps, self.material.schedule, objective.min_snr
        )


class DistillationTask(DiffusionTask):
    """Learn from noise, from the teacher's prediction and from its features."""

    def __init__(
        self, recipe: Recipe, parts: Parts, model: Tapped, material: Material, teacher: Tapped
    ) -> None:
        super().__init__(recipe, parts, model, material)
        self.teacher = teacher

    def losses(self, model: nn.Module, piece: Piece) -> dict[str, Tensor]:
        objective = self.recipe.objective
        assert isinstance(objective, Distillation)
        weights = objectives.DistillationWeights(
            objective.weights.task, objective.weights.output, objective.weights.feature
        )
        examples, dice = self.material.examples(piece), piece.dice
        noisy = self.material.noisy(self.material.latents(examples, dice), dice)
        text = self.conditioning(examples)
        if objective.caption_dropout:
            text = self.material.without_captions(text, self.nothing(), objective.caption_dropout, dice)
        wanted: Tensor | None = None
        wanted_features: tuple[Tensor, ...] = ()
        if weights.output or weights.feature:
            dtype = self.material.dtype
            wanted, wanted_features = without_gradient(
                self.teacher, noisy.latents.to(dtype), noisy.steps, text.to(dtype)
            )
        guess, features = model(noisy.latents, noisy.steps, text)
        return objectives.distillation_losses(guess, noisy.target, features, wanted, wanted_features, weights)


class ConsistencyTask(DiffusionTask):
    """Learn the end of the teacher's guided trajectory (latent consistency distillation)."""

    def __init__(
        self, recipe: Recipe, parts: Parts, model: Tapped, material: Material, teacher: Tapped
    ) -> None:
        super().__init__(recipe, parts, model, material)
        self.teacher = teacher
        self.target = copy.deepcopy(model).eval().requires_grad_(False).to(material.device)
        self._grid = objectives.ddim_grid(len(material.schedule), self._objective.grid_steps)

    @property
    def _objective(self) -> Consistency:
        assert isinstance(self.recipe.objective, Consistency)
        return self.recipe.objective

    def losses(self, model: nn.Module, piece: Piece) -> dict[str, Tensor]:
        objective, schedule, dice = self._objective, self.material.schedule, piece.dice
        examples = self.material.examples(piece)
        clean = self.material.latents(examples, dice)
        noise = dice.normal(*clean.shape[1:])
        grid = self._grid.to(clean.device)
        steps = grid[dice.integers(len(grid))]
        earlier = (steps - len(schedule) // objective.grid_steps).clamp(min=0)
        low, high = objective.guidance
        guidance = low + (high - low) * dice.uniform()
        embedded = objectives.guidance_embedding(guidance, objective.embedding)
        noisy = schedule.add_noise(clean, noise, steps)
        text = self.conditioning(examples)

        # One call of the teacher for both branches of the guidance.
        dtype = self.material.dtype
        nothing = self.material.nothing().to(dtype).expand(len(text), -1, -1)
        both, _ = without_gradient(
            self.teacher,
            torch.cat([noisy, noisy]).to(dtype),
            torch.cat([steps, steps]),
            torch.cat([text.to(dtype), nothing]),
        )
        output, unconditional = both.chunk(2)
        before = objectives.guided_ddim_step(noisy, steps, earlier, output, unconditional, guidance, schedule)
        # The target keeps float32 weights to follow, and computes as the student does.
        with torch.autocast(clean.device.type, dtype, enabled=dtype != torch.float32):
            aimed, _ = without_gradient(self.target, before, earlier, text.float(), embedded)
        guess, _ = model(noisy, steps, text, embedded)
        settings = {"timestep_scaling": objective.timestep_scaling, "sigma_data": objective.sigma_data}
        mine = objectives.consistency_function(guess, noisy, steps, schedule, **settings)
        wanted = objectives.consistency_function(aimed, before, earlier, schedule, **settings)
        return {"loss": objectives.pseudo_huber(mine, wanted, objective.huber)}

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """Let the target follow the student."""
        new = dict(model.named_parameters())
        pairs = [(value, new[name]) for name, value in self.target.named_parameters()]
        torch._foreach_lerp_(
            [value for value, _ in pairs],
            [full(value.detach()) for _, value in pairs],
            1 - self._objective.target_decay,
        )

    def state(self) -> dict[str, Any]:
        return {"target": self.target.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if "target" in state:
            self.target.load_state_dict(state["target"])

    def guidance(self, count: int) -> Tensor:
        middle = torch.full((count,), sum(self._objective.guidance) / 2, device=self.material.device)
        return objectives.guidance_embedding(middle, self._objective.embedding)


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
