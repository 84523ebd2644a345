"""Train a network to predict noise or velocity."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn

from pytest_sdbench.protocols import scenes
from training.objectives import losses as objectives
from training.objectives.diffusion import DiffusionTask
from training.objectives.outline import Outline
from training.recipes.schema import Prediction
from training.run.task import Piece
from training.students.feature_taps import Hearing


class PredictionTask(DiffusionTask):
    """Learn from noise alone: training from scratch and fine-tuning."""

    def losses(self, model: nn.Module, piece: Piece) -> dict[str, Tensor]:
        objective = self.recipe.objective
        assert isinstance(objective, Prediction)
        noisy, text = self.noisy_inputs(piece, self.inputs, objective.caption_dropout, objective.noisier_half)
        kept = piece.dice.uniform() >= objective.dropped_skips if objective.dropped_skips else None
        guess, read = model(noisy.latents, noisy.steps, text, None, kept, self._hearing(piece, text))
        found = objectives.prediction_losses(
            guess, noisy.target, noisy.steps, self.inputs.schedule, objective.min_snr
        )
        if read:
            high, wide = noisy.clean.shape[2:]  # where these do not halve evenly, what levels cover juts out
            errors = [objectives.squared_error(each[..., :high, :wide], noisy.clean) for each in read]
            found["readout"] = torch.stack(errors).mean()
            found["loss"] = found["loss"] + objective.readout * found["readout"]
        return found

    def _hearing(self, piece: Piece, tokens: Tensor) -> Hearing | None:
        """Draw in which pictures the mid block alone hears whole captions; None where all always do."""
        share = self.recipe.objective.inner_captions if isinstance(self.recipe.objective, Prediction) else 0
        if not share:
            return None
        return Hearing(self._outline(tokens), piece.dice.uniform() >= share)

    @cached_property
    def _outline(self) -> Outline:
        return Outline(self.parts.tokenizer, scenes.NAMES, scenes.COLOURS)
