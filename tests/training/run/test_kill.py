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

from tests.tiny_checkpoint import UNET, make_checkpoint
from tests.training.helpers import (
    assert_same_state,
    begin,
    finish,
    killed_in_save,
    log_lines,
    tiny_recipe,
    train_real,
)
from training.recipes.schema import Recipe
from training.run.state import FILE, read_state
from training.students.block_removal import student_config

KILLS = int(os.environ.get("SDBENCH_TEST_KILLS", "4"))
IN_SAVE = ("half", "before rename", "after rename")
MOMENTS = ("any", "half", "before rename", "any", "after rename")


def recipe_of(teacher: str, save_minutes: float) -> Recipe:
    return tiny_recipe(
        f"schedule.steps={2 * KILLS + 4}",
        "schedule.batch=2",
        "schedule.micro_batch=2",
        "ema.decay=0.9",
        f"watch.save_minutes={save_minutes}",
        teacher=teacher,
        objective="consistency",
    )


def run(folder: str, teacher: str, moment: str, which: int) -> None:
    """Train; every step is saved where a kill is to come."""
    with killed_in_save(moment, which) if moment in IN_SAVE else nullcontext():
        train_real(Path(folder), recipe_of(teacher, 60.0 if moment == "never" else 1e-9))


def position(folder: Path) -> int:
    return int(read_state(folder / FILE)["seen"]) if (folder / FILE).is_file() else 0


def reported(folder: Path) -> int:
    """Return the lines of the log; the save of a step comes after its line."""
    path = folder / "log.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def test_killed_again_and_again_is_uninterrupted(tmp_path: Path) -> None:
    # Already a small student: fewer tensors are saved faster.
    teacher = str(make_checkpoint(tmp_path / "sd", unet=student_config(UNET, "tiny")))
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert finish([begin(run, str(whole), teacher, "never", 0)]) == [0]
    chance, kills, places = random.Random(0), 0, []
    for moment in itertools.cycle(MOMENTS):
        if kills == KILLS:
            break
        before, steps = reported(killed), chance.choice((1, 2))
        process = begin(run, str(killed), teacher, moment, steps)
        if moment == "any":
            while reported(killed) < before + steps and process.is_alive():
                time.sleep(0.01)
            process.join(chance.uniform(0.0, 0.3))
            process.kill()
        assert finish([process]) == [-9], "it ended before it was killed"
        kills += 1
        places.append((moment, position(killed)))
    assert finish([begin(run, str(killed), teacher, "never", 0)]) == [0]
    print(f"{kills} kills at {places} of {position(whole)} images")
    assert_same_state(killed, whole)
    seen = [line["seen"] for line in log_lines(killed)]
    assert seen == [line["seen"] for line in log_lines(whole)] == sorted(set(seen))
    losses = [[line["loss"] for line in log_lines(folder)] for folder in (killed, whole)]
    assert losses[0] == losses[1]
