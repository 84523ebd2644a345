"""Small runs that several test modules train, here or in processes that may be killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.recipes.load import parse_recipe
from training.recipes.schema import Recipe
from training.run.loop import train
from training.run.processes import start
from training.run.state import FILE, read_state
from training.run.task import Piece, Task

OBJECTIVES: dict[str, dict[str, Any]] = {
    "prediction": {"kind": "prediction", "caption_dropout": 0.2, "min_snr": 5.0},
    "distillation": {
        "kind": "distillation",
        "pairing": "bk-sdm",
        "weights": {"task": 1.0, "output": 1.0, "feature": 1.0},
    },
    "consistency": {"kind": "consistency", "embedding": 8, "target_decay": 0.8},
}


def recipe_of(teacher: str | Path | dict[str, str] | None, *overrides: str, **changes: Any) -> Recipe:
    """Return a recipe of 6 steps of 8 that distils a student on twelve scenes, with whole blocks changed."""
    values: dict[str, Any] = {
        "name": "tiny",
        "title": "A tiny run",
        "teacher": str(teacher) if isinstance(teacher, Path) else teacher,
        "student": {"remove": "small"},
        "objective": OBJECTIVES["distillation"],
        "data": {"kind": "scenes", "pairs": 12, "resolution": 64, "flip": True}
        | {"cache": True, "cache_text": True},
        "schedule": {"steps": 6, "batch": 8, "micro_batch": 8, "seed": 3},
        "optimizer": {"learning_rate": 1e-3},
    }
    return parse_recipe(values | changes, overrides=overrides)


def tiny_recipe(
    *overrides: str, teacher: str | Path = "nowhere/at-all", objective: str = "prediction"
) -> Recipe:
    """Return a recipe of an objective which every step reports and none saves."""
    student = {"remove": "tiny"} if objective == "distillation" else {}
    watch = {"report_seconds": 1e-9, "save_minutes": 60.0}
    return recipe_of(teacher, *overrides, student=student, objective=OBJECTIVES[objective], watch=watch)


class Toy(Task):
    """Learn a function of rows that depend on their place in the run, under noise from the dice."""

    def __init__(self, width: int = 16, at: Callable[[int, dict[str, Tensor]], None] | None = None) -> None:
        """`at` is called with the ordinal of the first image and the losses of every piece."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, 1))
        self.at, self.followed = at, torch.zeros(())

    def losses(self, model: nn.Module, piece: Piece) -> dict[str, Tensor]:
        """Return an error and a penalty, means over the piece."""
        place = torch.arange(piece.first, piece.first + piece.count).float()[:, None]
        rows = torch.sin(place * torch.arange(1.0, 5.0)) + 0.1 * piece.dice.normal(4)
        error = (model(rows)[:, 0] - rows.prod(dim=1)).square().mean()
        part = 0.1 * model(rows).square().mean()
        losses = {"loss": error + part, "error": error, "part": part}
        if self.at is not None:
            self.at(piece.first, losses)
        return losses

    def after_step(self, model: nn.Module) -> None:
        """Follow a weight."""
        self.followed = 0.9 * self.followed + 0.1 * next(model.parameters()).detach().sum()

    def state(self) -> dict[str, Any]:
        """Return what was followed."""
        return {"followed": self.followed}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what was followed."""
        self.followed = state.get("followed", self.followed)


def train_toy(
    folder: Path, *overrides: str, toy: Toy | None = None, stop_at: int | None = None
) -> tuple[int, Toy]:
    """Train a toy in this process; return the images seen and the toy."""
    recipe, toy = tiny_recipe(*overrides), toy or Toy()
    accelerator = start(recipe, folder, "cpu")
    return train(toy, recipe, folder, accelerator, stop_at=stop_at, say=lambda _line: None), toy


def train_real(folder: Path, recipe: Recipe, stop_at: int | None = None) -> Any:
    """Train what the recipe names, in this process; return its task."""
    from training.build import build_task

    quiet: Callable[[str], None] = lambda _line: None  # noqa: E731
    accelerator = start(recipe, folder, "cpu")
    task = build_task(recipe, folder=folder, accelerator=accelerator, say=quiet)
    train(task, recipe, folder, accelerator, stop_at=stop_at, say=quiet)
    return task


def log_lines(folder: Path) -> list[dict[str, float]]:
    """Return the lines of a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_same_state(first: Path, second: Path) -> None:
    """Assert that two runs ended with the same bits: weights, average, optimiser, extras, position."""
    states = [read_state(folder / FILE) for folder in (first, second)]
    assert states[0]["seen"] == states[1]["seen"]
    _assert_same(states[0], states[1], "state")


def _assert_same(first: Any, second: Any, place: str) -> None:
    if isinstance(first, Mapping):
        assert first.keys() == second.keys(), place
        for key in first:
            _assert_same(first[key], second[key], f"{place}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), place
        for i, (one, other) in enumerate(zip(first, second, strict=True)):
            _assert_same(one, other, f"{place}.{i}")
    elif isinstance(first, Tensor):
        assert torch.equal(first, second), place
    else:
        assert first == second, place


# --- processes ------------------------------------------------------------

_CONTEXT = multiprocessing.get_context("forkserver")
# Imports take longer than a tiny run: the server imports once, and every process is a fork of it.
_CONTEXT.set_forkserver_preload(
    [
        "tests.training.helpers",
        "training.build",
        "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
        "transformers.models.clip.modeling_clip",
    ]
)


def begin(work: Callable[..., None], *arguments: Any, **environment: str) -> BaseProcess:
    """Run `work` in a new process with these environment variables; what it prints goes nowhere."""
    process = _CONTEXT.Process(target=_in_child, args=(work, arguments, environment))
    process.start()
    return process


def begin_pair(work: Callable[..., None], *arguments: Any, **environment: str) -> list[BaseProcess]:
    """Run `work` in two processes that find each other as under `accelerate launch`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        begin(work, *arguments, **{**common, "RANK": rank, "LOCAL_RANK": rank, **environment})
        for rank in ("0", "1")
    ]


def finish(processes: Sequence[BaseProcess], seconds: float = 400.0) -> list[int | None]:
    """Wait for processes and return their exit codes; one that hangs is killed."""
    for process in processes:
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def _in_child(work: Callable[..., None], arguments: Sequence[Any], environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    if "SDBENCH_TEST_VERBOSE" not in os.environ:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    work(*arguments)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def killed_in_save(moment: str, which: int) -> Iterator[None]:
    """Kill this process in the save of that number: half way through the file, before or after the rename."""
    saves, save, replace = [0], torch.save, Path.replace

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def half(state: Any, file: Any) -> None:
        saves[0] += 1
        if moment == "half" and saves[0] == which:
            import io

            whole = io.BytesIO()
            save(state, whole)
            file.write(whole.getvalue()[: whole.tell() // 2])
            file.flush()
            die()
        save(state, file)

    def rename(path: Path, target: Path) -> Path:
        if moment == "before rename" and saves[0] == which:
            die()
        result = replace(path, target)
        if moment == "after rename" and saves[0] == which:
            die()
        return result

    torch.save, Path.replace = half, rename  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        torch.save, Path.replace = save, replace  # type: ignore[method-assign]


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """Make writes beyond `size` bytes fail, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
