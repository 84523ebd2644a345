"""Distil a student from its teacher: outputs and features."""

from __future__ import annotations

from torch import Tensor, nn

from training.objectives import losses as objectives
from training.objectives.diffusion import DiffusionTask
from training.objectives.inputs import Inputs
from training.recipes.schema import Distillation, Recipe
from training.run.task import Piece
from training.students.feature_taps import Denoiser, without_gradient
from training.students.networks import Parts


class DistillationTask(DiffusionTask):
    """Learn from noise, from the teacher's prediction and from its features."""

    def __init__(
        self, recipe: Recipe, parts: Parts, model: Denoiser, inputs: Inputs, teacher: Denoiser
    ) -> None:
        super().__init__(recipe, parts, model, inputs)
        self.teacher = teacher

    def losses(self, model: nn.Module, piece: Piece) -> dict[str, Tensor]:
        objective = self.recipe.objective
        assert isinstance(objective, Distillation)
        weights = objective.weights
        noisy, text = self.noisy_inputs(piece, self.inputs, objective.caption_dropout)
        wanted: Tensor | None = None
        wanted_features: tuple[Tensor, ...] = ()
        if weights.output or weights.feature:
            dtype = self.inputs.dtype
            wanted, wanted_features = without_gradient(
                self.teacher, noisy.latents.to(dtype), noisy.steps, text.to(dtype)
            )
        guess, features = model(noisy.latents, noisy.steps, text)
        return objectives.distillation_losses(guess, noisy.target, features, wanted, wanted_features, weights)
