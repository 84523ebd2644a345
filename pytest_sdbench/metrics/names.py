"""The metrics a card may claim: how each is printed, which way is better, and what it can possibly be.

Plain data, so that cards and reports agree on it at no cost.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How one metric is printed and what values it can take."""

    name: str
    label: str
    decimals: int
    """Decimals in a table."""
    recorded_decimals: int
    """Decimals in a record: enough to see a drift, few enough to read."""
    higher_is_better: bool
    minimum: float | None = None
    maximum: float | None = None
    scale: str = ""
    """What a value outside the bounds must be told."""

    def room(self, score: float) -> float:
        """Return how far a score is from the worst there is; a distance has no worst, and is its own room."""
        return score - (self.minimum or 0.0) if self.higher_is_better else score

    @property
    def arrow(self) -> str:
        """Return the arrow that points to the better side."""
        return "↑" if self.higher_is_better else "↓"


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("fid", "FID", 2, 4, False, scale="FID is a positive squared distance"),
        Metric(
            "inception_score",
            "IS",
            2,
            4,
            True,
            minimum=1.0,
            maximum=1008.0,
            scale="the Inception score lies between 1 and the number of classes",
        ),
        Metric(
            "clip_score",
            "CLIP score",
            4,
            6,
            True,
            minimum=0.0,
            maximum=1.0,
            scale="the CLIP score is a mean cosine between 0 and 1, not multiplied by 100",
        ),
        Metric("kid", "KID", 5, 7, False, scale="KID is a squared distance, not multiplied by 1000"),
    )
}

ALIASES: dict[str, str] = {
    "frechet_inception_distance": "fid",
    "is": "inception_score",
    "isc": "inception_score",
    "clip": "clip_score",
    "clipscore": "clip_score",
    "kernel_inception_distance": "kid",
}


def metric_name(text: str) -> str | None:
    """Return our name of a metric as a model card spells it (``FID``, ``CLIP-Score``), or None."""
    name = text.strip().lower().replace("-", "_").replace(" ", "_")
    name = ALIASES.get(name, name)
    return name if name in METRICS else None
