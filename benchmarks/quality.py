"""Score a checkpoint image by image: two that draw the same prompts and seeds are then told apart sharply."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pytest_sdbench.protocol import Protocol

METRICS = ("fid", "kid", "inception_score", "clip_score")


@dataclass(frozen=True)
class Quality:
    """The scores of one checkpoint, and the part of each image in them."""

    scores: dict[str, float]
    psi: npt.NDArray[np.float64]
    """How much each image moves FID."""
    cosines: npt.NDArray[np.float64]


def quality(checkpoint_spec: str | dict[str, str], protocol: Protocol, store: Path) -> Quality:
    """Score a checkpoint on scenes, making the images that the store lacks."""
    from pytest_sdbench.checkpoint import resolve
    from pytest_sdbench.evaluation import evaluate, open_evidence
    from pytest_sdbench.features import feature_column
    from pytest_sdbench.metrics import Estimate
    from pytest_sdbench.metrics.frechet import fid_influence
    from pytest_sdbench.metrics.moments import Moments
    from pytest_sdbench.statistics import load_references

    checkpoint = resolve(checkpoint_spec)
    measured = evaluate(checkpoint, protocol, store=store)
    scores: dict[str, float] = {"n": measured.n}
    for metric in METRICS:
        estimate = measured.estimates[metric]
        assert isinstance(estimate, Estimate), estimate
        scores[metric] = estimate.value
        if estimate.standard_error is not None:
            scores[f"{metric}_se"] = estimate.standard_error
    rows = list(open_evidence(store, checkpoint, protocol).rows(protocol.n))
    column = feature_column("scenes-classifier")
    features = np.concatenate([batch[column] for batch in rows])
    moments = Moments(features.shape[1])
    moments.update(features)
    reference = load_references(protocol)["fid"]
    assert not isinstance(reference, Exception), reference
    psi = fid_influence(moments.statistics(), reference)(features)
    cosines = np.concatenate([batch["clip_score"] for batch in rows]).astype(np.float64)
    return Quality(scores, psi, cosines)


def difference(first: Quality, second: Quality) -> dict[str, float]:
    """Return first minus second in FID and CLIP score, with standard errors of paired images."""
    n = len(first.psi)
    fid_error = float((first.psi - second.psi).std(ddof=1)) / math.sqrt(n)
    cosines = first.cosines - second.cosines
    return {
        "fid": first.scores["fid"] - second.scores["fid"],
        "fid_se": fid_error,
        "clip_score": float(cosines.mean()),
        "clip_score_se": float(cosines.std(ddof=1)) / math.sqrt(n),
    }
