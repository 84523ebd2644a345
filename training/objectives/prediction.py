"""Train a network to predict noise or velocity."""

from __future__ import annotations

from typing import Any

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
        noisy, text = self.noisy_inputs(piece, self.inputs, objective.caption_dropout)
        through = None
        if objective.skip_dropout:
            unet: Any = self.model.unet
            levels = len(unet.up_blocks)
            dropped = piece.dice.uniform() < objective.skip_dropout
            through = torch.where(dropped, 1 + piece.dice.integers(levels), 0)
        heard_from = nothing = None
        if objective.inner_captions:
            unet = self.model.unet
            muffled = piece.dice.uniform() < objective.inner_captions
            heard_from = torch.where(muffled, 1 + piece.dice.integers(len(unet.up_blocks) - 1), 0)
            nothing = self.inputs.empty_prompt().to(text.dtype)
        guess, _ = model(noisy.latents, noisy.steps, text, None, through, heard_from, nothing)
        return objectives.prediction_losses(
            guess, noisy.target, noisy.steps, self.inputs.schedule, objective.min_snr
        )
