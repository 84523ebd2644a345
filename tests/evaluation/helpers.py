"""A protocol of a test's own, pictures of diffusers itself, and what pictures may differ by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pytest_sdbench.evaluation.sampler import Batch, Sampler, image_seed
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.protocols.sections import SequentialSeeds

SEED = 5
PER_IMAGE = {"kind": "per-image", "seed": SEED}
SEQUENTIAL = {"kind": "sequential", "seed": SEED, "device": "cpu"}


CLIP = {"clip_score": {"model": "local:scenes-clip"}}
"""The metric that takes least."""


def own_protocol(
    folder: Path,
    name: str = "own",
    *,
    n: int,
    seeds: dict[str, Any] = PER_IMAGE,
    image: Any = (),
    metrics: dict[str, Any] = CLIP,
    **sampling: Any,
) -> Protocol:
    """Write a protocol of `n` images of 64x64 at guidance 3, in float32, and load it.

    Its prompts are those of the folder's captions.csv, if there is one.
    """
    table = folder / "captions.csv"
    content = table.read_bytes() if table.exists() else b"\n" * (n + 1)
    prompts = {"kind": "csv", "file": table.name, "sha256": hashlib.sha256(content).hexdigest()}
    values = {
        "title": "Own",
        "n": n,
        "prompts": prompts | {"rows": content.count(b"\n") - 1},
        "seeds": seeds,
        "sampling": {"steps": 2, "guidance": 3.0, "resolution": 64, "dtype": "float32", **sampling},
        **({"image": image} if image else {}),
        "metrics": metrics,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")
    return load_protocol(path)


def sample(
    pipeline: Any, protocol: Protocol, prompts: Sequence[str], indices: Sequence[int], *, batch_size: int
) -> Iterator[Batch]:
    """Yield the images with these indices in batches; under sequential seeds one by one."""
    sampler = Sampler(pipeline, protocol, prompts)
    size = 1 if isinstance(protocol.seeds, SequentialSeeds) else batch_size
    for start in range(0, len(indices), size):
        yield sampler.decode(sampler.draw(indices[start : start + size]))


def diffusers_picture(
    pipeline: Any, prompt: str, *, steps: int, generator: torch.Generator | None = None, index: int = 0
) -> np.ndarray:
    """Return what diffusers makes of one prompt, from a generator or from the seed of an image."""
    generator = generator or torch.Generator().manual_seed(image_seed(SEED, index))
    made = pipeline(
        prompt, num_inference_steps=steps, guidance_scale=3.0, height=64, width=64, generator=generator
    )
    return np.asarray(made.images[0])


def assert_same_pictures(one: np.ndarray, other: np.ndarray, *, above: int, rarely: float, most: int) -> None:
    """Allow what rounding does to bytes: `most` at the worst, and more than `above` but rarely."""
    apart = np.abs(one.astype(int) - other.astype(int))
    assert apart.max() <= most
    assert (apart > above).mean() < rarely
