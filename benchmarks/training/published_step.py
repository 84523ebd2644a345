"""The training step as the published BK-SDM script runs it, written down plainly and apart from our own loop.

Source: how the script of BK-SDM behaves, which is diffusers' text-to-image example with a teacher: the VAE
and the text encoder run in every step, the student keeps no activations, everything is eager, contiguous and
waits for its losses, optimiser and average are what their libraries give by default. One thing is newer than
the script: diffusers' gradient checkpointing is no longer reentrant, so all feature losses have gradients.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn import functional

from benchmarks.training.scenario import Scenario
from training.data.shuffle import Order
from training.recipes.schema import Recipe
from training.run.randomness import Dice
from training.students.block_removal import build_student
from training.students.feature_taps import feature_pairs


class PublishedStep:
    """Student, teacher, frozen networks, optimiser and average of the published script."""

    def __init__(self, scenario: Scenario, accelerator: Accelerator) -> None:
        """Take the networks and pictures of a scenario."""
        recipe, parts, objective = scenario.recipe, scenario.parts, scenario.objective
        device, half = scenario.device, scenario.half
        self.scenario, self.accelerator, self.seen = scenario, accelerator, 0
        self.losses: dict[str, float] = {}
        self.vae = copy.deepcopy(parts.vae).to(device, half)
        self.text_encoder = copy.deepcopy(parts.text_encoder).to(device, half)
        self.teacher = copy.deepcopy(parts.unet).to(device, half).requires_grad_(False).eval()
        student: Any = build_student(
            parts.unet, recipe.student.remove, init=recipe.student.init, seed=recipe.schedule.seed
        )
        student.enable_gradient_checkpointing()
        student.train()
        self.noise_scheduler = DDPMScheduler.from_config(parts.scheduler.config)
        self.student, self.optimizer = accelerator.prepare(student, adamw(recipe, student.parameters()))
        self.networks = [self.vae, self.text_encoder, self.teacher, self.student]
        self.average = EMAModel(self.student.parameters(), decay=recipe.ema.decay) if recipe.ema else None
        pairs = feature_pairs(objective.pairing, recipe.student.remove) if objective.weights.feature else ()
        self._of_teacher = _listen(self.teacher, [theirs for theirs, _ in pairs])
        self._of_student = _listen(self.student, [mine for _, mine in pairs])
        self._pairs, self._order = pairs, Order((len(scenario.pixels),), recipe.schedule.seed)
        self._tokens = torch.from_numpy(scenario.cached.tokens).long().to(device)

    def step(self) -> None:
        """Take one step: as many micro-batches as the recipe says, then the optimiser and the average."""
        recipe, weights, accelerator = self.scenario.recipe, self.scenario.objective.weights, self.accelerator
        batch, micro = recipe.schedule.batch, min(recipe.schedule.micro_batch, recipe.schedule.batch)
        parts = batch // micro
        scaling, half = self.vae.config.scaling_factor, self.scenario.half
        found: dict[str, float] = {}
        for part in range(parts):
            rows = self._order.rows(self.seen + part * micro, micro)
            dice = Dice(recipe.schedule.seed, self.seen, batch, part * micro, micro, self.scenario.device)
            with torch.no_grad():
                posterior = self.vae.encode(self.scenario.pixels[rows].to(half)).latent_dist
                mean, deviation = posterior.mean.float(), posterior.std.float()
                latents = (mean + deviation * dice.normal(*mean.shape[1:])) * scaling
                text = self.text_encoder(self._tokens[rows]).last_hidden_state
            noise = dice.normal(*latents.shape[1:])
            steps = dice.integers(self.noise_scheduler.config.num_train_timesteps)
            noisy = self.noise_scheduler.add_noise(latents, noise, steps)
            with torch.no_grad():
                wanted = self.teacher(noisy.to(half), steps, text).sample
            guess = self.student(noisy, steps, text).sample

            task = functional.mse_loss(guess.float(), noise.float())
            output = functional.mse_loss(guess.float(), wanted.float())
            errors = [
                functional.mse_loss(self._of_student[mine].float(), self._of_teacher[theirs].float())
                for theirs, mine in self._pairs
            ]
            feature = torch.stack(errors).sum() if errors else torch.zeros((), device=task.device)
            loss = weights.task * task + weights.output * output + weights.feature * feature
            for name, value in {"loss": loss, "task": task, "output": output, "feature": feature}.items():
                # The script gathers and reads every loss in every step: the host waits for the device.
                mean_loss = accelerator.gather(value.detach().repeat(micro)).mean()
                found[name] = found.get(name, 0.0) + mean_loss.item() / parts
            accelerator.backward(loss / parts)
        accelerator.clip_grad_norm_(self.student.parameters(), recipe.optimizer.clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.step(self.student.parameters())
        self.seen += batch
        self.losses = found


def adamw(recipe: Recipe, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """Return AdamW with the recipe's figures and torch's own choice of implementation."""
    settings = recipe.optimizer
    return torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        eps=settings.epsilon,
    )


def _listen(unet: torch.nn.Module, layers: list[str]) -> dict[str, Tensor]:
    """Return a dictionary that holds the last output of each of these layers."""
    heard: dict[str, Tensor] = {}

    def keep(name: str, _module: Any, _inputs: Any, output: Any) -> None:
        heard[name] = output[0] if isinstance(output, tuple) else output

    for name in layers:
        unet.get_submodule(name).register_forward_hook(partial(keep, name))
    return heard
