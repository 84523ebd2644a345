"""Train variations of recipes in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from benchmarks.report import ROOT
from pytest_sdbench.models.checkpoint import resolve
from training.recipes.load import load_recipe
from training.run.state import identity


def identify(recipe: str, overrides: Sequence[str]) -> str:
    """Identify what a training run leads to: its recipe and its teacher."""
    found = load_recipe(recipe, overrides)
    assert found.teacher is not None
    return f"{identity(found)}-{resolve(found.teacher).fingerprint}"


def train(recipe: str, overrides: Sequence[str], threads: int, *more: str) -> None:
    """Run `python -m training` on the CPU; raises CalledProcessError where it fails."""
    command = [sys.executable, "-m", "training", recipe, *overrides, "--device", "cpu"]
    subprocess.run([*command, "--threads", str(threads), *more], cwd=ROOT, check=True)
