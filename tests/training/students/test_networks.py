"""Checkpoints that no training starts from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_sdbench.base.errors import CheckpointError, Unavailable
from training.dry_run.networks import teacher_configs
from training.students.networks import load_parts


def test_an_sdxl_checkpoint_is_refused_before_it_is_loaded(pristine_xl: Path) -> None:
    recipe: Any = SimpleNamespace(teacher=str(pristine_xl))
    for start in (lambda: load_parts(str(pristine_xl)), lambda: teacher_configs(recipe)):
        with pytest.raises(CheckpointError, match=r"two text encoders.*not trained here"):
            start()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (
            "nobody/has-this",
            r"not in the hub cache.*--download, or .*copy: objective\.class_model=",
        ),
        ("./nowhere", r"objective\.class_model: no such folder"),
    ],
)
def test_what_is_not_here_is_told_with_the_options_of_the_training(spec: str, says: str) -> None:
    with pytest.raises((CheckpointError, Unavailable), match=says) as caught:
        load_parts(spec, key="objective.class_model")
    assert "--sdbench" not in str(caught.value)
