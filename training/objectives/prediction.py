"""Train a network to predict noise or velocity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from training.objectives import losses as objectives
from training.objectives.diffusion import DiffusionTask
from training.recipes.schema import Prediction
from training.run.task import Piece
from training.students.feature_taps import Hearing


class PredictionTask(DiffusionTask):
    """Learn from noise alone: training from scratch and fine-tuning."""

    def losses(self, model: nn.Module, piece: Piece) -> dict[str, Tensor]:
        objective = self.recipe.objective
        assert isinstance(objective, Prediction)
        noisy, text = self.noisy_inputs(piece, self.inputs, objective.caption_dropout, objective.noisier_half)
        guess, _ = model(noisy.latents, noisy.steps, text, None, self._hearing(piece, objective))
        return objectives.prediction_losses(
            guess, noisy.target, noisy.steps, self.inputs.schedule, objective.min_snr
        )

    def _hearing(self, piece: Piece, objective: Prediction) -> Hearing | None:
        """Draw which levels hear the captions of a piece; None where all do."""
        if not objective.inner_captions:
            return None
        unet: Any = self.model.unet
        muffled = piece.dice.uniform() < objective.inner_captions
        outermost = 1 + piece.dice.integers(len(unet.up_blocks) - 1)
        return Hearing(torch.where(muffled, outermost, 0), self.empty_prompt())
