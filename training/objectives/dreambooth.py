"""Learn one subject from a few pictures while keeping its class (DreamBooth, Ruiz et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.objectives import losses as objectives
from training.objectives.diffusion import DiffusionTask
from training.objectives.inputs import Inputs
from training.recipes.schema import DreamBooth, Recipe
from training.run.task import Piece
from training.students.feature_taps import Denoiser
from training.students.networks import Parts


class DreamBoothTask(DiffusionTask):
    """A U-Net, with its text encoder or adapters, that learns a subject.

    An image of the run is a picture of the subject and one of its class.
    """

    def __init__(
        self, recipe: Recipe, parts: Parts, model: Denoiser, inputs: Inputs, prior: Inputs | None
    ) -> None:
        """Take the subject's pictures in `inputs`, those of its class in `prior`."""
        super().__init__(recipe, parts, model, inputs)
        self.prior = prior

    def losses(self, model: nn.Module, piece: Piece) -> dict[str, Tensor]:
        assert isinstance(self.recipe.objective, DreamBooth)
        kinds = [self.inputs] + ([self.prior] if self.prior else [])
        noisy, texts = zip(*(self.noisy_inputs(piece, kind) for kind in kinds), strict=True)
        guess, _ = model(
            torch.cat([one.latents for one in noisy]),
            torch.cat([one.steps for one in noisy]),
            torch.cat(texts),
        )
        target = torch.cat([one.target for one in noisy])
        if self.prior is None:
            return {"loss": objectives.squared_error(guess, target)}
        is_subject = torch.arange(len(guess), device=guess.device) < piece.count
        return objectives.prior_preservation_losses(
            guess, target, is_subject, self.recipe.objective.prior_weight
        )

    def close(self) -> None:
        super().close()
        if self.prior:
            self.prior.close()
