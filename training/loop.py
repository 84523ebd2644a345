"""Train one stage: resume, then step, report and save until the planned number of images is seen.

Progress is counted in images, and everything random in a step is derived from the number of images seen
before it. So a run that was killed and resumed is the run that was not, bit for bit.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from ruamel.yaml import YAML
from torch import Tensor, distributed, nn

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a stage learns; one block of its recipe."""

    images: int
    """Planned number of images, repeats counted; the learning rate reaches its end there."""
    batch: int
    learning_rate: float
    warmup: int
    """Images over which the learning rate climbs from zero."""
    weight_decay: float = 0.01
    clip: float = 1.0
    """Largest norm of the gradient."""
    average: int = 0
    """Half-life in images of the moving average that is exported; 0 exports the weights themselves."""
    seed: int = 0


class Stage(Protocol):
    """What the loop needs of a stage."""

    modules: nn.ModuleDict
    """Everything that learns."""

    def losses(self, start: int, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the named losses of images `start` to `start + count`; the one named `loss` is descended."""
        ...

    def export(self, folder: Path) -> None:
        """Write the finished networks in the form that their users load."""
        ...


def read_recipe(name: str) -> dict[str, Any]:
    """Read `training/recipes/NAME.yaml`, or the file itself when a path is given.

    Raises FileNotFoundError that lists the recipes there are.
    """
    path = Path(name) if name.endswith(".yaml") else RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
        raise FileNotFoundError(f"no recipe {path}; the recipes are: {known}")
    recipe: dict[str, Any] = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    return recipe


def cache_folder(stage: str) -> Path:
    """Return the folder that keeps the state of a stage: `SDBENCH_CACHE` or the user's cache."""
    base = os.environ.get("SDBENCH_CACHE") or Path.home() / ".cache" / "pytest-sdbench"
    return Path(base) / "training" / stage


def learning_rate(schedule: Schedule, seen: int) -> float:
    """Return the rate after `seen` images: a straight climb, then half a cosine down to 1 % of the peak."""
    climb = min(1.0, (seen + schedule.batch) / max(1, schedule.warmup))
    fall = 0.5 + 0.5 * math.cos(math.pi * min(1.0, seen / schedule.images))
    return schedule.learning_rate * climb * (0.01 + 0.99 * fall)


def step_generator(seed: int, seen: int) -> torch.Generator:
    """Return the generator of the images that start after `seen` images."""
    return torch.Generator().manual_seed((seed << 40) + seen)


def train(
    stage: Stage,
    schedule: Schedule,
    folder: Path,
    *,
    save_seconds: float = 120.0,
    stop_at: int | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Train a stage until its schedule is done and return the number of images seen.

    The state lives in `folder/state.pt`, written at least every `save_seconds`; one JSON line per report is
    appended to `folder/log.jsonl`. `stop_at` ends the run early, state saved. SIGTERM saves and ends too.

    In a torch.distributed group each process computes its share of the batch and the gradients are averaged;
    the first process reports and saves. A run is then the same for the same number of processes.
    """
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if _grouped() else (0, 1)
    if schedule.batch % world:
        raise ValueError(f"a batch of {schedule.batch} cannot be shared by {world} processes")
    share = schedule.batch // world
    folder.mkdir(parents=True, exist_ok=True)
    end = min(schedule.images, stop_at if stop_at is not None else schedule.images)
    parameters = [weight for weight in stage.modules.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=0.0, weight_decay=schedule.weight_decay, betas=(0.9, 0.99), fused=True
    )
    average = {name: value.clone() for name, value in stage.modules.state_dict().items()}
    seen = _resume(folder, stage, optimizer, average)
    say(f"{folder.name}: {seen} of {schedule.images} images seen, {_count(stage.modules)} parameters")

    began = reported = saved = time.monotonic()
    sums: dict[str, float] = {}
    first = seen_at_report = seen
    with _asked_to_stop() as asked:
        stopping = False
        while seen < end and not stopping:
            stage.modules.train()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(schedule, seen)
            start = seen + rank * share
            losses = stage.losses(start, share, step_generator(schedule.seed, start))
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()  # type: ignore[no-untyped-call]
            if world > 1:
                stopping = _share_gradients(parameters, world, stopping=asked())
            nn.utils.clip_grad_norm_(parameters, schedule.clip)
            optimizer.step()
            stopping = stopping or (world == 1 and asked())
            seen += schedule.batch
            _follow(average, stage.modules, schedule, seen)
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + float(loss.detach()) * schedule.batch

            now = time.monotonic()
            if rank == 0 and (now - reported >= 20.0 or seen >= end):
                means = {name: total / (seen - seen_at_report) for name, total in sums.items()}
                _report(folder, means, seen, end, (seen - first) / (now - began), now - began, say)
                if not math.isfinite(means["loss"]):
                    raise FloatingPointError(
                        f"{folder.name}: the loss is {means['loss']} after {seen} images"
                    )
                sums, seen_at_report, reported = {}, seen, now
            if rank == 0 and now - saved >= save_seconds:
                _save(folder, stage, optimizer, average, seen)
                saved = now
    if rank == 0:
        _save(folder, stage, optimizer, average, seen)
    if schedule.average:
        stage.modules.load_state_dict(average)
    stage.modules.eval()
    return seen


def load_trained(stage: Stage, schedule: Schedule, folder: Path) -> int:
    """Load the exportable weights of a stage as far as it got; return the number of images seen.

    Raises FileNotFoundError when the stage was never trained.
    """
    path = folder / "state.pt"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `python -m training {folder.name}` first")
    state = torch.load(path, weights_only=True)
    stage.modules.load_state_dict(state["average"] if schedule.average else state["modules"])
    stage.modules.eval()
    return int(state["seen"])


def _resume(folder: Path, stage: Stage, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]) -> int:
    path = folder / "state.pt"
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    stage.modules.load_state_dict(state["modules"])
    optimizer.load_state_dict(state["optimizer"])
    average.update(state["average"])
    return int(state["seen"])


def _grouped() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _share_gradients(parameters: list[nn.Parameter], world: int, *, stopping: bool) -> bool:
    """Average the gradients over the processes; return whether any process was asked to stop."""
    gradients = [weight.grad for weight in parameters if weight.grad is not None]
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), torch.tensor([float(stopping)])])
    distributed.all_reduce(flat)
    first = 0
    for gradient in gradients:
        gradient.copy_((flat[first : first + gradient.numel()] / world).view_as(gradient))
        first += gradient.numel()
    return bool(flat[-1] > 0)


def _save(
    folder: Path, stage: Stage, optimizer: torch.optim.Optimizer, average: dict[str, Tensor], seen: int
) -> None:
    """Replace the state file in one step, so that a kill leaves the old one or the new one."""
    state = {
        "seen": seen,
        "modules": stage.modules.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average,
    }
    temporary = folder / "state.pt.tmp"
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / "state.pt")


def _follow(average: dict[str, Tensor], modules: nn.ModuleDict, schedule: Schedule, seen: int) -> None:
    """Move the average toward the weights; early on it forgets faster, not to remember the random start."""
    if not schedule.average:
        return
    keep = 0.5 ** (schedule.batch / min(schedule.average, max(1.0, 0.05 * seen)))
    with torch.no_grad():
        pairs = [(average[name], value) for name, value in modules.state_dict().items()]
        floating = [(mean, value) for mean, value in pairs if mean.is_floating_point()]
        torch._foreach_lerp_([mean for mean, _ in floating], [value for _, value in floating], 1 - keep)
        for mean, value in pairs:
            if not mean.is_floating_point():
                mean.copy_(value)


def _report(
    folder: Path,
    means: dict[str, float],
    seen: int,
    end: int,
    rate: float,
    seconds: float,
    say: Callable[[str], None],
) -> None:
    left = (end - seen) / max(rate, 1e-9)
    words = " ".join(f"{name} {value:.4f}" for name, value in means.items())
    say(f"{folder.name}: {seen}/{end} images, {rate:.1f}/s, {words}, {left / 60:.1f} min left")
    line = {"seen": seen, "images_per_second": round(rate, 2), "seconds": round(seconds, 1), **means}
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM into a question that the loop asks between two steps."""
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: asked.append(number))
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, before)


def _count(modules: nn.Module) -> int:
    return sum(weight.numel() for weight in modules.parameters())
