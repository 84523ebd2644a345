"""Take one step: the gradient of a global batch, summed over micro-batches and processes."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from training.errors import TrainingError
from training.recipes.schema import Recipe
from training.run.ema import Average
from training.run.randomness import Dice
from training.run.sharding import full
from training.run.status import Meter
from training.run.task import Piece, Task


@dataclass(frozen=True)
class Plan:
    """How a step's global batch is cut: `parts` times `world` times `micro` images."""

    batch: int
    micro: int
    parts: int
    world: int

    @classmethod
    def of(cls, recipe: Recipe, world: int) -> Plan:
        """Cut the recipe's batch; raise TrainingError where it does not divide."""
        batch, micro = recipe.schedule.batch, min(recipe.schedule.micro_batch, recipe.schedule.batch // world)
        if micro < 1 or batch % (micro * world):
            raise TrainingError(
                f"{world} processes of {recipe.schedule.micro_batch} images do not divide the batch",
                key="schedule.batch",
                found=batch,
                remedy="Change schedule.micro_batch or the number of processes",
            )
        return cls(batch, micro, batch // (micro * world), world)

    def first(self, part: int, rank: int) -> int:
        """Return the offset of a piece in its step."""
        return (part * self.world + rank) * self.micro


@dataclass(frozen=True)
class Learner:
    """What a step changes, and what it needs for that."""

    task: Task
    recipe: Recipe
    plan: Plan
    accelerator: Accelerator
    model: nn.Module
    """`task.model`, wrapped for its processes."""
    plain: nn.Module
    """The same, unwrapped."""
    parameters: list[Tensor]
    """What learns; under FSDP each process holds a part."""
    optimizer: Any
    average: Average | None
    meter: Meter
    rates: list[list[Any]]
    """Learning rate and largest gradient norm that the recipe gave, each after the images from which on."""


def prepare(task: Task, recipe: Recipe, accelerator: Accelerator) -> Learner:
    """Put a task on its device, with its optimiser and its average.

    Raises TrainingError where the batch does not divide.
    """
    plan = Plan.of(recipe, accelerator.num_processes)
    task.model.to(accelerator.device)
    optimizer: Any = _optimizer(task.model, recipe)
    if recipe.speed.compile:
        task.model.compile()
    model, optimizer = accelerator.prepare(task.model, optimizer)
    plain = accelerator.unwrap_model(model, keep_torch_compile=False)
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    average = Average(plain, recipe.ema.decay) if recipe.ema else None
    meter = Meter(accelerator.device)
    rates = [[0, recipe.optimizer.learning_rate, recipe.optimizer.clip]]
    return Learner(
        task, recipe, plan, accelerator, model, plain, parameters, optimizer, average, meter, rates
    )


def one_step(learner: Learner, seen: int) -> Tensor:
    """Take the step that comes after `seen` images; return the norm of its gradient, on the device."""
    task, recipe, plan, accelerator = learner.task, learner.recipe, learner.plan, learner.accelerator
    model, optimizer, meter, step = learner.model, learner.optimizer, learner.meter, seen // plan.batch
    rank = accelerator.process_index
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(recipe, seen)
    learner.plain.train()
    for part in range(plan.parts):
        offset = plan.first(part, rank)
        dice = Dice(recipe.schedule.seed, seen, plan.batch, offset, plan.micro, accelerator.device)
        piece = Piece(seen + offset, plan.micro, dice)
        with nullcontext() if part == plan.parts - 1 else accelerator.no_sync(model):
            losses = task.losses(model, piece)
            accelerator.backward(losses["loss"] / plan.parts)
        meter.add(losses, step=step)
    norm = full(accelerator.clip_grad_norm_(learner.parameters, recipe.optimizer.clip or math.inf))
    if recipe.precision != "fp16":  # its scaler skips a step whose gradients overflow
        meter.watch("gradient norm", norm, step=step)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    task.after_step(learner.plain)
    if learner.average:
        learner.average.follow(learner.plain, step + 1)
    return norm


def learning_rate(recipe: Recipe, seen: int) -> float:
    """Return the rate after `seen` images: a climb, then constant or half a cosine to 1 % of the peak."""
    batch, settings = recipe.schedule.batch, recipe.optimizer
    climb = min(1.0, (seen + batch) / (settings.warmup_steps * batch)) if settings.warmup_steps else 1.0
    if settings.schedule == "constant":
        return settings.learning_rate * climb
    done = min(1.0, seen / (recipe.schedule.steps * batch))
    return settings.learning_rate * climb * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * done)))


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    settings = recipe.optimizer
    return torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad],
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        eps=settings.epsilon,
        fused=True,
    )
