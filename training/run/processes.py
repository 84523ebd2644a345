"""Start the processes of a run, and let them agree."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    set_seed,
)
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from pytest_sdbench.base.errors import first_line
from training.errors import TrainingError, explain_write_errors
from training.recipes.schema import Recipe

_PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""What accelerate calls the precisions of a recipe."""
FRESH_SECONDS = 75.0
"""Longer than the minute for which NFS may show a host a folder as it was."""


def start(recipe: Recipe, folder: Path, device: str = "auto", *, trains: bool = True) -> Accelerator:
    """Join the processes of this run and choose its device and precision.

    `device` is `auto`, `cpu` or `cuda`. What does not train computes in float32 on a CPU. Raises
    TrainingError for a device, a precision or a tracker that is not available.
    """
    # Apple's GPUs have no float64, which losses are summed in.
    cpu = device == "cpu" or not torch.cuda.is_available()
    _check_available(recipe, device, cpu and trains)
    _check_launch(recipe)
    # accelerate keeps the precision of the first run of a process; the next may want another.
    AcceleratorState._reset_state()
    if _restartable():
        _join_under_own_keys("gloo" if cpu else _gpu_backend())
    accelerator = Accelerator(
        mixed_precision=_PRECISIONS[recipe.precision] if trains or not cpu else "no",
        # Gradients are summed here, whatever its environment says: it would divide them once more.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        cpu=cpu,
        log_with=list(recipe.watch.trackers) or None,
        project_dir=folder,
        # Gradients live where they are summed, and there are no buffers to keep alike.
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
        ],
    )
    if cpu and accelerator.num_processes > 1 and fsdp_is_wanted():
        shard_on_cpus(accelerator, FullyShardedDataParallelPlugin())
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


def shard_on_cpus(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Have accelerate shard here, too: it does on GPUs alone, and would go on unsharded without a word."""
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    # Where accelerate keeps it for all who ask later.
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def sharded(accelerator: Accelerator) -> bool:
    """Say whether each process holds only a part of the weights."""
    return accelerator.distributed_type is DistributedType.FSDP


def agree(accelerator: Accelerator, *wishes: bool) -> list[bool]:
    """Make one process's wish that of all: they report, save and stop at the same step."""
    return [bool(most) for most in largest(accelerator, *wishes)]


def largest(accelerator: Accelerator, *numbers: int) -> list[int]:
    """Return the largest of each number over all processes."""
    if accelerator.num_processes == 1:
        return list(numbers)
    shared = torch.tensor(numbers, dtype=torch.int64, device=accelerator.device)
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return [int(most) for most in shared.tolist()]


def started_again() -> bool:
    """Say whether torchrun or Slurm has started this run before, and it failed or had to make room."""
    return any(
        os.environ.get(name, "0") != "0" for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    )


def lost_process(error: RuntimeError) -> TrainingError | None:
    """Explain the error of a process that waits for one that is gone; return None for any other error.

    torch raises a RuntimeError with the words of the library that carries the messages.
    """
    words = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "NCCL", "TCPStore")
    if not any(word in str(error) for word in words):
        return None
    return TrainingError(
        "another process of the run is gone, or does not answer",
        found=first_line(error),
        remedy="Look for that process's own error; the same command goes on from the last state",
    )


def check_shared(folder: Path, accelerator: Accelerator) -> None:
    """Raise TrainingError where not all hosts of a run share its folder; all processes take part.

    Without that a restart would find no state, or an old one, whenever another host has the first process.
    """
    if accelerator.num_processes <= int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)):
        return
    name = [f".shared-{uuid.uuid4().hex}"]
    distributed.broadcast_object_list(name)
    mark = folder.parent / name[0]
    with explain_write_errors(mark, "the run"):
        if accelerator.is_main_process:
            mark.touch()
        accelerator.wait_for_everyone()
        until = time.monotonic() + FRESH_SECONDS
        while not (found := mark.exists()) and time.monotonic() < until:
            time.sleep(1.0)
        (missing,) = agree(accelerator, not found)
        if accelerator.is_main_process:
            mark.unlink()
    if missing:
        raise TrainingError(
            "the hosts of the run do not share this folder",
            file=folder,
            found=f"a file of the first process, {'also' if found else 'not'} seen by this one",
            remedy="Give a folder that all hosts see: --folder RUN_FOLDER, or SDBENCH_CACHE=FOLDER",
        )


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


def _restartable() -> bool:
    """Say whether torchrun may start the processes again, with one store for all starts."""
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return shared and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def _join_under_own_keys(backend: str) -> None:
    """Join the processes of a torchrun under keys of this start alone.

    In the store that torchrun keeps for all starts, processes find addresses of the start before: that is
    PyTorch's issue 135712. Starts are counted by each host for itself, so with several hosts there is no
    number that all know. Raises TrainingError there.
    """
    if distributed.is_initialized():
        return
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        raise TrainingError(
            "torchrun would show the processes of a restart addresses of those before it",
            key="TORCH_DISABLE_SHARE_RDZV_TCP_STORE",
            remedy="Set it to 1 in the environment of torchrun, with --rdzv-backend c10d",
        )
    store, rank, world = next(rendezvous("env://"))
    own = PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    distributed.init_process_group(backend, store=own, rank=rank, world_size=world)


def _gpu_backend() -> str:
    """Return the library of messages between GPUs; sharded weights are gathered on CPUs, too."""
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return "cuda:nccl,cpu:gloo" if fsdp_is_wanted() else "nccl"


def fsdp_is_wanted() -> bool:
    """Say whether the processes of this launch are to share the weights."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def _check_launch(recipe: Recipe) -> None:
    """Check what `accelerate launch` was told: the recipe's precision counts, and DeepSpeed is unknown."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise TrainingError(
            "DeepSpeed is not supported: FSDP2 shares the weights among processes",
            key="ACCELERATE_USE_DEEPSPEED",
            remedy="Give accelerate launch --use_fsdp --fsdp_version 2, or a configuration without DeepSpeed",
        )
    told, own = os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), _PRECISIONS[recipe.precision]
    if told not in ("no", own) and os.environ.get("RANK", "0") == "0":
        print(f"accelerate was told {told}; the recipe counts, which says precision={recipe.precision}")


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
