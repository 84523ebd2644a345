"""Which of several processes this is: what accelerate, torchrun, Slurm or a person says of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pytest_sdbench.base.errors import SdbenchError

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """This process among those that share a piece of work."""

    rank: int = 0
    """From 0 on."""
    size: int = 1
    local_rank: int = 0
    """Among those on this machine."""
    local_size: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.size and self.local_rank >= 0):
            raise ValueError(f"no such part: {self}")

    @classmethod
    def from_text(cls, text: str) -> Part:
        """Read ``2/4``, the second of four; raises ValueError that says what to give."""
        number, slash, count = text.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise ValueError("give the number of a part and how many there are, such as 1/4")
        return cls(int(number) - 1, int(count))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Part:
        """Read what launchers say of a process; without them it is the only one.

        That is accelerate and torchrun, else ``srun``. The tasks of a Slurm array count on top of either.
        Raises SdbenchError, naming the variables, for what is no number or contradicts itself.
        """
        launched = "RANK" in environment or "WORLD_SIZE" in environment
        inner = _read(environment, _LAUNCHER if launched else _TASKS)
        if "SLURM_ARRAY_TASK_ID" not in environment:
            return inner
        outer = _read(environment, _ARRAY)
        rank, size = outer.rank * inner.size + inner.rank, outer.size * inner.size
        return cls(rank, size, inner.local_rank, inner.local_size)

    def slice(self, items: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
        """Return this part of items, consecutive ones, and those of the other parts, in their order."""
        first, last = (len(items) * rank // self.size for rank in (self.rank, self.rank + 1))
        return items[first:last], [*items[:first], *items[last:]]

    def share_cores(self) -> None:
        """Take this part of the CPU's cores for torch, unless its number of threads is set."""
        import torch

        if self.local_size > 1 and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // self.local_size))


ALONE = Part()


def _of_array(task: int, count: int, least: int, step: int) -> Part:
    """Return the part of a task; numbers of an array may begin anywhere, and some may be left out."""
    return Part((task - least) // max(step, 1) % count, count)


_LAUNCHER = (Part, {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1})
_TASKS = (
    Part,
    {"SLURM_PROCID": 0, "SLURM_NTASKS": 1, "SLURM_LOCALID": 0, "SLURM_NTASKS_PER_NODE": 1},
)
_ARRAY = (
    _of_array,
    {
        "SLURM_ARRAY_TASK_ID": 0,
        "SLURM_ARRAY_TASK_COUNT": 1,
        "SLURM_ARRAY_TASK_MIN": 0,
        "SLURM_ARRAY_TASK_STEP": 1,
    },
)


def _read(
    environment: Mapping[str, str], words: tuple[Callable[[int, int, int, int], Part], Mapping[str, int]]
) -> Part:
    """Return what some variables, each with its default, say of a process."""
    make, defaults = words
    found = {name: environment[name] for name in defaults if name in environment}
    try:
        return make(*(int(found.get(name, default)) for name, default in defaults.items()))
    except (ValueError, ZeroDivisionError):
        message = "the variables of the launcher contradict each other"
        remedy = "Start it with `accelerate launch -m pytest_sdbench sample`, or unset these variables"
        raise SdbenchError(message, key="environment", found=found, remedy=remedy) from None
