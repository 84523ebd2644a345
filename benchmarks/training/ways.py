"""Ways of running one training step: ours, the published one, and those between them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from benchmarks.training.published_step import PublishedStep, adamw
from benchmarks.training.scenario import PicturePairs, Scenario
from pytest_sdbench.base.environment import release_memory
from training.build import connect
from training.recipes.schema import Recipe
from training.run import processes
from training.run.ema import Average
from training.run.step import one_step, prepare
from training.run.task import Piece, Task


@dataclass(frozen=True)
class Way:
    """The speed-ups of a step of ours; without any it does what the published script does."""

    cached_latents: bool = True
    """Latents are encoded once, not in every step."""
    cached_text: bool = True
    """Text states are encoded once."""
    channels_last: bool = True
    stored_activations: bool = True
    """No gradient checkpointing: the student keeps its activations and is not run twice."""
    fused_optimizer: bool = True
    """AdamW in one kernel over all parameters."""
    foreach_average: bool = True
    """The moving average as one operation over all parameters, not one by one."""
    no_waiting: bool = True
    """Losses stay on the device until a report, instead of being read in every step."""
    compiled: bool = False
    """torch.compile of student and teacher."""

    def names(self) -> tuple[str, ...]:
        """Return the names of the speed-ups that are on."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name))


PLAIN = Way(**{field.name: False for field in fields(Way)})
"""Our loop with everything off."""


def ours(recipe: Recipe, *, compiled: bool) -> Way:
    """Return the way in which a recipe is trained."""
    return Way(
        cached_latents=recipe.data.cache,
        cached_text=recipe.data.cache_text,
        channels_last=recipe.speed.channels_last,
        stored_activations=not recipe.speed.gradient_checkpointing,
        compiled=compiled or recipe.speed.compile,
    )


def start(way: Way | None, scenario: Scenario) -> Run:
    """Make a way of a scenario ready; None is the published script."""
    accelerator = processes.start(scenario.recipe, Path.cwd(), scenario.device.type)
    if way is None:
        return PublishedStep(scenario, accelerator)
    return OurStep(way, scenario, accelerator)


class OurStep:
    """Our own loop, step by step, with some speed-ups taken out."""

    def __init__(self, way: Way, scenario: Scenario, accelerator: Accelerator) -> None:
        settings = {
            "channels_last": way.channels_last,
            "gradient_checkpointing": not way.stored_activations,
            "compile": way.compiled,
        }
        speed = scenario.recipe.speed.model_copy(update=settings)
        recipe = scenario.recipe.model_copy(update={"speed": speed})
        parts, pairs = scenario.parts, scenario.cached
        self.networks: list[Any] = []
        if not way.cached_latents:
            parts = replace(parts, vae=copy.deepcopy(parts.vae))
            pairs = PicturePairs(**vars(pairs), pixels=scenario.pixels)
            self.networks.append(parts.vae)
        if not way.cached_text:
            parts = replace(parts, text_encoder=copy.deepcopy(parts.text_encoder))
            pairs = replace(pairs, text=None)
            self.networks.append(parts.text_encoder)
        task: Any = connect(recipe, parts, pairs, accelerator, say=lambda _line: None)
        learner = prepare(task, recipe, accelerator)
        self.networks += [task.teacher, learner.plain]
        if not way.fused_optimizer:
            # Two optimisers of the same gradients would have float16's scale taken out of them twice.
            accelerator._optimizers.clear()
            learner = replace(learner, optimizer=accelerator.prepare(adamw(recipe, learner.parameters)))
        if not way.foreach_average and recipe.ema:
            learner = replace(learner, average=LibraryAverage(learner.plain, recipe.ema.decay))
        if not way.no_waiting:
            learner = replace(learner, task=WaitingTask(learner.task, accelerator))
        self._learner, self._seen = learner, 0
        self.optimizer, self.average = learner.optimizer, learner.average

    @property
    def losses(self) -> Mapping[str, float]:
        """The losses of the last step; reading them waits for the device."""
        return self._learner.meter.means(self._learner.accelerator)

    def step(self) -> None:
        """Take one step of the optimiser."""
        one_step(self._learner, self._seen)
        self._seen += self._learner.plan.batch


Run = PublishedStep | OurStep


def move(run: Run, device: torch.device | str) -> None:
    """Move all weights and states of a run, to make room for another."""
    for network in run.networks:
        network.to(device)
    optimizer: Any = run.optimizer
    # torch keeps the number of steps on the host unless the optimiser is fused.
    fused = bool(optimizer.param_groups[0].get("fused"))
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, Tensor) and (value.dim() > 0 or fused):
                state[name] = value.to(device)
    average = run.average.library if isinstance(run.average, LibraryAverage) else run.average
    if isinstance(average, Average):
        average.values = {name: value.to(device) for name, value in average.values.items()}
    elif average is not None:
        average.to(device)
    release_memory("cuda" if torch.cuda.is_available() else "cpu")


class WaitingTask(Task):
    """A task whose losses are gathered and read in every step, as the published script does."""

    def __init__(self, task: Task, accelerator: Accelerator) -> None:
        self.model, self._task, self._accelerator = task.model, task, accelerator

    def losses(self, model: nn.Module, piece: Piece) -> dict[str, Tensor]:
        losses = self._task.losses(model, piece)
        for value in losses.values():
            self._accelerator.gather(value.detach().repeat(piece.count)).mean().item()
        return losses

    def after_step(self, model: nn.Module) -> None:
        self._task.after_step(model)


class LibraryAverage(Average):
    """The average as diffusers keeps it by default: a few operations for each parameter."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__(module, decay)
        self.library = EMAModel(module.parameters(), decay=decay)
        self.values = {}

    def follow(self, module: nn.Module, step: int) -> None:
        self.library.step(module.parameters())
