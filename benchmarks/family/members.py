"""Name the checkpoints of the embedded family, train variations of their recipes, and score them.

Two that draw the same prompts and seeds are told apart image by image, which is sharper than by two scores.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.family.reading import with_readings
from benchmarks.report import ROOT
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.evaluate import evaluate
from pytest_sdbench.metrics import difference as comparison
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.standard_error import Groups
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.protocols.protocol import Protocol
from training.recipes.load import load_recipe
from training.run.state import identity

BASE = "embedded:scenes-sd"
FAMILY = ("scenes-sd", "scenes-base", "scenes-small", "scenes-small-2m", "scenes-tiny")
"""The teacher and its students."""
METRICS = ("fid", "kid", "inception_score", "clip_score", "names_right", "objects_right")
"""What is scored, as far as a protocol has it; the last two are the benchmarks' own, see `reading`."""
COMPARED = ("fid", "clip_score", "names_right")
"""What two checkpoints are told apart by."""


def spec(name: str) -> str | dict[str, str]:
    """Return the checkpoint of a member of the family, as a card names it."""
    return BASE if name == "scenes-sd" else {"base": BASE, "unet": f"embedded:{name}"}


def identify(recipe: str, overrides: Sequence[str]) -> str:
    """Identify what a training run leads to: its recipe and its teacher."""
    found = load_recipe(recipe, overrides)
    assert found.teacher is not None
    return f"{identity(found)}-{resolve(found.teacher).fingerprint}"


def train(recipe: str, overrides: Sequence[str], threads: int, *more: str) -> None:
    """Run `python -m training` on the CPU; raises CalledProcessError where it fails."""
    command = [sys.executable, "-m", "training", recipe, *overrides, "--device", "cpu"]
    subprocess.run([*command, "--threads", str(threads), *more], cwd=ROOT, check=True)


@dataclass(frozen=True)
class Quality:
    """The scores of one checkpoint, as plain figures and with the part of each image in them."""

    scores: dict[str, float]
    estimates: Mapping[str, Estimate]
    groups: Groups | None = None
    """Which images share a prompt."""


def quality(checkpoint_spec: str | dict[str, str], protocol: Protocol, store: Path) -> Quality:
    """Score a checkpoint on scenes, making the images that the store lacks."""
    measured = evaluate(resolve(checkpoint_spec), with_readings(protocol, METRICS), Workspace(store))
    scores: dict[str, float] = {"n": measured.n}
    estimates = {}
    for metric in METRICS:
        if metric not in measured.estimates:
            continue
        estimate = measured.estimates[metric]
        if isinstance(estimate, Undefined):
            print(f"no {metric} of {measured.n} images: {estimate.reason}", flush=True)
            continue
        estimates[metric] = estimate
        scores[metric] = estimate.value
        if estimate.standard_error is not None:
            scores[f"{metric}_se"] = estimate.standard_error
    return Quality(scores, estimates, measured.groups)


def difference(first: Quality, second: Quality) -> dict[str, float]:
    """Return first minus second in what both have of `COMPARED`, with standard errors of paired images."""
    found: dict[str, float] = {}
    for metric in COMPARED:
        if metric not in first.estimates or metric not in second.estimates:
            continue
        each = comparison.difference(first.estimates[metric], second.estimates[metric], groups=first.groups)
        assert each is not None
        assert each.standard_error is not None
        found |= {metric: each.value, f"{metric}_se": each.standard_error}
    return found
