"""Describe the machine and the libraries of a run, for reports and records."""

from __future__ import annotations

import gc
import hashlib
import math
import platform
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from pytest_sdbench.base.errors import Unavailable, first_line
from pytest_sdbench.base.part import ALONE, Part

T = TypeVar("T")

LIBRARIES = ("torch", "diffusers", "transformers", "open_clip_torch", "torch-fidelity", "pytest-sdbench")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a score depends on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def torch_device(asked: str, *, option: str, part: Part = ALONE) -> str:
    """Return the torch device that is meant; ``auto`` is a GPU where there is one.

    Of several GPUs ``auto`` and ``cuda`` are all, and one of several processes takes its own. Raises
    Unavailable, naming the option, for a device that this machine has not.
    """
    import torch

    if asked in ("auto", "cuda") and torch.cuda.is_available():
        number = torch.cuda.device_count()
        return "cuda" if part.size == 1 < number else f"cuda:{part.local_rank % number}"
    if asked != "auto":
        try:
            torch.empty(0, device=asked)
        except (RuntimeError, AssertionError) as error:
            remedy = "Leave the option out, or name a device of this machine"
            raise Unavailable(f"{option} {asked}: {first_line(error)}", remedy=remedy) from None
        return asked
    return "mps" if torch.backends.mps.is_available() else "cpu"


def devices_of(device: str) -> list[str]:
    """Return the devices that a torch device stands for: ``cuda`` for all GPUs."""
    import torch

    if device != "cuda":
        return [device]
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or [device]


@contextmanager
def true_float32() -> Iterator[None]:
    """Keep convolutions and products of float32 in float32 on CUDA.

    By default PyTorch rounds what a convolution multiplies to the 10 bits of TensorFloat-32 there, and scores
    would depend on the kind of GPU. The setting is the process's; it is put back at the end.
    """
    from torch.backends import cuda, cudnn

    # PyTorch has an older and a newer way to say this, and refuses to read the one where the other was used.
    places: tuple[Any, ...] = (cudnn, cuda.matmul)
    name: str = "allow_tf32"
    exact: object = False
    try:
        before = [getattr(place, name) for place in places]
    except RuntimeError:
        places = (cudnn.conv, cuda.matmul)  # type: ignore[attr-defined]  # torch has no types for it
        name, exact = "fp32_precision", "ieee"
        before = [getattr(place, name) for place in places]
    changed = [(place, value) for place, value in zip(places, before, strict=True) if value != exact]
    try:
        for place, _ in changed:
            setattr(place, name, exact)
        yield
    finally:
        for place, value in changed:
            setattr(place, name, value)


def device_name(device: str) -> str:
    """Return a device's name as its maker calls it; that of a GPU elsewhere is not known here."""
    if device.startswith("cuda"):
        import torch

        # The driver of a cluster need not have what its workers have.
        return str(torch.cuda.get_device_name(torch.device(device))) if torch.cuda.is_available() else device
    if device == "cpu":
        return _cpu_name()
    return device


def timed_on(device: str) -> str:
    """Return what an absolute time is of, in words: times of two that differ in it are not comparable.

    That is the device and its processor, which launches the kernels of a small call one by one; of a CPU also
    the threads that torch uses. A processor that does not tell its model goes by a number of its machine.
    """
    import torch

    processor = _cpu_name()
    if processor in (platform.processor(), platform.machine()):
        processor = f"{processor} of machine {_machine_number()}"
    if torch.device(device).type == "cpu":
        threads = torch.get_num_threads()
        return f"{processor}, {threads} thread{'s' if threads > 1 else ''}"
    return f"{device_name(device)}, {processor}"


def _machine_number() -> str:
    """Return 8 digits that tell this machine from others, and nothing about it to anybody else."""
    own = [platform.node()]
    with suppress(OSError):
        own.append(Path("/etc/machine-id").read_text(encoding="ascii"))
    return hashlib.sha256("\n".join(own).encode()).hexdigest()[:8]


def _cpu_name() -> str:
    """Return the processor's model; `platform.processor()` is empty or just the architecture on Linux."""
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
        return asked.stdout.strip() or platform.machine()
    with suppress(OSError):
        found = re.search("^model name[^:]*:(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)
        if found is not None:
            return found[1].strip()
    return platform.processor() or platform.machine()


@contextmanager
def shared_threads(workers: int) -> Iterator[None]:
    """Share the threads of a CPU out among workers."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // workers))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether a smaller batch may do."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError) or bool(should_reduce_batch_size(error))


def halve_to_fit(attempt: Callable[[int], T], size: int, device: str) -> tuple[T, int]:
    """Attempt so much at once, half as much whenever memory runs out; return what came of it, and the size.

    Raises what the attempt raises, and RuntimeError where memory does not suffice for 1.
    """
    while True:
        try:
            return attempt(size), size
        except RuntimeError as error:
            if size == 1 or not out_of_memory(error):
                raise
        size = math.ceil(size / 2)
        release_memory(device)


LOCK_TIMEOUT = 900.0
"""Seconds to wait for another process's timing to end."""


def synchronise(device: str) -> None:
    """Wait until everything queued on ``device`` is done."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device.startswith("mps"):
        torch.mps.synchronize()


def release_memory(device: str) -> None:
    """Free networks that nobody refers to, and what the allocator keeps of them."""
    import torch

    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    elif device.startswith("mps"):
        torch.mps.empty_cache()


@contextmanager
def machine_lock(timeout: float = LOCK_TIMEOUT) -> Iterator[Path]:
    """Hold the lock that lets one process of this machine time at once; yield its file.

    Raise ``Unavailable`` after ``timeout`` seconds, or where the lock cannot be made.
    """
    from filelock import FileLock, Timeout

    path = Path(tempfile.gettempdir()) / "pytest-sdbench-timing.lock"
    lock = FileLock(path, mode=0o666)  # for the other users of the machine
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        what = f"another process has been timing for {timeout:.0f} s"
        raise Unavailable(what, file=path, remedy="Wait for it to end") from None
    except OSError as error:
        what, remedy = "the lock for timings cannot be taken", "Set TMPDIR to a writable folder"
        raise Unavailable(what, file=path, found=str(error), remedy=remedy) from error
    try:
        yield path
    finally:
        lock.release()
