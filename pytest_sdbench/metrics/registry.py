"""The metrics that a card may claim, by name."""

from __future__ import annotations

import unicodedata

from pytest_sdbench.base.registry import Registry
from pytest_sdbench.metrics.definition import Metric

METRICS: Registry[Metric] = Registry(
    Metric,
    "pytest_sdbench.metrics",
    {
        "fid": "pytest_sdbench.metrics.fid:FID",
        "inception_score": "pytest_sdbench.metrics.inception_score:INCEPTION_SCORE",
        "clip_score": "pytest_sdbench.metrics.clip_score:CLIP_SCORE",
        "kid": "pytest_sdbench.metrics.distances.kid:KID",
        "hpsv2": "pytest_sdbench.metrics.preference.hpsv2:HPSV2",
        "pickscore": "pytest_sdbench.metrics.preference.pickscore:PICKSCORE",
        "aesthetic": "pytest_sdbench.metrics.preference.aesthetic:AESTHETIC",
        "fd_dinov2": "pytest_sdbench.metrics.distances.fd_dinov2:FD_DINOV2",
        "kd_dinov2": "pytest_sdbench.metrics.distances.kd_dinov2:KD_DINOV2",
        "cmmd": "pytest_sdbench.metrics.distances.cmmd:CMMD",
        "precision": "pytest_sdbench.metrics.distances.neighbours:PRECISION",
        "recall": "pytest_sdbench.metrics.distances.neighbours:RECALL",
        "density": "pytest_sdbench.metrics.distances.neighbours:DENSITY",
        "coverage": "pytest_sdbench.metrics.distances.neighbours:COVERAGE",
        "diversity": "pytest_sdbench.metrics.distances.diversity:DIVERSITY",
        "psnr": "pytest_sdbench.metrics.fidelity.psnr:PSNR",
        "ssim": "pytest_sdbench.metrics.fidelity.ssim:SSIM",
        "lpips": "pytest_sdbench.metrics.fidelity.lpips:LPIPS",
        "feature_cosine": "pytest_sdbench.metrics.fidelity.cosine:FEATURE_COSINE",
        "dino_cosine": "pytest_sdbench.metrics.fidelity.cosine:DINO_COSINE",
        "lost": "pytest_sdbench.metrics.fidelity.lost:LOST",
    },
)


def register_metric(metric: Metric) -> None:
    """Add a metric of one's own, from a conftest: cards may claim it and protocols ask for it from then on.

    Raises SdbenchError for a name that another metric has.
    """
    METRICS.register(metric)


def metric_name(text: str) -> str | None:
    """Return our name of a metric as a model card spells it (``FID``, ``CLIP-Score``), or None."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()  # Fréchet
    spelled = plain.strip().lower().replace("-", "_").replace(" ", "_")
    return next((name for name, metric in METRICS.items() if spelled in (name, *metric.aliases)), None)
