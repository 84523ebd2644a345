"""Ways of running one training step: ours, the published one, and those between them."""

from __future__ import annotations

import copy
import gc
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from benchmarks.training.published_step import PublishedStep
from benchmarks.training.scenario import MemoryPairs, Scenario
from training.build import connect
from training.recipes.schema import Recipe
from training.run import processes
from training.run.ema import Average
from training.run.step import Learner, one_step, prepare
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

    @classmethod
    def of(cls, names: Mapping[str, bool] | tuple[str, ...]) -> Way:
        """Return the way with these speed-ups on and no others."""
        return cls(**{field.name: field.name in names for field in fields(cls)})


PLAIN = Way.of(())
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


class Run(Protocol):
    """A way of training, ready to go on."""

    @property
    def losses(self) -> Mapping[str, float]:
        """The losses of the last step; reading them waits for the device."""
        ...

    def step(self) -> None:
        """Take one step of the optimiser."""
        ...

    def move(self, device: torch.device | str) -> None:
        """Move all weights and states, to make room for another run."""
        ...


def start(way: Way | None, scenario: Scenario) -> Run:
    """Make a way of a scenario ready; None is the published script."""
    if way is None:
        return ScriptRun(scenario, _accelerator(scenario))
    return LoopRun(way, scenario, _accelerator(scenario))


class ScriptRun:
    """The published script."""

    def __init__(self, scenario: Scenario, accelerator: Accelerator) -> None:
        self._script = PublishedStep(scenario, accelerator)

    @property
    def losses(self) -> Mapping[str, float]:
        return self._script.losses

    def step(self) -> None:
        self._script.step()

    def move(self, device: torch.device | str) -> None:
        script = self._script
        for network in (script.vae, script.text_encoder, script.teacher, script.student):
            network.to(device)
        _move_state(script.optimizer, device)
        if script.ema is not None:
            script.ema.to(device)
        _collect()


class LoopRun:
    """Our own loop, step by step, with some speed-ups taken out."""

    def __init__(self, way: Way, scenario: Scenario, accelerator: Accelerator) -> None:
        speed = scenario.recipe.speed.model_copy(
            update={
                "channels_last": way.channels_last,
                "gradient_checkpointing": not way.stored_activations,
                "compile": way.compiled,
            }
        )
        recipe = scenario.recipe.model_copy(update={"speed": speed})
        parts = replace(
            scenario.parts,
            vae=copy.deepcopy(scenario.parts.vae),
            text_encoder=copy.deepcopy(scenario.parts.text_encoder),
        )
        pixels = None if way.cached_latents else scenario.pixels
        pairs = MemoryPairs(scenario.cached, pixels, text=way.cached_text)
        self._frozen = [
            *([] if way.cached_latents else [parts.vae]),
            *([] if way.cached_text else [parts.text_encoder]),
        ]
        task: Any = connect(recipe, parts, pairs, accelerator, say=lambda _line: None)
        self._frozen.append(task.teacher)
        learner = prepare(task, recipe, accelerator)
        if not way.fused_optimizer:
            # Two optimisers of the same gradients would have float16's scale taken out of them twice.
            accelerator._optimizers.clear()
            learner = replace(learner, optimizer=accelerator.prepare(_library_optimizer(learner)))
        if not way.foreach_average and recipe.ema:
            learner = replace(learner, average=LibraryAverage(learner.plain, recipe.ema.decay))
        if not way.no_waiting:
            learner = replace(learner, task=WaitingTask(learner.task, accelerator))
        self._learner, self._seen = learner, 0

    @property
    def losses(self) -> Mapping[str, float]:
        return self._learner.meter.means(self._learner.accelerator)

    def step(self) -> None:
        one_step(self._learner, self._seen)
        self._seen += self._learner.plan.batch

    def move(self, device: torch.device | str) -> None:
        learner = self._learner
        for network in (learner.plain, *self._frozen):
            network.to(device)
        _move_state(learner.optimizer, device)
        if learner.average is not None:
            learner.average.values = {
                name: value.to(device) for name, value in learner.average.values.items()
            }
            if isinstance(learner.average, LibraryAverage):
                learner.average.library.to(device)
        _collect()


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


def _library_optimizer(learner: Learner) -> torch.optim.Optimizer:
    """Return AdamW with the recipe's figures and torch's own choice of implementation."""
    settings = learner.recipe.optimizer
    return torch.optim.AdamW(
        learner.parameters,
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        eps=settings.epsilon,
    )


def _accelerator(scenario: Scenario) -> Accelerator:
    return processes.start(scenario.recipe, Path.cwd(), scenario.device.type)


def _move_state(optimizer: Any, device: torch.device | str) -> None:
    for state in optimizer.state.values():
        for name, value in state.items():
            # torch keeps the number of steps on the host unless the optimiser is fused.
            if isinstance(value, Tensor) and (value.dim() > 0 or _is_fused(optimizer)):
                state[name] = value.to(device)


def _is_fused(optimizer: Any) -> bool:
    return bool(optimizer.param_groups[0].get("fused"))


def _collect() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
