"""Train a network to predict noise or velocity."""

from __future__ import annotations

import torch
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
        noisy, text = self.noisy_inputs(piece, self.inputs, objective.caption_dropout, objective.noisier_half)
        kept = piece.dice.uniform() >= objective.dropped_skips if objective.dropped_skips else None
        guess, read = model(noisy.latents, noisy.steps, text, None, kept)
        found = objectives.prediction_losses(
            guess, noisy.target, noisy.steps, self.inputs.schedule, objective.min_snr
        )
        if read:
            high, wide = noisy.clean.shape[2:]  # where these do not halve evenly, what levels cover juts out
            errors = [objectives.squared_error(each[..., :high, :wide], noisy.clean) for each in read]
            found["readout"] = torch.stack(errors).mean()
            found["loss"] = found["loss"] + objective.readout * found["readout"]
        return found
