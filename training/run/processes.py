"""Start the processes of a run, and let them agree."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, set_seed
from torch import distributed

from training.errors import TrainingError
from training.recipes.schema import Recipe


def start(recipe: Recipe, folder: Path, device: str = "auto") -> Accelerator:
    """Join the processes of this run and choose its device and precision.

    `device` is `auto`, `cpu` or `cuda`. Raises TrainingError for a device, a precision or a tracker that is
    not available.
    """
    # Apple's GPUs have no float64, which losses are summed in.
    cpu = device == "cpu" or not torch.cuda.is_available()
    _check_available(recipe, device, cpu)
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
        _stay_on_core(accelerator.local_process_index)
    set_seed(recipe.schedule.seed)
    return accelerator


def sharded(accelerator: Accelerator) -> bool:
    """Say whether each process holds only a part of the weights."""
    return accelerator.distributed_type is DistributedType.FSDP


def agree(accelerator: Accelerator, *wishes: bool) -> list[bool]:
    """Make one process's wish that of all: they report, save and stop at the same step."""
    if accelerator.num_processes == 1:
        return list(wishes)
    flags = torch.tensor([float(wish) for wish in wishes], device=accelerator.device)
    distributed.all_reduce(flags, distributed.ReduceOp.MAX)
    return [bool(flag) for flag in flags.tolist()]


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and Ctrl-C into a question for the loop to ask; a second Ctrl-C interrupts."""
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_available(recipe: Recipe, device: str, cpu: bool) -> None:
    """Check device, precision and trackers; accelerate would drop a missing tracker without a word."""
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "there is no CUDA device here", key="--device", found=device, remedy="Give cpu or auto"
        )
    if cpu and recipe.precision == "fp16":
        remedy = "Give precision=bf16 or fp32"
        raise TrainingError("float16 training needs a GPU", key="precision", found="fp16", remedy=remedy)
    known = {str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()}
    for name in recipe.watch.trackers:
        if name not in known:
            raise TrainingError(
                "the library of this tracker is not installed",
                file=recipe.name,
                key="watch.trackers",
                found=name,
                remedy="Install it, or leave it out: the log of the run is written in any case",
            )


def _stay_on_core(rank: int) -> None:
    """Keep this process on one core: processes that wait for each other lose most when moved about."""
    if hasattr(os, "sched_setaffinity") and torch.get_num_threads() == 1:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
