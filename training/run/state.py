"""Save and load the state of a run: one file, replaced in one step, so that a kill damages nothing."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
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
from training.run.processes import FRESH_SECONDS, largest
from training.run.sharding import fill, full
from training.run.status import hardware, libraries
from training.run.step import Learner
from training.run.task import Task

FILE = "state.pt"
_PLACES = ("data.path", "data.urls", "data.name")
"""Where data lies: its content is compared."""
_RATES = ("optimizer.learning_rate", "optimizer.clip")
"""What a run may go on with another value of, where the one before proved too high."""
_AMENDED = ("data.upscale", "data.empty_captions")
"""What a run may go on with another value of: it ended at the first picture that the value was for."""
_PAUSE = 5.0
"""Seconds between two looks for a state that other processes find."""
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
_SHARED = StateDictOptions(full_state_dict=True, ignore_frozen_params=True, strict=False)


def identity(recipe: Recipe) -> str:
    """Identify what a run learns, and from what: 16 hex digits."""
    return hashlib.sha256(json.dumps(_learned(recipe), sort_keys=True).encode()).hexdigest()[:16]


def settings(recipe: Recipe, *, defaults: bool = True) -> dict[str, Any]:
    """Return what a run learns and from what, by dotted keys, but for where the data lies."""
    flat = dict(_flat(_learned(recipe, defaults=defaults)))
    return {key: value for key, value in flat.items() if key not in _PLACES}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _learned(recipe: Recipe, *, defaults: bool = True) -> dict[str, Any]:
    kept = recipe.model_dump(
        mode="json",
        include={"teacher", "student", "objective", "data", "schedule", "optimizer", "ema"},
        exclude_defaults=not defaults,
    )
    del kept["schedule"]["micro_batch"]
    if recipe.objective.kind == "dreambooth":  # it draws the pictures of the class that are learned, too
        kept["drawn"] = [recipe.watch.guidance, recipe.watch.sampling_steps]
    if recipe.optimizer.schedule == "constant":
        del kept["schedule"]["steps"]
    return kept


def save_state(folder: Path, learner: Learner, seen: int) -> None:
    """Write the state after `seen` images to `folder/state.pt`; all processes take part.

    The file has the names of the plain module, so that a run may go on under another number of processes.
    Raises TrainingError where it cannot be written; the file of before is then as it was.
    """
    accelerator, model, average = learner.accelerator, learner.model, learner.average
    state = {
        "settings": settings(learner.recipe),
        "seen": seen,
        "model": get_model_state_dict(model, options=_WHOLE),
        "optimizer": get_optimizer_state_dict(model, _torch_optimizer(learner), options=_WHOLE),
        "average": _whole(average.values, keep=accelerator.is_main_process) if average else None,
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
        "generator": torch.get_rng_state(),
        "extra": learner.task.state(),
        "told": _circumstances(learner),
    }
    if accelerator.is_main_process:
        _write(folder / FILE, state)
    accelerator.wait_for_everyone()


def _circumstances(learner: Learner) -> dict[str, Any]:
    """Return what a card tells later: devices, libraries, rates, how many pairs, and which were corrupt."""
    accelerator, pairs = learner.accelerator, getattr(getattr(learner.task, "inputs", None), "pairs", None)
    devices = hardware(accelerator.device, accelerator.num_processes, learner.plan.micro)
    of_pairs = {}
    if pairs is not None:
        of_pairs = {"pairs": len(pairs), "data": pairs.fingerprint, "skipped": dict(pairs.skipped)}
    return {
        "hardware": devices,
        "libraries": libraries(),
        "precision": learner.recipe.precision,
        "rates": learner.rates,
        **of_pairs,
    }


def told(folder: Path) -> dict[str, Any]:
    """Return what the state in a folder tells of its run: nothing where there is none, or an older one.

    Raises TrainingError for a damaged file.
    """
    path = folder / FILE
    return dict(read_state(path, mapped=True).get("told", {})) if path.is_file() else {}


def load_state(folder: Path, learner: Learner) -> int:
    """Load what `save_state` wrote; return the images seen, 0 where nothing was saved.

    Raises TrainingError for a damaged file, for the state of another recipe, and where processes find
    different states: on several hosts the folder has to be a shared one.
    """
    path, average, scaler = folder / FILE, learner.average, learner.accelerator.scaler
    several, on_gpu = learner.accelerator.num_processes > 1, learner.accelerator.device.type != "cpu"
    if not (_all_find(path, learner.accelerator) if several else path.is_file()):
        return 0
    # To a GPU the tensors are copied anyway: mapped, the processes of a host share one copy of the file.
    state = read_state(path, mapped=several and on_gpu)
    remedy = "Give another --folder, or start anew with --restart"
    _check_settings(state, learner.recipe, path, remedy, free=(*_RATES, *_AMENDED))
    strict = state.get("settings", {}).get("data.empty_captions") == "error"
    _check_data(state.get("told", {}), _circumstances(learner), path, kept="-keep" if strict else "")
    _follow_rates(learner, state.get("told", {}).get("rates", []), int(state["seen"]))
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


def _check_settings(
    state: Mapping[str, Any], recipe: Recipe, path: Path, remedy: str, *, free: Sequence[str] = ()
) -> None:
    """Raise TrainingError for the state of another recipe; a key that came later counts by its default."""
    if "settings" not in state:  # of an earlier version, which kept a digest alone
        if state["identity"] != identity(recipe):
            what = "the state of another recipe, by an earlier version that does not say what differs"
            raise TrainingError(what, file=path, found=state["identity"], remedy=remedy)
        return
    then, now = state["settings"], settings(recipe)
    set_here = settings(recipe, defaults=False)
    differ = [key for key, value in then.items() if key not in free and now.get(key) != value]
    differ += [key for key in set_here if key not in then]
    if differ:
        key = differ[0]
        others = f"; so do {', '.join(differ[1:4])}" if differ[1:] else ""
        before = then.get(key, "not given")
        raise TrainingError(
            f"the state of another recipe: this was {before} then, and differs now{others}",
            file=path,
            key=key,
            found=now.get(key, "not given"),
            remedy=remedy,
        )


def _follow_rates(learner: Learner, before: list[list[Any]], seen: int) -> None:
    """Put the rates that a run had before those of now, which count from the images seen on."""
    now = learner.rates.pop()
    learner.rates.extend(before)
    if not before or before[-1][1:] != now[1:]:
        learner.rates.append([seen if before else 0, *now[1:]])


def _check_data(then: Mapping[str, Any], now: Mapping[str, Any], path: Path, kept: str = "") -> None:
    """Raise TrainingError where the pairs are not those that the run began with.

    `kept` ends the fingerprint where empty captions are kept that the run has not met before.
    """
    for key, told in (("pairs", "{:,} pairs"), ("data", "{}, of names, sizes and captions")):
        if then.get(key) and now.get(key) and then[key] not in (now[key], str(now[key]).removesuffix(kept)):
            raise TrainingError(
                f"the data has changed since: {told.format(then[key])} then",
                file=path,
                found=told.format(now[key]),
                remedy="Give the data that the run began with, or start anew with --restart",
            )


def load_trained(task: Task, recipe: Recipe, folder: Path) -> int:
    """Put into `task.model` what a run has learned so far, averaged if it does that; return the images seen.

    Raises TrainingError where nothing was saved, and for the state of another recipe.
    """
    path = folder / FILE
    if not path.is_file():
        raise TrainingError(
            "there is no state of a run", file=path, remedy=f"Train first: python -m training {recipe.name}"
        )
    state = read_state(path)
    # Its card would tell the figures of a run that never was.
    remedy = f"Give the recipe and the overrides that it was trained with, not those of {recipe.name}"
    _check_settings(state, recipe, path, remedy)
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


def read_state(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """Read a state file to the CPU; raise TrainingError where it is damaged.

    With `mapped` tensors are read from the disk when they are used.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        if not {"seen", "model", "average"} <= set(state) or not {"settings", "identity"} & set(state):
            raise KeyError("settings, seen, model or average")
    except Exception as error:  # a damaged file raises errors of zipfile, pickle or torch alike
        raise TrainingError(
            "the state of the run cannot be read",
            file=path,
            found=f"{type(error).__name__}: {first_line(error)}",
            remedy="Copy it from a backup, or start anew with --restart",
        ) from error
    return state


def _all_find(path: Path, accelerator: Accelerator) -> bool:
    """Say whether all processes find the same state, by the images seen, or none finds one.

    Hosts may see a folder of the network as it was a moment ago, so they look again for a while. Raises
    TrainingError where they go on seeing different states.
    """
    looks = 1 + int(FRESH_SECONDS / _PAUSE)
    for look in range(looks):
        here = int(read_state(path, mapped=True)["seen"]) if path.is_file() else -1
        most, least = largest(accelerator, here, -here)
        if most == -least:
            return here >= 0
        if look + 1 < looks:
            time.sleep(_PAUSE)
    raise TrainingError(
        "the processes of the run find different states",
        file=path,
        found=f"{_told(here)} here, {_told(-least)} to {_told(most)} elsewhere",
        remedy="Give a folder that all hosts share: --folder RUN_FOLDER",
    )


def _told(seen: int) -> str:
    return f"{seen:,} images" if seen >= 0 else "no state"


def _whole(values: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Gather tensors that may be sharded, one after the other; return them where they are to be kept."""
    kept = {}
    for name, value in values.items():
        gathered = full(value).detach()
        if keep:
            kept[name] = gathered.cpu().clone()
    return kept


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
