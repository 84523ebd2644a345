"""Save and load the state of a run: one file, replaced in one step, so that a kill damages nothing."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from pytest_sdbench.base.errors import first_line
from training.errors import TrainingError
from training.recipes.schema import Recipe
from training.run.processes import agree
from training.run.sharding import fill, full
from training.run.step import Learner
from training.run.task import Task

FILE = "state.pt"
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
_SHARED = StateDictOptions(full_state_dict=True, ignore_frozen_params=True, strict=False)


def identity(recipe: Recipe) -> str:
    """Identify what may not change between a run and its resumption: 16 hex digits."""
    kept = recipe.model_dump(
        mode="json", include={"teacher", "student", "objective", "data", "schedule", "optimizer", "ema"}
    )
    del kept["schedule"]["micro_batch"]
    if recipe.optimizer.schedule == "constant":
        del kept["schedule"]["steps"]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def save_state(folder: Path, learner: Learner, seen: int) -> None:
    """Write the state after `seen` images to `folder/state.pt`; all processes take part.

    The file has the names of the plain module, so that a run may go on under another number of processes.
    Raises TrainingError where it cannot be written; the file of before is then as it was.
    """
    accelerator, model, average = learner.accelerator, learner.model, learner.average
    state = {
        "identity": identity(learner.recipe),
        "seen": seen,
        "model": get_model_state_dict(model, options=_WHOLE),
        "optimizer": get_optimizer_state_dict(model, _torch_optimizer(learner), options=_WHOLE),
        "average": {name: full(value).detach().cpu().clone() for name, value in average.values.items()}
        if average
        else None,
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
        "generator": torch.get_rng_state(),
        "extra": learner.task.state(),
    }
    if accelerator.is_main_process:
        _write(folder / FILE, state)
    accelerator.wait_for_everyone()


def load_state(folder: Path, learner: Learner) -> int:
    """Load what `save_state` wrote; return the images seen, 0 where nothing was saved.

    Raises TrainingError for a damaged file, for the state of another recipe, and where some processes find no
    state: on several hosts the folder has to be a shared one.
    """
    path, average, scaler = folder / FILE, learner.average, learner.accelerator.scaler
    found, missing = agree(learner.accelerator, path.is_file(), not path.is_file())
    if not found:
        return 0
    if missing:
        raise TrainingError(
            "only some processes find the state of the run",
            file=path,
            remedy="Give a folder that all hosts share: --folder RUN_FOLDER",
        )
    state = read_state(path)
    if state["identity"] != identity(learner.recipe):
        raise TrainingError(
            "the state of another recipe: networks, data, objective, optimiser or schedule differ",
            file=path,
            found=state["identity"],
            remedy="Give another --folder, or start anew with --restart",
        )
    set_model_state_dict(learner.model, state["model"], options=_SHARED)
    set_optimizer_state_dict(learner.model, _torch_optimizer(learner), state["optimizer"], options=_SHARED)
    if average is not None:
        for name, value in average.values.items():
            fill(value, state["average"][name])
    if scaler and state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(state["generator"])
    learner.task.load_state(state["extra"])
    return int(state["seen"])


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
        missing, unknown = task.model.load_state_dict(state["model"], strict=False)
        if recipe.ema and state["average"]:
            unknown += task.model.load_state_dict(state["average"], strict=False).unexpected_keys
    except RuntimeError:
        missing, unknown = [], ["tensors of other shapes"]
    learned = {name for name, weight in task.model.named_parameters() if weight.requires_grad}
    if unknown or learned & set(missing):
        raise TrainingError(
            "the state of other networks",
            file=path,
            found=", ".join([*unknown, *(f"no {name}" for name in missing if name in learned)][:3]),
            remedy=f"Give the recipe and the overrides that it was trained with, not those of {recipe.name}",
        )
    task.load_state(state["extra"])
    task.model.eval()
    return int(state["seen"])


def read_state(path: Path) -> dict[str, Any]:
    """Read a state file to the CPU; raise TrainingError where it is damaged."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if not {"identity", "seen", "model", "average"} <= set(state):
            raise KeyError("identity, seen, model or average")
    except Exception as error:  # a damaged file raises errors of zipfile, pickle or torch alike
        raise TrainingError(
            "the state of the run cannot be read",
            file=path,
            found=f"{type(error).__name__}: {first_line(error)}",
            remedy="Copy it from a backup, or start anew with --restart",
        ) from error
    return state


def _torch_optimizer(learner: Learner) -> torch.optim.Optimizer:
    """Return torch's own optimiser: torch fills a fresh one by a step, which accelerate's would scale.

    The scaler of float16 refuses that, since it has seen no loss yet.
    """
    optimizer: torch.optim.Optimizer = getattr(learner.optimizer, "optimizer", learner.optimizer)
    return optimizer


def _write(path: Path, state: dict[str, Any]) -> None:
    """Replace the file; the temporary one has a fixed name, so that a kill leaves one behind at most."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # some file systems keep a rename back until they are told
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        temporary.unlink(missing_ok=True)
        kept = f"the last state is whole: {path}" if path.is_file() else "nothing was saved before"
        raise TrainingError(
            f"the state of the run cannot be saved; {kept}",
            file=temporary,
            found=first_line(error),
            remedy="Free some space and run the same command again: it goes on from the last state",
        ) from error
