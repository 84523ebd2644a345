"""A run that is killed at any moment, and resumed, ends as the run that was not.

`SDBENCH_TEST_KILLS=10` kills oftener than the few times that a test run has time for.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.tiny_checkpoint import UNET, make_checkpoint
from tests.training.helpers import (
    Toy,
    assert_same_state,
    begin,
    finish,
    killed_in_save,
    log_lines,
    tiny_recipe,
    train_real,
    train_toy,
)
from training.run.state import FILE, read_state
from training.students.block_removal import student_config

KILLS = int(os.environ.get("SDBENCH_TEST_KILLS", "5"))
IN_SAVE = ("half", "before rename", "after rename")
MOMENTS = ("any", "half", "before rename", "any", "after rename")


def run(folder: Path, teacher: str | None, moment: str, which: int) -> None:
    """Train a consistency model, or a toy; every step is saved where a kill is to come."""
    settings = (
        f"schedule.steps={2 * KILLS + 6}",
        "schedule.batch=2",
        "schedule.micro_batch=2",
        "ema.decay=0.9",
        f"watch.save_minutes={60.0 if moment == 'never' else 1e-9}",
    )
    with killed_in_save(moment, which) if moment in IN_SAVE else nullcontext():
        if teacher:
            train_real(folder, tiny_recipe(*settings, teacher=teacher, objective="consistency"))
        else:
            pause = 0.2 if moment == "any" else 0.0
            train_toy(folder, *settings, toy=Toy(at=lambda _first, _losses: time.sleep(pause)))


def position(folder: Path) -> int:
    return int(read_state(folder / FILE)["seen"]) if (folder / FILE).is_file() else 0


def reported(folder: Path) -> int:
    """Return the lines of the log; the save of a step comes after its line."""
    path = folder / "log.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["toy", "consistency"])
def test_killed_again_and_again_is_uninterrupted(trained: str, tmp_path: Path) -> None:
    teacher, killed, whole = None, tmp_path / "killed", tmp_path / "whole"
    if trained == "consistency":
        # Already a small student: fewer tensors are saved faster.
        teacher = str(make_checkpoint(tmp_path / "sd", unet=student_config(UNET, "tiny")))
    assert finish([begin(run, whole, teacher, "never", 0)]) == [0]
    chance, places = random.Random(0), []
    for moment in itertools.islice(itertools.cycle(MOMENTS), KILLS):
        before, steps = reported(killed), chance.choice((1, 2))
        process = begin(run, killed, teacher, moment, steps)
        if moment == "any":
            while reported(killed) < before + steps and process.is_alive():
                time.sleep(0.01)
            process.join(chance.uniform(0.0, 0.3))
            process.kill()
        assert finish([process]) == [-9], "it ended before it was killed"
        places.append((moment, position(killed)))
    assert finish([begin(run, killed, teacher, "never", 0)]) == [0]
    print(f"kills at {places} of {position(whole)} images")
    assert_same_state(killed, whole)
    curves = [[(line["seen"], line["loss"]) for line in log_lines(folder)] for folder in (killed, whole)]
    assert curves[0] == curves[1] == sorted(set(curves[0]))
