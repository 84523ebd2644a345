"""Tell how a run goes: means of losses that do not wait for the device, a status line, a JSON line."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from pytest_sdbench.base.environment import device_name
from pytest_sdbench.base.files import write_atomically
from training.errors import TrainingError

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
                remedy="Lower optimizer.learning_rate or optimizer.clip, or give precision=bf16 or fp32",
            )


class Status:
    """The clock of a run."""

    def __init__(self, name: str, seen: int, end: int, before: float = 0.0) -> None:
        """Go on after `seen` images, which took `before` seconds."""
        self.name, self.end, self._before = name, end, before
        self.began = self.reported = time.monotonic()
        self._first = self._seen = seen
        self.figures: dict[str, float] = {}

    def line(self, seen: int, values: Mapping[str, float]) -> str:
        """Return the status line: images, rate, losses, learning rate, gradient norm, memory, time left."""
        now = time.monotonic()
        rate = (seen - self._seen) / max(now - self.reported, 1e-9)
        whole = (seen - self._first) / max(now - self.began, 1e-9)
        left = (self.end - seen) / max(whole, 1e-9)
        self.reported, self._seen = now, seen
        memory = memory_gib()
        self.figures = {
            "images_per_second": round(rate, 2),
            "seconds": round(self._before + now - self.began, 1),
            "memory_gib": round(memory, 3),
        }
        words = " ".join(
            f"{name} {value:.3g}" if name == "lr" else f"{name.replace('_', ' ')} {value:.4f}"
            for name, value in values.items()
        )
        done = f"{seen:,}/{self.end:,} images"
        return f"{self.name}: {done}, {rate:.1f}/s, {words}, {memory:.1f} GiB, {_duration(left)} left"


class Log:
    """`log.jsonl` of a run, and accelerate's trackers where the recipe names some."""

    def __init__(self, folder: Path, seen: int, accelerator: Accelerator | None) -> None:
        """Go on after `seen` images: lines of steps lost with a kill are dropped; they come again."""
        self._path, self._accelerator = folder / "log.jsonl", accelerator
        if self._path.is_file():
            text = self._path.read_text(encoding="utf-8", errors="replace")
            places = [(line, _seen(line)) for line in text.splitlines()]
            kept = "".join(f"{line}\n" for line, place in places if place is not None and place <= seen)
            if kept != text:
                with _explained(self._path):
                    write_atomically(self._path, kept.encode())
        if accelerator is not None:
            accelerator.init_trackers(folder.name)

    def write(self, seen: int, values: Mapping[str, float]) -> None:
        """Append one line."""
        with _explained(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"seen": seen, **values}) + "\n")
        if self._accelerator is not None:
            self._accelerator.log(dict(values), step=seen)

    def close(self) -> None:
        """Finish the trackers."""
        if self._accelerator is not None:
            self._accelerator.end_training()


def trained_seconds(folder: Path) -> float | None:
    """Return how long a run has trained, all its sittings together; None where its log does not say."""
    path = folder / "log.jsonl"
    if not path.is_file():
        return None
    told = [
        json.loads(line).get("seconds")
        for line in path.read_text(encoding="utf-8").splitlines()
        if _seen(line) is not None
    ]
    return next((float(seconds) for seconds in reversed(told) if seconds is not None), None)


def hardware(device: torch.device, processes: int) -> str:
    """Return the devices of a run in words."""
    if device.type != "cpu":
        return f"{processes} x {device_name(str(device))}"
    threads = torch.get_num_threads()
    return f"{device_name(device.type)}; processes: {processes}, threads of each: {threads}"


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainingError(
            "the log of the run cannot be written",
            file=path,
            found=error.strerror or str(error),
            remedy="Make room on the disk, then run the same command: it goes on from the last state",
        ) from error


def memory_gib() -> float:
    """Return the peak memory of this process: that of the GPU where there is one, else resident."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _seen(line: str) -> int | None:
    """Return the images of a line of the log; None for a line that a kill cut short."""
    try:
        return int(json.loads(line)["seen"])
    except (ValueError, KeyError, TypeError):
        return None


def _duration(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"
