"""Score a checkpoint image by image: two that draw the same prompts and seeds are then told apart sharply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.evaluate import evaluate
from pytest_sdbench.metrics import difference as comparison
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.protocols.protocol import Protocol

METRICS = ("fid", "kid", "inception_score", "clip_score")


@dataclass(frozen=True)
class Quality:
    """The scores of one checkpoint, as plain figures and with the part of each image in them."""

    scores: dict[str, float]
    estimates: Mapping[str, Estimate]


def quality(checkpoint_spec: str | dict[str, str], protocol: Protocol, store: Path) -> Quality:
    """Score a checkpoint on scenes, making the images that the store lacks."""
    measured = evaluate(resolve(checkpoint_spec), protocol, Workspace(store))
    scores: dict[str, float] = {"n": measured.n}
    estimates = {}
    for metric in METRICS:
        estimate = measured.estimates[metric]
        assert isinstance(estimate, Estimate), estimate
        estimates[metric] = estimate
        scores[metric] = estimate.value
        if estimate.standard_error is not None:
            scores[f"{metric}_se"] = estimate.standard_error
    return Quality(scores, estimates)


def difference(first: Quality, second: Quality) -> dict[str, float]:
    """Return first minus second in FID and CLIP score, with standard errors of paired images."""
    found: dict[str, float] = {}
    for metric in ("fid", "clip_score"):
        each = comparison.difference(first.estimates[metric], second.estimates[metric])
        assert each is not None
        assert each.standard_error is not None
        found |= {metric: each.value, f"{metric}_se": each.standard_error}
    return found
