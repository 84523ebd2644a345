"""Take a pool of images for a whole population, whose scores are then known exactly.

A draw with replacement from the pool is a draw of independent images from it, as many as one likes: what the
gate says of 30,000 images can be held against the truth, as often as one likes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.family.members import spec
from benchmarks.gate.pools import STORE
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.estimate import estimate
from pytest_sdbench.evaluation.job import open_evidence
from pytest_sdbench.features.references import load_references
from pytest_sdbench.metrics.definition import column
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.metrics.frechet import fid
from pytest_sdbench.metrics.inception_score import inception_score
from pytest_sdbench.metrics.moments import FeatureStatistics
from pytest_sdbench.metrics.standard_error import standard_error
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.protocols.protocol import Protocol

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
METRICS = ("fid", "kid", "inception_score", "clip_score")
_NET = "scenes-classifier"
_CLIP = column("local:scenes-clip", "cosine")
_CHUNK = 1000
"""Images whose kernel with all others is held at once."""


@dataclass(frozen=True, eq=False)
class Population:
    """The images of one checkpoint, as the extractors see them."""

    protocol: Protocol
    rows: Mapping[str, npt.NDArray[np.float32]]
    reference: FeatureStatistics
    metrics: tuple[str, ...] = METRICS

    @cached_property
    def truth(self) -> dict[str, float]:
        """The scores of infinitely many independent draws from the pool."""
        features = self.rows[_NET].astype(np.float64)
        # The population's own covariance: its divisor is n.
        moments = FeatureStatistics(features.mean(axis=0), np.cov(features, rowvar=False, bias=True))
        found = {
            "fid": fid(moments, self.reference),
            "inception_score": inception_score(self.rows[column(_NET, "logits")], splits=1),
            "clip_score": float(self.rows[_CLIP].astype(np.float64).mean()),
        }
        if "kid" in self.metrics:
            across, among, _ = self._apart
            within = sum(
                float(_kernel(rows, self.rows[_NET]).sum(dtype=np.float64)) for rows in self._chunks()
            )
            found["kid"] = within / len(across) ** 2 - 2 * float(across.mean()) + among
        return found

    def estimates(self, indices: Indices) -> dict[str, Estimate]:
        """Return the suite's estimates of the images with these indices, which may repeat."""
        specs = {name: each for name, each in self.protocol.metrics.items() if name != "kid"}
        rest = self.protocol.model_copy(update={"metrics": specs})
        rows = {name: column[indices] for name, column in self.rows.items()}
        found = {
            metric: each
            for metric, each in estimate(rest, [rows], {"fid": self.reference}).items()
            if isinstance(each, Estimate) and metric in self.metrics
        }
        if "kid" in self.metrics:
            found["kid"] = self._kid(indices)
        return found

    @cached_property
    def _apart(self) -> tuple[Array, float, float]:
        """The mean kernel of each image with the reference, and that among the reference.

        The last is by how much that is larger where the rows of the reference count with themselves.
        """
        reference = self.reference.features
        assert reference is not None
        theirs = np.asarray(reference, np.float32)
        m = len(theirs)
        among = _kernel(theirs, theirs)
        own = float(np.trace(among, dtype=np.float64))
        apart = (float(among.sum(dtype=np.float64)) - own) / (m * (m - 1))
        across = [_kernel(rows, theirs).mean(axis=1, dtype=np.float64) for rows in self._chunks()]
        return np.concatenate(across), apart, (own / m - apart) / m

    def _chunks(self) -> Iterator[npt.NDArray[np.float32]]:
        features = self.rows[_NET]
        for start in range(0, len(features), _CHUNK):
            yield features[start : start + _CHUNK]

    def _kid(self, indices: Indices) -> Estimate:
        """Return KID as the suite does; what concerns the reference is computed once for the whole pool."""
        across, among, more = self._apart
        n = len(indices)
        features = self.rows[_NET][indices]
        kernel = _kernel(features, features)
        own = np.diagonal(kernel).astype(np.float64)
        sums = kernel.sum(axis=1, dtype=np.float64) - own
        squares = float((np.einsum("ij,ij->i", kernel, kernel).astype(np.float64) - own**2).sum())
        means = sums / (n - 1)
        moved = 2 * (means - across[indices])
        mean = float(means.mean())
        centred = squares / (n * (n - 1)) - 2 * float(np.square(means).mean()) + mean**2
        degenerate = 2 * max(centred, 0.0) / (n * (n - 1))
        influence = moved - moved.mean()
        value = mean + among - 2 * float(across[indices].mean())
        apart = max(value + more, 0.0)
        biased = (float(own.mean()) - mean) / n
        unbiased = apart / (apart + biased) if apart > 0 else 0.0
        error = standard_error(influence, degenerate=degenerate, unbiased=unbiased)
        return Estimate("kid", value, error, n, value, 0.0, influence, degenerate)


def _kernel(x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return KID's polynomial kernel of rows, [len(x), len(y)]."""
    k = np.asarray(x @ y.T)
    k /= np.float32(x.shape[1])
    k += np.float32(1)
    cubed = np.square(k)
    cubed *= k
    return cubed


def load_population(member: str, protocol: Protocol, store: Path = STORE) -> Population:
    """Return the images of a member of the embedded family under a protocol, which must be in the store."""
    evidence = open_evidence(Workspace(store), resolve(spec(member)), protocol)
    lacking = sum(map(len, evidence.missing(protocol.n)))
    if lacking:
        raise SystemExit(
            f"{member}: {lacking:,} images are missing; run python -m benchmarks.gate.pools first"
        )
    batches = list(evidence.rows(protocol.n))
    names = (_NET, column(_NET, "logits"), _CLIP)
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in names}
    reference = load_references(protocol)["fid"]
    assert isinstance(reference, FeatureStatistics), reference
    return Population(protocol, rows, reference)
