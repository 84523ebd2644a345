"""Tell how a run goes: means of losses that do not wait for the device, a status line, a JSON line."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from pytest_sdbench.base.environment import device_name, versions
from pytest_sdbench.base.files import write_atomically
from pytest_sdbench.base.text import duration
from training.errors import TrainingError, explain_write_errors
from training.recipes.schema import Recipe
from training.run.processes import sharded

LOG = "log.jsonl"
_NEVER = 2**62


class Meter:
    """Sums of named losses, and the first step at which each was not finite, kept on the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._broken: dict[str, Tensor] = {}

    def add(self, losses: Mapping[str, Tensor], step: int) -> None:
        """Take the losses of one piece of this step; parts come before their sum in blame."""
        for name in [*(name for name in losses if name != "loss"), *(["loss"] if "loss" in losses else [])]:
            value = losses[name].detach().double()
            self._sums[name] = self._sums.get(name, 0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
            self.watch(name, value, step)

    def watch(self, name: str, value: Tensor, step: int) -> None:
        """Remember the first step at which a value is not finite."""
        if name not in self._broken:
            self._broken[name] = torch.tensor(_NEVER, device=self._device)
        here = torch.where(torch.isfinite(value), _NEVER, step)
        self._broken[name] = torch.minimum(self._broken[name], here)

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over all processes since the last call, and start anew."""
        if not self._sums:
            return {}
        local = torch.stack([total / self._counts[name] for name, total in self._sums.items()])
        shared = accelerator.reduce(local, reduction="mean")
        values = dict(zip(self._sums, shared.tolist(), strict=True))
        self._sums, self._counts = {}, {}
        return {"loss": values.pop("loss"), **values} if "loss" in values else values

    def check(self, accelerator: Accelerator, state: Path) -> None:
        """Raise TrainingError if anything was not finite, naming the earliest step and what broke in it."""
        if not self._broken:
            return
        local = torch.stack(list(self._broken.values()))
        steps = accelerator.gather(local[None]).amin(dim=0).tolist()
        step, name = min(zip(steps, self._broken, strict=True), key=lambda pair: pair[0])
        if step < _NEVER:
            kept = f"{state} is the last good state" if state.is_file() else "nothing was saved before"
            raise TrainingError(
                f"at step {step + 1} {name} is not a finite number; {kept}",
                key=name,
                remedy="Go on from there with a lower optimizer.learning_rate or optimizer.clip, or with "
                "precision=bf16 or fp32",
            )


class Reporter:
    """Tell how a run goes: a line to `say`, a line of `log.jsonl`, and accelerate's trackers if it has some.

    Every process may call it; the main process alone says and writes.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        accelerator: Accelerator,
        seen: int,
        end: int,
        say: Callable[[str], None],
    ) -> None:
        """Go on after `seen` images of a run that ends after `end`.

        Lines of the log that come from steps lost with a kill are dropped; those steps are taken again.
        """
        self._folder, self._recipe, self._say = folder, recipe, say
        self._main, self._shared = accelerator.is_main_process, _shared(accelerator)
        self._accelerator = accelerator if recipe.watch.trackers and self._main else None
        self._first = self._last = seen
        self._end = end
        self._seconds_before = trained_seconds(folder) or 0.0
        self._began = self._reported = time.monotonic()
        if self._main:
            self._drop_lines_after(seen)
        if self._accelerator is not None:
            self._accelerator.init_trackers(folder.name)

    def begin(self, parameters: int) -> None:
        """Say what is about to be trained."""
        if self._main:
            done = f"{self._first:,} of {self._recipe.images:,} images seen"
            batch = self._recipe.schedule.batch
            self._say(
                f"{self._folder.name}: {done}; {parameters:,} parameters learn; {batch} images a step"
                f"{self._shared}"
            )

    def report(self, seen: int, values: Mapping[str, float]) -> None:
        """Tell images, rate, losses, learning rate, gradient norm, memory and time left."""
        now = time.monotonic()
        rate = (seen - self._last) / max(now - self._reported, 1e-9)
        mean_rate = (seen - self._first) / max(now - self._began, 1e-9)
        self._reported, self._last = now, seen
        if not self._main:
            return
        memory = memory_gib()
        figures = {
            "images_per_second": round(rate, 2),
            "seconds": round(self._seconds_before + now - self._began, 1),
            "memory_gib": round(memory, 3),
        }
        words = " ".join(
            f"{name} {value:.3g}" if name == "lr" else f"{name.replace('_', ' ')} {value:.4f}"
            for name, value in values.items()
        )
        done = f"{seen:,}/{self._end:,} images"
        left = duration((self._end - seen) / max(mean_rate, 1e-9))
        self._say(f"{self._folder.name}: {done}, {rate:.1f}/s, {words}, {memory:.1f} GiB, {left} left")
        self._write(seen, {**values, **figures})

    def validation(self, seen: int, values: Mapping[str, float]) -> None:
        """Tell losses that are measured the same way every time."""
        if self._main:
            self._write(seen, values)
            words = " ".join(f"{name} {value:.4f}" for name, value in values.items())
            self._say(f"{self._folder.name}: {seen:,} images, {words}")

    def close(self) -> None:
        """Finish the trackers, which ends the group of processes, too."""
        if self._accelerator is not None:
            self._accelerator.end_training()

    def _write(self, seen: int, values: Mapping[str, float]) -> None:
        path = self._folder / LOG
        with explain_write_errors(path, "the log of the run"), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"seen": seen, **values}) + "\n")
        if self._accelerator is not None:
            self._accelerator.log(dict(values), step=seen)

    def _drop_lines_after(self, seen: int) -> None:
        path = self._folder / LOG
        kept = "".join(json.dumps(line) + "\n" for line in read_log(self._folder) if line["seen"] <= seen)
        if path.is_file() and kept.encode() != path.read_bytes():
            with explain_write_errors(path, "the log of the run"):
                write_atomically(path, kept.encode())


def _shared(accelerator: Accelerator) -> str:
    """Say how several processes share the work; nothing for one."""
    if accelerator.num_processes == 1:
        return ""
    of_each = "which share the weights (FSDP2)" if sharded(accelerator) else "each with all weights"
    return f"; {accelerator.num_processes} processes, {of_each}"


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log, without a line that a kill cut short."""
    found = []
    path = folder / LOG
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        with suppress(ValueError, KeyError, TypeError):
            report = json.loads(line)
            found.append({**report, "seen": int(report["seen"])})
    return found


def trained_seconds(folder: Path) -> float | None:
    """Return how long a run has trained, all its sittings together; None where its log does not say."""
    told = [line["seconds"] for line in read_log(folder) if line.get("seconds") is not None]
    return float(told[-1]) if told else None


def hardware(device: torch.device, processes: int, micro_batch: int) -> str:
    """Return the devices of a run in words, and how many images one of them takes at once."""
    if device.type != "cpu":
        return f"{processes} x {device_name(str(device))}, {micro_batch:,} images at once on each"
    told = (
        f"processes: {processes}, threads of each: {torch.get_num_threads()}, images at once: {micro_batch:,}"
    )
    return f"{device_name(device.type)}; {told}"


def libraries() -> str:
    """Return the versions of Python and of the libraries that train, in words."""
    found = versions()
    for library in ("accelerate", "peft"):
        with suppress(PackageNotFoundError):
            found[library] = version(library)
    return ", ".join(f"{library} {number}" for library, number in found.items())


def memory_gib() -> float:
    """Return the peak memory of this process: that of the GPU where there is one, else resident."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
