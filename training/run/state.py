"""Save and load the state of a run: one file, replaced in one step, so that a kill damages nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from training.errors import TrainingError
from training.run.ema import Average

FILE = "state.pt"
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
_SHARED = StateDictOptions(full_state_dict=True, ignore_frozen_params=True, strict=False)


def save_state(
    folder: Path,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    *,
    seen: int,
    identity: str,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write the state to `folder/state.pt`; all processes take part.

    The file has the names of the plain module, so that a run may go on under another number of processes.
    Raises TrainingError where it cannot be written; the file of before is then as it was.
    """
    state = {
        "identity": identity,
        "seen": seen,
        "model": get_model_state_dict(model, options=_WHOLE),
        "optimizer": get_optimizer_state_dict(model, _unwrapped(optimizer), options=_WHOLE),
        "average": {name: full(value).detach().cpu().clone() for name, value in average.values.items()}
        if average
        else None,
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
        "generator": torch.get_rng_state(),
        "extra": extra or {},
    }
    if accelerator.is_main_process:
        _replace(folder / FILE, state)
    accelerator.wait_for_everyone()


def load_state(
    folder: Path,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    *,
    identity: str,
) -> tuple[int, dict[str, Any]]:
    """Load what `save_state` wrote; return the images seen and the extras, (0, {}) where nothing was saved.

    Raises TrainingError for a damaged file, and for the state of another recipe.
    """
    path = folder / FILE
    if not path.is_file():
        return 0, {}
    state = read_state(path)
    if state["identity"] != identity:
        raise TrainingError(
            "this state is of another recipe: networks, data, objective, optimiser or schedule differ",
            file=path,
            found=state["identity"],
            remedy="Give another --folder, or start anew with --restart",
        )
    set_model_state_dict(model, state["model"], options=_SHARED)
    set_optimizer_state_dict(model, _unwrapped(optimizer), state["optimizer"], options=_SHARED)
    if average is not None:
        for name, value in average.values.items():
            _fill(value, state["average"][name])
    if accelerator.scaler and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    torch.set_rng_state(state["generator"])
    return int(state["seen"]), dict(state["extra"])


def _unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return torch's own optimiser: torch fills a fresh one by a step, which accelerate's would scale.

    The scaler of float16 refuses that, since it has seen no loss yet.
    """
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


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
            found=f"{type(error).__name__}: {error}".splitlines()[0][:200],
            remedy="Copy it from a backup, or start anew with --restart",
        ) from error
    return state


def _replace(path: Path, state: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync(path.parent)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        temporary.unlink(missing_ok=True)
        kept = f"the state of before is whole: {path}" if path.is_file() else "nothing was saved before"
        raise TrainingError(
            f"the state of the run cannot be saved; {kept}",
            file=temporary,
            found=str(error).splitlines()[0][:200],
            remedy="Make room on the disk, then run the same command: it goes on from the last state",
        ) from error


def _sync(folder: Path) -> None:
    """Make a rename last, where the file system needs to be told."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def shard(value: Tensor) -> Tensor:
    """Return the part of a sharded tensor that this process holds: it may be empty."""
    held: Tensor = value.to_local() if hasattr(value, "to_local") else value
    return held


def full(value: Tensor) -> Tensor:
    """Gather a sharded tensor; all processes take part."""
    gathered: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return gathered


def _fill(place: Tensor, value: Tensor) -> None:
    if hasattr(place, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(place.device), place.device_mesh, place.placements)  # type: ignore[attr-defined]
    with torch.no_grad():
        place.copy_(value)
