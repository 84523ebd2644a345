"""From per-image rows to the estimates of a protocol."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pytest_sdbench.base.errors import EvidenceError
from pytest_sdbench.evaluation.estimate import estimate
from pytest_sdbench.metrics.distances.kid import kid
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.frechet import fid, fid_influence
from pytest_sdbench.metrics.inception_score import inception_score
from pytest_sdbench.metrics.moments import FeatureStatistics, Moments
from pytest_sdbench.metrics.registry import METRICS

N, WIDTH = 120, 6


def protocol(*metrics: str) -> Any:
    specs = {
        "fid": SimpleNamespace(metric="fid", extractor="net"),
        "kid": SimpleNamespace(metric="kid", extractor="net"),
        "inception_score": SimpleNamespace(
            metric="inception_score", extractor="net", splits=10, shuffle_seed=2020
        ),
        "clip_score": SimpleNamespace(metric="clip_score", extractor="local:clip"),
    }
    return SimpleNamespace(metrics={name: specs[name] for name in metrics or specs})


def table(n: int = N) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "net": rng.normal(size=(n, WIDTH)).astype(np.float32),
        "net-logits": rng.normal(0, 2, (n, 9)).astype(np.float32),
        "local:clip-cosine": rng.uniform(0.1, 0.4, n).astype(np.float32),
    }


def batches(rows: dict[str, np.ndarray], size: int) -> list[dict[str, np.ndarray]]:
    n = len(rows["net"])
    return [{key: column[i : i + size] for key, column in rows.items()} for i in range(0, n, size)]


@pytest.fixture
def reference() -> FeatureStatistics:
    features = np.random.default_rng(1).normal(0.3, 1.1, (500, WIDTH))
    return FeatureStatistics(features.mean(0), np.cov(features, rowvar=False), 500, features[:100])


@pytest.fixture
def references(reference: FeatureStatistics) -> dict[str, FeatureStatistics]:
    return {"fid": reference, "kid": reference}


def test_every_metric_is_that_of_its_column(references: dict[str, FeatureStatistics]) -> None:
    rows = table()
    # An iterator that can be read once is enough.
    got = estimate(protocol(), iter(batches(rows, 32)), references)
    moments = Moments(WIDTH)
    moments.update(rows["net"])
    sample, reference = moments.statistics(), references["fid"]
    psi = fid_influence(sample, reference)(rows["net"])
    assert got["fid"].value == pytest.approx(fid(sample, reference), rel=1e-12)
    # The delta method, less what its own noise adds, which is little here.
    assert got["fid"].standard_error == pytest.approx(psi.std(ddof=1) / math.sqrt(N), rel=0.1)
    assert got["kid"].value == kid(rows["net"], reference.features)
    score = inception_score(rows["net-logits"])
    assert got["inception_score"].value == pytest.approx(score, rel=1e-12)
    clip = rows["local:clip-cosine"].astype(np.float64)
    assert got["clip_score"].value == pytest.approx(clip.mean(), rel=1e-12)
    assert got["clip_score"].standard_error == pytest.approx(clip.std(ddof=1) / math.sqrt(N), rel=1e-12)


class Passes(list[Any]):
    """Batches that count how often they are read."""

    count = 0

    def __iter__(self) -> Iterator[Any]:
        self.count += 1
        return super().__iter__()


@pytest.mark.parametrize(
    ("metrics", "passes"),
    [
        (("clip_score",), 1),
        (("clip_score", "psnr", "ssim", "aesthetic"), 1),
        (("kid",), 2),
        (("kid", "clip_score", "psnr"), 2),
        (("fid", "inception_score", "clip_score", "psnr"), 5),
    ],
)
def test_columns_of_one_number_are_read_together(
    metrics: tuple[str, ...], passes: int, references: dict[str, FeatureStatistics]
) -> None:
    rows = table()
    specs = protocol().metrics
    for name in ("psnr", "ssim", "aesthetic"):
        specs[name] = SimpleNamespace(metric=name, extractor=name)
        rows[METRICS[name].column(name)] = rows["local:clip-cosine"] * len(name)
    wanted = SimpleNamespace(metrics={name: specs[name] for name in metrics})
    counted = Passes(batches(rows, 32))
    found = estimate(wanted, counted, references)
    assert counted.count == passes
    for name, each in found.items():
        assert (
            each
            == estimate(SimpleNamespace(metrics={name: specs[name]}), batches(rows, 32), references)[name]
        )


def test_fid_is_undefined_without_more_images_than_features(references: dict[str, FeatureStatistics]) -> None:
    got = estimate(protocol("fid"), batches(table(WIDTH), 4), references)["fid"]
    assert isinstance(got, Undefined)
    assert got.n == WIDTH
    assert "more images than its 6 features" in got.reason
    assert "KID" in got.reason
    assert isinstance(estimate(protocol("fid"), batches(table(WIDTH + 1), 4), references)["fid"], Estimate)


def test_without_its_reference_a_metric_is_undefined_and_others_stand(reference: FeatureStatistics) -> None:
    moments_only = FeatureStatistics(reference.mu, reference.sigma)
    got = estimate(protocol("fid", "kid"), batches(table(3), 4), {"fid": moments_only, "kid": moments_only})
    assert isinstance(got["fid"], Undefined)
    assert "CLIP score" in got["fid"].reason, "KID cannot be had either"
    assert isinstance(got["kid"], Undefined)
    assert "moments only" in got["kid"].reason
    got = estimate(protocol(), batches(table(), 32), {})
    assert {name for name, each in got.items() if isinstance(each, Undefined)} == {"fid", "kid"}


@pytest.mark.parametrize(
    ("n", "metric"), [(9, "inception_score"), (1, "kid"), (0, "clip_score"), (0, "fid"), (0, "kid")]
)
def test_too_few_images_leave_it_undefined(
    n: int, metric: str, references: dict[str, FeatureStatistics]
) -> None:
    got = estimate(protocol(metric), batches(table(n), 4), references)[metric]
    assert isinstance(got, Undefined)
    assert got.n == n


@pytest.mark.parametrize(
    ("column", "rows", "message"),
    [
        ("net-logits", None, "inception_score needs the column 'net-logits'"),
        (
            "net",
            np.where(np.arange(N)[:, None] == 70, np.nan, 1.0),
            "net: NaN or infinity among images 64 to 95",
        ),
        ("local:clip-cosine", np.full(N - 1, 0.2), "different lengths"),
        ("net", np.ones((N, 7)), r"fid cannot be computed: features must be \[B, 6\], not \[32, 7\]"),
    ],
    ids=["missing", "NaN", "short", "wide"],
)
def test_a_column_that_does_not_fit_is_named(
    column: str, rows: np.ndarray | None, message: str, references: dict[str, FeatureStatistics]
) -> None:
    changed = {name: values for name, values in (table() | {column: rows}).items() if values is not None}
    with pytest.raises(EvidenceError, match=message):
        estimate(protocol(), batches(changed, 32), references)
