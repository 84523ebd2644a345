"""What launchers say of a process."""

from __future__ import annotations

import pytest

from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.base.part import Part

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SRUN = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}


def array(task: int, count: int, least: int = 0, step: int | None = None) -> dict[str, str]:
    words = {"ID": task, "COUNT": count, "MIN": least, **({} if step is None else {"STEP": step})}
    return {f"SLURM_ARRAY_TASK_{key}": str(value) for key, value in words.items()}


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({}, Part(0, 1, 0, 1)),
        (TORCHRUN, Part(5, 8, 1, 4)),
        (SRUN, Part(3, 4, 1, 1)),
        (SRUN | TORCHRUN, Part(5, 8, 1, 4)),  # srun starts torchrun, which starts this
        (array(2, 4), Part(2, 4)),
        (array(7, 4, least=5), Part(2, 4)),
        (array(12, 4, step=4), Part(3, 4)),
        (array(97, 2, least=3), Part(0, 2)),  # two tasks that are run again: 3 and 97
        (array(1, 3) | TORCHRUN, Part(1 * 8 + 5, 24, 1, 4)),
        (array(1, 3) | SRUN, Part(1 * 4 + 3, 12, 1, 1)),
    ],
)
def test_a_part_is_read_from_what_launchers_say(environment: dict[str, str], part: Part) -> None:
    assert Part.from_environment(environment) == part


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "one"},
        {"WORLD_SIZE": "0"},
        {"SLURM_PROCID": "4", "SLURM_NTASKS": "4"},
        {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "0"},
    ],
)
def test_what_contradicts_itself_is_named(environment: dict[str, str]) -> None:
    with pytest.raises(SdbenchError, match="accelerate launch") as caught:
        Part.from_environment(environment)
    assert all(name in str(caught.value) for name in environment)


def test_a_part_can_be_told() -> None:
    assert Part.from_text("2/4") == Part(1, 4)
    for wrong in ("0/4", "5/4", "1", "1/", "a/b", "1/0", "-1/4"):
        with pytest.raises(ValueError, match="such as 1/4"):
            Part.from_text(wrong)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_parts_are_a_partition(size: int) -> None:
    items = list(range(11))
    parts = [Part(rank, size).slice(items) for rank in range(size)]
    assert [item for own, _ in parts for item in own] == items
    assert all(sorted([*own, *others]) == items for own, others in parts)
