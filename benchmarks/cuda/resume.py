"""Is a run that was killed and resumed the run that was not? At full size, with the training loop itself."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cuda.measurement import Measurement
from benchmarks.cuda.process import failed, running
from benchmarks.cuda.sitting import REPEATABLE, WHOLE_RUN, notes, recipe_of, write_cache
from training.recipes.schema import Recipe
from training.run.state import FILE, read_state
from training.run.status import read_log

STEPS = 30
"""Of the whole run; fewer where the minutes do not allow so many."""
_SAVE_MINUTES = 0.25
"""After which the run that is to be killed saves: at the peak of an H100, thirty steps take longer."""
_COMPARING = 25.0
"""Seconds that are kept for the comparison."""
NOTE = """\
The loop itself, {steps} steps of {recipe} at most, random weights, a synthetic cache on the disk, kernels
that give the same bits every time wherever torch has them (that costs speed). One run is killed (SIGKILL)
after a saved state and a further step, and resumed; the other is left alone. `resume_s` is from the start
of the process to the end of its first step."""


@dataclass
class _Runs:
    """Both runs, and what the first sitting says of how long the others will take."""

    asked: Measurement
    recipe: Recipe
    folder: Path
    steps: int
    saved_at: int = 0
    """Images seen by the state that the killed run left behind."""
    sittings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def of(self, run: str) -> Path:
        """Return the folder of a run."""
        return self.folder / run

    def code(self, run: str, save_minutes: float) -> str:
        """Return Python code that goes on with a run."""
        settings = {
            "device": str(self.asked.device),
            "smoke": self.asked.smoke,
            "save_minutes": save_minutes,
            "images": self.steps * self.recipe.schedule.batch,
        }
        places = f"{self.recipe.name!r}, {str(self.of(run))!r}, {str(self.folder / 'cache')!r}"
        return f"from benchmarks.cuda.sitting import sit; sit({places}, **{settings!r})"


def measure(asked: Measurement, recipe: str) -> None:
    """Kill a run, resume it, and hold it against one that was left alone."""
    own = recipe_of(recipe, smoke=asked.smoke)
    asked.note = NOTE.format(steps=STEPS, recipe=recipe)
    with tempfile.TemporaryDirectory(prefix="sdbench-cuda-") as name:
        runs = _Runs(asked, own, Path(name), steps=6 if asked.smoke else STEPS)
        rows = 2 * own.schedule.batch
        size = write_cache(runs.folder / "cache", own, rows, smoke=asked.smoke)
        schedule = own.schedule
        asked.keep(
            {"what": "the run", "batch": schedule.batch, "micro_batch": schedule.micro_batch}
            | {"precision": own.precision, "rows_in_cache": rows, "cache_gb": size / 1e9}
        )
        asks: list[tuple[str, float, Callable[[], Mapping[str, Any]]]] = [
            ("killed", 60, lambda: _killed(runs)),
            ("resumed", 40, lambda: _resumed(runs)),
            ("left alone", 60, lambda: _left_alone(runs)),
            ("difference in the log", 0, lambda: _logs(runs)),
            ("difference in the state", 0, lambda: _states(runs)),
        ]
        for what, seconds, call in asks:
            asked.ask(what, seconds, call)


def _killed(runs: _Runs) -> Mapping[str, Any]:
    """Kill a sitting in a step after its first saved state; say how it went until then."""
    folder = runs.of("disturbed")
    began = time.time()
    # In a rehearsal every step is saved: there it is the clock that would take too long.
    save_minutes = 1e-6 if runs.asked.smoke else _SAVE_MINUTES
    with running(runs.code("disturbed", save_minutes), runs.folder / "killed.txt", REPEATABLE) as process:
        while not (saved := _saves(folder)) or _seen(folder) <= saved[0]["seen"]:
            if process.poll() is not None:
                raise failed("the run ended before it could be killed", runs.folder / "killed.txt")
            if runs.asked.left() < _COMPARING:
                raise TimeoutError("no step after a saved state in the time that there was")
            time.sleep(0.02)
        process.kill()
    found = _figures(runs, folder, began)
    runs.saved_at = int(read_state(folder / FILE, mapped=True)["seen"])
    runs.sittings["killed"] = found
    state = folder / FILE
    return {
        **found,
        "steps": _seen(folder) // runs.recipe.schedule.batch,
        "saved_at_step": runs.saved_at // runs.recipe.schedule.batch,
        "state_gb": state.stat().st_size / 1e9,
    }


def _resumed(runs: _Runs) -> Mapping[str, Any]:
    """Go on with the killed run to its end, in as many steps as both runs have time for."""
    killed = runs.sittings["killed"]
    if killed["rate"]:
        batch, step = runs.recipe.schedule.batch, runs.recipe.schedule.batch / killed["rate"]
        twice = 2 * (killed["resume_s"] + killed["save_s"]) + killed["save_s"] + _COMPARING
        affordable = int((runs.asked.left() - twice + runs.saved_at / batch * step) / (2 * step))
        runs.steps = min(runs.steps, max(affordable, runs.saved_at // batch + 2))
    return {"from_step": runs.saved_at // runs.recipe.schedule.batch, **_sit(runs, "disturbed", "resumed")}


def _left_alone(runs: _Runs) -> Mapping[str, Any]:
    """Train from the first step to the last."""
    return _sit(runs, "undisturbed", "left alone")


def _sit(runs: _Runs, run: str, name: str) -> Mapping[str, Any]:
    """Let a sitting come to its end; what it has done when time is up stays in its log."""
    folder, output, began = runs.of(run), runs.folder / f"{name}.txt", time.time()
    with running(runs.code(run, WHOLE_RUN), output, REPEATABLE) as process:
        status = process.wait(timeout=max(1.0, runs.asked.left() - 5))
    if status:
        raise failed(f"exit status {status}", output)
    runs.sittings[name] = _figures(runs, folder, began)
    return {"steps": _seen(folder) // runs.recipe.schedule.batch, **runs.sittings[name]}


def _figures(runs: _Runs, folder: Path, began: float) -> dict[str, Any]:
    """Return what the sitting that began then (seconds of the clock) took."""
    batch, own = (
        runs.recipe.schedule.batch,
        [note for note in notes(folder) if note.get("at", began) >= began],
    )
    at = {note["what"]: note["at"] for note in reversed(own) if "at" in note}
    saves = [note for note in own if note["what"] == "saved"]
    (loaded,) = (note for note in own if note["what"] == "loaded")
    # Steps with what is done once, in the first, and with the writing of a state, are left out.
    slow = {loaded["seen"] + batch, *(note["seen"] + batch for note in saves)}
    lines = [line for line in read_log(folder) if line["seen"] > loaded["seen"]]
    steady = [line["images_per_second"] for line in lines if line["seen"] not in slow]
    return {
        "rate": statistics.median(steady) if steady else None,
        "peak_gib": max(line["memory_gib"] for line in lines),
        "to_networks_s": at["networks"] - began,
        "load_s": loaded["seconds"] if loaded["seen"] else None,
        "resume_s": at["report"] - began,
        "save_s": statistics.median(note["seconds"] for note in saves),
        "without_fixed_bits": ", ".join(note["of"] for note in own if note["what"] == "other bits") or None,
    }


def _logs(runs: _Runs) -> Mapping[str, Any]:
    batch = runs.recipe.schedule.batch
    found = compare_logs(runs.of("disturbed"), runs.of("undisturbed"), batch=batch)
    return {**found, "resumed_after": runs.saved_at // batch}


def compare_logs(one: Path, other: Path, *, batch: int) -> dict[str, Any]:
    """Compare losses and gradient norms of every step of which both runs' logs tell."""
    mine, theirs = _told(one), _told(other)
    both = sorted(mine.keys() & theirs.keys())
    if not both:
        raise RuntimeError("no step is in both logs")
    differing = [seen for seen in both if mine[seen] != theirs[seen]]
    apart = [
        abs(value - theirs[seen][name]) / max(abs(value), abs(theirs[seen][name]))
        for seen in differing
        for name, value in mine[seen].items()
        if value != theirs[seen][name]
    ]
    return {
        "steps": len(both),
        "that_differ": len(differing),
        "first_that_differs": differing[0] // batch if differing else None,
        # Where a gradient overflowed in float16 its norm is infinite, and no ratio.
        "largest_relative": max((ratio for ratio in apart if math.isfinite(ratio)), default=0.0),
        "last_loss": mine[both[-1]]["loss"],
    }


def _told(folder: Path) -> dict[int, dict[str, float]]:
    """Return what a log tells of each step, but for times and memory."""
    beside = ("seen", "seconds", "images_per_second", "memory_gib")
    lines = read_log(folder)
    return {line["seen"]: {name: line[name] for name in line if name not in beside} for line in lines}


def _states(runs: _Runs) -> Mapping[str, Any]:
    """Compare the states that both runs left at the end, tensor by tensor."""
    mine, theirs = (read_state(runs.of(run) / FILE, mapped=True) for run in ("disturbed", "undisturbed"))
    if mine["seen"] != theirs["seen"]:
        raise RuntimeError(f"states of {mine['seen']} and {theirs['seen']} images")
    tensors = differing = 0
    for part in ("model", "average", "optimizer"):
        found = differences(_tensors(mine[part]), _tensors(theirs[part]), runs.asked.device)
        runs.asked.keep({"what": f"difference in the {part}", **found})
        tensors, differing = tensors + found["tensors"], differing + found["that_differ"]
    scale = (mine["scaler"] or {}).get("scale")
    return {"tensors": tensors, "that_differ": differing, "loss_scale": scale}


def differences(
    mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], device: torch.device
) -> dict[str, Any]:
    """Return how many tensors differ in a bit, by how much at the most, and by how much of their norm."""
    if mine.keys() != theirs.keys():
        raise RuntimeError(f"tensors of one run alone: {sorted(mine.keys() ^ theirs.keys())[:3]}")
    differing, largest, error, norm = 0, 0.0, 0.0, 0.0
    for name, tensor in mine.items():
        one, other = tensor.to(device), theirs[name].to(device)
        norm += float(one.double().square().sum())
        if not torch.equal(one, other):
            differing += 1
            apart = (one.double() - other.double()).abs()
            largest, error = max(largest, float(apart.max())), error + float(apart.square().sum())
    relative = (error / norm) ** 0.5 if norm else None
    return {"tensors": len(mine), "that_differ": differing, "largest": largest, "of_the_norm": relative}


def _tensors(state: Any, name: str = "") -> dict[str, Tensor]:
    """Return the tensors of nested dictionaries by their paths."""
    if isinstance(state, Tensor):
        return {name: state}
    if not isinstance(state, Mapping):
        return {}
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        found |= _tensors(value, f"{name}/{key}")
    return found


def _saves(folder: Path) -> list[Mapping[str, Any]]:
    return [note for note in notes(folder) if note["what"] == "saved"]


def _seen(folder: Path) -> int:
    """Return the images seen by the last line of a run's log."""
    return max((line["seen"] for line in read_log(folder)), default=0)
