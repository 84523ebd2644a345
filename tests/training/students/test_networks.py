"""Checkpoints that no training starts from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_sdbench.base.errors import CheckpointError
from training.dry_run.networks import teacher_configs
from training.students.networks import load_parts


def test_an_sdxl_checkpoint_is_refused_before_it_is_loaded(pristine_xl: Path) -> None:
    recipe: Any = SimpleNamespace(teacher=str(pristine_xl))
    for start in (lambda: load_parts(str(pristine_xl)), lambda: teacher_configs(recipe)):
        with pytest.raises(CheckpointError, match=r"two text encoders.*not trained here"):
            start()
