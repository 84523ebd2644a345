"""Distil a latent consistency model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from training.objectives import losses as objectives
from training.objectives.diffusion import DiffusionTask
from training.objectives.inputs import Inputs
from training.recipes.schema import Consistency, Recipe
from training.run.sharding import full
from training.run.task import Piece
from training.students.feature_taps import Denoiser, without_gradient
from training.students.networks import Parts


class ConsistencyTask(DiffusionTask):
    """Learn the end of the teacher's guided trajectory (latent consistency distillation)."""

    def __init__(
        self, recipe: Recipe, parts: Parts, model: Denoiser, inputs: Inputs, teacher: Denoiser
    ) -> None:
        super().__init__(recipe, parts, model, inputs)
        self.teacher = teacher
        self.target = copy.deepcopy(model).eval().requires_grad_(False).to(inputs.device)
        self._grid = objectives.ddim_grid(len(inputs.schedule), self._objective.grid_steps)

    @property
    def _objective(self) -> Consistency:
        assert isinstance(self.recipe.objective, Consistency)
        return self.recipe.objective

    def losses(self, model: nn.Module, piece: Piece) -> dict[str, Tensor]:
        objective, schedule, dice = self._objective, self.inputs.schedule, piece.dice
        examples = self.inputs.examples(piece)
        clean = self.inputs.latents(examples, dice)
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
        dtype = self.inputs.dtype
        nothing = self.inputs.empty_prompt().to(dtype).expand(len(text), -1, -1)
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
        middle = torch.full((count,), sum(self._objective.guidance) / 2, device=self.inputs.device)
        return objectives.guidance_embedding(middle, self._objective.embedding)
