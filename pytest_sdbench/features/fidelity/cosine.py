"""Compare two pictures by the features of an extractor: ``cosine:EXTRACTOR``.

``cosine:scenes-classifier`` is that of the embedded dataset, ``cosine:dinov2-vitl14`` what others call DINO
similarity.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_sdbench.base.errors import ProtocolError
from pytest_sdbench.features.definition import Extractor, Measure, Rows
from pytest_sdbench.features.extractors import extractor_of, open_extractor

if TYPE_CHECKING:
    from pytest_sdbench.protocols.image_steps import Images

PREFIX = "cosine:"


def cosine(features: Rows, references: Rows) -> Rows:
    """Return the cosine of each pair of rows, float32 [B], of arrays [B, D]; with a row of zeros it is 0."""
    x, y = features.astype(np.float64), references.astype(np.float64)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return np.asarray((x * y).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny), np.float32)


def _inner(name: str) -> tuple[str, Extractor]:
    """Return the extractor behind a name; raises ProtocolError for one without features of one picture."""
    inner = name.removeprefix(PREFIX)
    known = extractor_of(inner)
    if known.paired or "features" not in known.outputs:
        what, remedy = "it has no features of a picture", f"Name one that has: {PREFIX}scenes-classifier"
        raise ProtocolError(what, key="metrics", found=name, remedy=remedy)
    return inner, known


def _load(name: str, *, data_root: Path | None, device: str, download: bool) -> tuple[Measure, str]:
    inner, _ = _inner(name)
    network = open_extractor(inner, data_root=data_root, device=device, download=download)

    def measure(images: Images, references: Any) -> dict[str, Rows]:
        (mine,), (theirs,) = network(images).values(), network(references).values()
        return {"pair": cosine(mine, theirs)}

    return measure, network.weights


def _weights(name: str) -> str | None:
    inner, known = _inner(name)
    return known.weights(inner)


def _describe(name: str, data_root: Path | None) -> str:
    inner, known = _inner(name)
    return known.describe(inner, data_root)


def _download(name: str) -> tuple[str, int | None] | None:
    inner, known = _inner(name)
    return None if known.download is None else known.download(inner)


COSINE = Extractor(
    name=PREFIX,
    outputs={"pair": 1},
    load=_load,
    weights=_weights,
    describe=_describe,
    download=_download,
    paired=True,
)
