"""Train a network to predict noise or velocity."""

from __future__ import annotations

from torch import Tensor, nn

from training.objectives import losses as objectives
from training.objectives.diffusion import DiffusionTask
from training.recipes.schema import Prediction
from training.run.task import Piece


class PredictionTask(DiffusionTask):
    """Learn from noise alone: training from scratch and fine-tuning."""

    def losses(self, model: nn.Module, piece: Piece) -> dict[str, Tensor]:
        objective = self.recipe.objective
        assert isinstance(objective, Prediction)
        examples, dice = self.inputs.examples(piece), piece.dice
        noisy = self.inputs.noisy(self.inputs.latents(examples, dice), dice)
        text = self.conditioning(examples)
        if objective.caption_dropout:
            text = self.inputs.drop_captions(text, self.empty_prompt(), objective.caption_dropout, dice)
        guess, _ = model(noisy.latents, noisy.steps, text)
        return objectives.prediction_losses(
            guess, noisy.target, noisy.steps, self.inputs.schedule, objective.min_snr
        )
