"""Measure how much memory scoring takes over the number of images, on evidence made up in a temporary store.

Each number of images has a process of its own: what one has allocated and given back would hide in the next.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.turns import in_a_process
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.evaluate import evaluate
from pytest_sdbench.evaluation.job import open_evidence
from pytest_sdbench.features.inception import WIDTH
from pytest_sdbench.metrics.definition import column
from pytest_sdbench.metrics.moments import Array
from pytest_sdbench.models.checkpoint import Checkpoint, resolve
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.store.shard_format import SHARD

CHECKPOINT = {"base": "embedded:scenes-sd", "unet": "embedded:scenes-tiny"}
PYTORCH_FID, TORCH_FIDELITY = "inception-pytorch-fid", "inception-torch-fidelity"
CLIP = "open_clip:ViT-g-14/laion2b_s34b_b88k"
COCO_COLUMNS = {
    PYTORCH_FID: WIDTH,
    TORCH_FIDELITY: WIDTH,
    column(TORCH_FIDELITY, "logits"): 1008,
    column(CLIP, "cosine"): 0,
}
"""Widths of the columns of an image; 0 for a single number."""
LIMIT = 300e6
"""Bytes by which 30,000 images may take more than 1,000."""


def coco_like(folder: Path, images: int) -> Protocol:
    """Write a protocol of the published metrics with made-up captions and reference statistics."""
    mu, sigma = moments(WIDTH, seed=1)
    np.savez(folder / "real.npz", mu=mu, sigma=sigma)
    content = {
        "title": "Rows as wide as those of MS-COCO",
        "n": images,
        "prompts": {"kind": "csv", **write_prompts(folder / "captions.csv", images)},
        "seeds": {"kind": "per-image", "seed": 0},
        "sampling": {"steps": 25, "guidance": 7.5, "resolution": 512, "dtype": "float32"},
        "metrics": {
            "fid": {"extractor": PYTORCH_FID, "statistics": {"file": "./real.npz", "images": 40504}},
            "inception_score": {"extractor": TORCH_FIDELITY, "splits": 10, "shuffle_seed": 2020},
            "clip_score": {"model": CLIP},
        },
    }
    path = folder / "coco-like.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")
    return load_protocol(path)


def write_prompts(path: Path, rows: int) -> dict[str, str | int]:
    """Write made-up captions, and return what a protocol says of the file."""
    captions = "".join(f"{row}.jpg,a picture of {row} things on a table\n" for row in range(rows))
    content = f"file_name,text\n{captions}"
    path.write_text(content, encoding="utf-8")
    return {"file": str(path), "sha256": hashlib.sha256(content.encode()).hexdigest(), "rows": rows}


def moments(width: int, *, seed: int, power: float = 1.0) -> tuple[Array, Array]:
    """Return a mean and a covariance of full rank whose eigenvalues fall as a power of their number."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((width, width)))
    sigma = (basis * (np.arange(1, width + 1) ** -power)) @ basis.T
    return rng.standard_normal(width) * 0.1, (sigma + sigma.T) / 2


def fill(
    store: Path, checkpoint: Checkpoint, protocol: Protocol, columns: Mapping[str, int], *, seed: int = 0
) -> None:
    """Write made-up rows of a protocol's images straight into a store."""
    evidence = open_evidence(Workspace(store), checkpoint, protocol)
    rng = np.random.default_rng(seed)
    # Features of a network are correlated; a sparse mixture is enough for that, and quick to draw.
    scales = {name: np.arange(1, width + 1, dtype=np.float32) ** -0.5 for name, width in columns.items()}
    for start in range(0, protocol.n, SHARD):
        count = min(SHARD, protocol.n - start)
        rows = {
            name: rng.standard_normal((count, width), np.float32) * scales[name]
            if width
            else rng.uniform(0.2, 0.4, count).astype(np.float32)
            for name, width in columns.items()
        }
        flags = {name: np.zeros(count, np.bool_) for name in ("blacked_out", "truncated")}
        evidence.write(start, {**rows, "seed": np.zeros(count, np.int64), **flags})


def peak(images: int, store: Path | None) -> dict[str, Any]:
    """Score images in this process, and tell what it took.

    They are those of a filled store, or, without one, images of the embedded family that are made meanwhile.
    """
    # Libraries are no memory of an evaluation, whichever part of it loads them.
    for name in ("evaluation.sampler", "features.clip", "features.classifier"):
        import_module(f"pytest_sdbench.{name}")
    what = "scoring, rows of MS-COCO's widths" if store else "sampling and scoring, scenes-quick"
    protocol = load_protocol(store / "coco-like.yaml" if store else "scenes-quick").with_samples(images)
    checkpoint = resolve(CHECKPOINT)
    with tempfile.TemporaryDirectory(prefix="sdbench-memory-") as fresh:
        machine.forget_peak()
        # Bytes resident before the evaluation, with every module imported; then the most there were.
        base, _ = machine.resident()
        began = time.perf_counter()
        evaluate(checkpoint, protocol, Workspace(store or Path(fresh), progress=False))
        seconds = time.perf_counter() - began
        # Not `ru_maxrss`: Linux starts that of a new process at what its parent had.
        most = machine.resident()[1]
    return {"what": what, "images": images, "base": base, "most": most, "seconds": seconds}


def measure(
    numbers: Sequence[int] = (1000, 5000, 30000),
    sampled: Sequence[int] = (64, 256),
) -> list[dict[str, Any]]:
    """Measure every number of images in a process of its own."""
    peaks = []
    with tempfile.TemporaryDirectory(prefix="sdbench-memory-") as name:
        store = Path(name)
        fill(store, resolve(CHECKPOINT), coco_like(store, max(numbers)), COCO_COLUMNS)
        for images, where in [*((n, store) for n in numbers), *((n, None) for n in sampled)]:
            peaks.append(in_a_process(peak, images, where))
            print(f"{peaks[-1]['what']}: {images:,} images, {peaks[-1]['most'] / 1e6:,.0f} MB")
    return peaks
