"""Train: resume, then step, report and save until the planned number of images is seen.

Progress is counted in images. Everything random in a step is a function of the seed and of the images seen
before it, and so is the order of the data: a run that was killed and resumed is the run that was not, bit
for bit on a CPU, and a run on two processes is the run on one, to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from training.errors import explain_write_errors
from training.recipes.schema import Recipe
from training.run.agenda import Agenda
from training.run.processes import sharded, stop_signals
from training.run.sharding import shard
from training.run.state import FILE, load_state, save_state
from training.run.status import Reporter
from training.run.step import Learner, learning_rate, one_step, prepare
from training.run.task import Task


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
    learner = prepare(task, recipe, accelerator)
    with explain_write_errors(folder, "the run", remedy="Give another folder: --folder RUN_FOLDER"):
        folder.mkdir(parents=True, exist_ok=True)
    seen = load_state(folder, learner)
    end = recipe.images if stop_at is None else min(recipe.images, stop_at)

    reporter = Reporter(folder, recipe, accelerator, seen, end, say)
    reporter.begin(sum(weight.numel() for weight in learner.parameters))
    agenda = Agenda(recipe, accelerator, seen, end)
    with stop_signals() as stop:
        while seen < end and not agenda.stop:
            norm = one_step(learner, seen)
            seen += learner.plan.batch
            if not agenda.look(seen, stop()):
                continue
            learner.meter.check(accelerator, folder / FILE)
            if agenda.report:
                figures = {"lr": learning_rate(recipe, seen), "gradient_norm": float(norm)}
                reporter.report(seen, learner.meter.means(accelerator) | figures)
            if agenda.validate or agenda.preview:
                _look_at_average(learner, agenda, reporter, folder, seen, say)
            if agenda.save:
                _save(learner, folder, seen)
                agenda.saved()
    _save(learner, folder, seen)
    task.close()
    if learner.average:
        learner.average.put(learner.plain)
    reporter.close()
    learner.plain.eval()
    return seen


def _look_at_average(
    learner: Learner,
    agenda: Agenda,
    reporter: Reporter,
    folder: Path,
    seen: int,
    say: Callable[[str], None],
) -> None:
    """Measure and draw with what would be exported: the average, where the run keeps one."""
    task, plain, average = learner.task, learner.plain, learner.average
    plain.eval()
    with average.applied(plain) if average else nullcontext():
        if agenda.validate:
            reporter.validation(seen, task.validate(plain))
        # Sharded weights would need all processes to draw: such a run has no previews.
        if agenda.preview and learner.accelerator.is_main_process and not sharded(learner.accelerator):
            try:
                task.preview(plain, folder / "samples" / f"{seen:012d}.png")
            except OSError as error:  # a picture to look at is worth no training
                say(f"the preview cannot be written: {error.strerror or error}")


def _save(learner: Learner, folder: Path, seen: int) -> None:
    """Save the state, unless weights broke in a step whose loss and gradient were fine."""
    step = max(0, seen // learner.plan.batch - 1)
    learner.meter.watch("a weight", _largest(learner.parameters), step=step)
    learner.meter.check(learner.accelerator, folder / FILE)
    save_state(folder, learner, seen)


def _largest(parameters: Sequence[Tensor]) -> Tensor:
    """Return the largest magnitude among the parameters that this process holds, NaN if one is."""
    held = [part.detach() for part in map(shard, parameters) if part.numel()]
    return torch.stack(torch._foreach_norm(held, ord=math.inf)).amax()
