"""Learn one subject from a few pictures while keeping its class (DreamBooth, Ruiz et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from training import objectives
from training.dreambooth import add_adapters, class_pairs, subject_pairs
from training.loop import Piece
from training.material import Material, Noisy
from training.parts import Parts, load_parts
from training.recipe import Recipe
from training.recipe_schema import DreamBooth
from training.taps import Tapped
from training.tasks import DiffusionTask, half_type, prepared


class DreamBoothTask(DiffusionTask):
    """A U-Net, with its text encoder or adapters, that learns a subject.

    An image of the run is a picture of the subject and one of its class.
    """

    def __init__(
        self, recipe: Recipe, parts: Parts, model: Tapped, material: Material, prior: Material | None
    ) -> None:
        """Take the subject's pictures in `material`, those of its class in `prior`."""
        super().__init__(recipe, parts, model, material)
        self.prior = prior

    def losses(self, model: nn.Module, piece: Piece) -> dict[str, Tensor]:
        assert isinstance(self.recipe.objective, DreamBooth)
        sides = [self.material] + ([self.prior] if self.prior else [])
        drawn = [self._draw(side, piece) for side in sides]
        noisy, texts = [one for one, _ in drawn], [text for _, text in drawn]
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

    def _draw(self, side: Material, piece: Piece) -> tuple[Noisy, Tensor]:
        examples = side.examples(piece)
        noisy = side.noisy(side.latents(examples, piece.dice), piece.dice)
        return noisy, examples.tokens if self.model.text_encoder is not None else side.text(examples)


def build_dreambooth(
    recipe: Recipe,
    *,
    folder: Path,
    accelerator: Accelerator,
    download: bool = False,
    say: Callable[[str], None] = print,
) -> DreamBoothTask:
    """Draw the pictures of the class, encode both kinds and prepare what learns."""
    objective = recipe.objective
    assert isinstance(objective, DreamBooth)
    assert recipe.teacher is not None  # the recipe's own check
    parts = load_parts(recipe.teacher, download=download)
    device, dtype = accelerator.device, half_type(accelerator)
    cache = folder.parent / "cache"
    prior = None
    # Whoever comes first draws, and the others wait at its lock: at a barrier they would run out of time.
    of_class = class_pairs(
        recipe, parts, folder, cache, device=device, dtype=dtype, download=download, say=say
    )
    of_subject = subject_pairs(recipe, parts, cache, device=device, say=say)
    settings = {"seed": recipe.schedule.seed, "flip": recipe.data.flip, "device": device, "dtype": dtype}
    if of_class is not None and objective.prior_weight:
        prior = Material(parts, of_class, **settings)
    material = Material(parts, of_subject, **settings)
    encoder = parts.text_encoder if objective.train_text_encoder else None
    model = Tapped(prepared(parts.unet, recipe), (), encoder)
    model.requires_grad_(True)
    if objective.lora is not None:
        add_adapters(parts, objective.lora, text_encoder=encoder is not None, seed=recipe.schedule.seed)
    return DreamBoothTask(recipe, parts, model, material, prior)
