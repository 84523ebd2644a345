"""Train: resume, then step, report and save until the planned number of images is seen.

Progress is counted in images. Everything random in a step is a function of the seed and of the images seen
before it, and so is the order of the data: a run that was killed and resumed is the run that was not, bit
for bit on a CPU, and a run on two processes is the run on one, to rounding.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, set_seed
from torch import Tensor, distributed, nn

from training.errors import TrainingError
from training.recipes.schema import Recipe
from training.run.ema import Average
from training.run.randomness import Dice
from training.run.state import FILE, full, load_state, read_state, save_state, shard
from training.run.status import Log, Meter, Status, trained_seconds
from training.run.task import Piece, Task

_SLOW_STEP = 0.5
"""Seconds; the host may wait for a device after each step that takes longer."""


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


def start(recipe: Recipe, folder: Path, device: str = "auto") -> Accelerator:
    """Join the processes of this run and choose its device and precision.

    `device` is `auto`, `cpu` or `cuda`. Raises TrainingError for a device or a precision that is not to be
    had.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "there is no CUDA device here", key="--device", found=device, remedy="Give cpu or auto"
        )
    # Apple's GPUs have no float64, which losses are summed in.
    cpu = device == "cpu" or not torch.cuda.is_available()
    if cpu and recipe.precision == "fp16":
        raise TrainingError(
            "float16 training needs a GPU",
            key="precision",
            found="fp16",
            remedy="Give precision=bf16 or fp32",
        )
    _check_trackers(recipe)
    # accelerate keeps the precision of the first run of a process; the next may want another.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(recipe.precision, recipe.precision),
        cpu=cpu,
        log_with=list(recipe.watch.trackers) or None,
        project_dir=folder,
        # Gradients live where they are summed, and there are no buffers to keep alike.
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
        ],
    )
    if sharded(accelerator) and not accelerator.is_fsdp2:
        raise TrainingError(
            "FSDP of version 1 cuts weights without regard to their names, so no average could be saved",
            key="fsdp_version",
            found=1,
            remedy="Give accelerate launch --fsdp_version 2, or write it in accelerate's configuration",
        )
    if cpu and accelerator.num_processes > 1:
        _own_core(accelerator.local_process_index)
    set_seed(recipe.schedule.seed)
    return accelerator


def train(
    task: Task,
    recipe: Recipe,
    folder: Path,
    accelerator: Accelerator,
    *,
    stop_at: int | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Train until the recipe's images are seen; return their number. `task.model` is then what is exported.

    Not under FSDP, where each process keeps a part of the weights: `load_trained` puts them into a new task.

    The state lives in `folder/state.pt`; one JSON line per report is appended to `folder/log.jsonl`.
    `stop_at` ends the run early, state saved; SIGTERM and Ctrl-C do so too. Raises TrainingError when a
    loss is not finite, naming the step, the loss and the last good state.
    """
    plan = Plan.of(recipe, accelerator.num_processes)
    device, watch = accelerator.device, recipe.watch
    main = accelerator.is_main_process
    folder.mkdir(parents=True, exist_ok=True)
    images = recipe.schedule.steps * plan.batch
    end = min(images, stop_at if stop_at is not None else images)

    learner = prepare(task, recipe, accelerator)
    model, plain, optimizer, average, meter = (
        learner.model,
        learner.plain,
        learner.optimizer,
        learner.average,
        learner.meter,
    )
    _check_shared(folder, accelerator)
    seen, extra = load_state(folder, accelerator, model, optimizer, average, identity=identity(recipe))
    task.load_state(extra)
    log = Log(folder, seen, accelerator if watch.trackers else None) if main else None
    status = Status(folder.name, seen, end, before=trained_seconds(folder) or 0.0)
    if main:
        count = sum(weight.numel() for weight in learner.parameters)
        done = f"{seen:,} of {images:,} images seen"
        say(f"{folder.name}: {done}; {count:,} parameters learn; {plan.batch} images a step")

    def save() -> None:
        # A step can break the weights though its loss and gradient were fine; no state is saved then.
        meter.watch("a weight", _largest(learner.parameters), step=max(0, seen // plan.batch - 1))
        meter.check(accelerator, folder / FILE)
        save_state(
            folder,
            accelerator,
            model,
            optimizer,
            average,
            seen=seen,
            identity=identity(recipe),
            extra=task.state(),
        )

    saved, watched, looked, stride = time.monotonic(), seen, time.monotonic(), 1
    with _asked_to_stop() as asked:
        stopping = False
        while seen < end and not stopping:
            norm = one_step(learner, seen)
            seen += plan.batch

            if device.type != "cpu" and seen // plan.batch % stride and seen < end:
                continue  # whatever follows waits for the device
            now = time.monotonic()
            stopping, report, keep, slow = _agree(
                accelerator,
                asked(),
                now - status.reported >= watch.report_seconds or seen >= end,
                now - saved >= 60 * watch.save_minutes,
                now - looked > _SLOW_STEP * stride,
            )
            # Waiting costs little where steps are long, and whoever sends SIGTERM does not wait long.
            looked, stride = now, 1 if slow else 10
            meter.check(accelerator, folder / FILE)
            if report or stopping:
                values = meter.means(accelerator) | {
                    "lr": learning_rate(recipe, seen),
                    "gradient_norm": float(norm),
                }
                line = status.line(seen, values)
                if main and log:
                    say(line)
                    log.write(seen, values | status.figures)
            validating = _passed(watched, seen, watch.validation_images)
            previewing = _passed(watched, seen, watch.preview_images)
            watched = seen
            if validating or previewing:
                plain.eval()
                with average.applied(plain) if average else nullcontext():
                    if validating:
                        measured = task.validate(plain)
                        if main and log:
                            log.write(seen, measured)
                            say(f"{folder.name}: {seen:,} images, " + _words(measured))
                    # Sharded weights would need all processes to draw: such a run has no previews.
                    if previewing and main and not sharded(accelerator):
                        task.preview(plain, folder / "samples" / f"{seen:012d}.png")
            if keep:
                save()
                saved = time.monotonic()
    save()
    task.close()
    if average:
        average.put(plain)
    if log:
        log.close()  # with trackers it ends the group of processes, too
    plain.eval()
    return seen


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
    optimizer: Any
    average: Average | None
    meter: Meter


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
    plain = accelerator.unwrap_model(model)
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    average = Average(plain, recipe.ema.decay) if recipe.ema else None
    return Learner(
        task,
        recipe,
        plan,
        accelerator,
        model,
        plain,
        parameters,
        optimizer,
        average,
        Meter(accelerator.device),
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


def load_trained(task: Task, recipe: Recipe, folder: Path) -> int:
    """Put into `task.model` what a run has learned so far, averaged if it does that; return the images seen.

    Raises TrainingError where nothing was saved.
    """
    path = folder / FILE
    if not path.is_file():
        raise TrainingError(
            "there is no state of a run", file=path, remedy=f"Train first: python -m training {recipe.name}"
        )
    state = read_state(path)
    try:
        left, unknown = task.model.load_state_dict(state["model"], strict=False)
        if recipe.ema and state["average"]:
            unknown += task.model.load_state_dict(state["average"], strict=False).unexpected_keys
    except RuntimeError:
        left, unknown = [], ["tensors of other shapes"]
    learned = {name for name, weight in task.model.named_parameters() if weight.requires_grad}
    if unknown or learned & set(left):
        raise TrainingError(
            "this state is of other networks",
            file=path,
            found=", ".join([*unknown, *(f"no {name}" for name in left if name in learned)][:3]),
            remedy=f"Give the recipe and the overrides that it was trained with, not those of {recipe.name}",
        )
    task.load_state(state["extra"])
    task.model.eval()
    return int(state["seen"])


def learning_rate(recipe: Recipe, seen: int) -> float:
    """Return the rate after `seen` images: a climb, then constant or half a cosine to 1 % of the peak."""
    batch, settings = recipe.schedule.batch, recipe.optimizer
    climb = min(1.0, (seen + batch) / (settings.warmup_steps * batch)) if settings.warmup_steps else 1.0
    if settings.schedule == "constant":
        return settings.learning_rate * climb
    done = min(1.0, seen / (recipe.schedule.steps * batch))
    return settings.learning_rate * climb * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * done)))


def identity(recipe: Recipe) -> str:
    """Identify what may not change between a run and its resumption: 16 hex digits."""
    import hashlib
    import json

    kept = recipe.model_dump(
        mode="json", include={"teacher", "student", "objective", "data", "schedule", "optimizer", "ema"}
    )
    del kept["schedule"]["micro_batch"]
    if recipe.optimizer.schedule == "constant":
        del kept["schedule"]["steps"]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


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


def _largest(parameters: Sequence[Tensor]) -> Tensor:
    """Return the largest magnitude among the parameters that this process holds, NaN if one is."""
    held = [part.detach() for part in map(shard, parameters) if part.numel()]
    return torch.stack(torch._foreach_norm(held, ord=math.inf)).amax()


def _passed(before: int, seen: int, interval: int) -> bool:
    """Say whether a multiple of the interval lies between two numbers of images; 0 is never."""
    return interval > 0 and seen // interval > before // interval


def _agree(accelerator: Accelerator, *wishes: bool) -> list[bool]:
    """Make one process's wish that of all: they report, save and stop at the same step."""
    if accelerator.num_processes == 1:
        return list(wishes)
    flags = torch.tensor([float(wish) for wish in wishes], device=accelerator.device)
    distributed.all_reduce(flags, distributed.ReduceOp.MAX)
    return [bool(flag) for flag in flags.tolist()]


def _check_trackers(recipe: Recipe) -> None:
    """See that the trackers are installed: accelerate leaves out those that are not, without a word."""
    known = {str(getattr(one, "value", one)) for one in get_available_trackers()}
    for name in recipe.watch.trackers:
        if name not in known:
            raise TrainingError(
                "the library of this tracker is not installed",
                file=recipe.name,
                key="watch.trackers",
                found=name,
                remedy="Install it, or leave it out: the log of the run is written in any case",
            )


def sharded(accelerator: Accelerator) -> bool:
    """Say whether each process holds only a part of the weights."""
    return accelerator.distributed_type is DistributedType.FSDP


def _check_shared(folder: Path, accelerator: Accelerator) -> None:
    """See that processes find the same state: on several hosts the folder has to be a shared one."""
    there = (folder / FILE).is_file()
    some, missing = _agree(accelerator, there, not there)
    if some and missing:
        raise TrainingError(
            "the state of the run is seen by some processes alone",
            file=folder / FILE,
            remedy="Give a folder that all hosts share: --folder RUN_FOLDER",
        )


def _own_core(rank: int) -> None:
    """Keep this process on one core: processes that wait for each other lose most when moved about."""
    if hasattr(os, "sched_setaffinity") and torch.get_num_threads() == 1:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})


def _words(values: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.4f}" for name, value in values.items())


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and Ctrl-C into a question for the loop to ask; a second Ctrl-C interrupts."""
    asked: list[int] = []

    def note(number: int, _frame: object) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
