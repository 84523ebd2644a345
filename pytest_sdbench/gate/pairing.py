"""Keep what each image of a released checkpoint adds to its scores, so that others are paired with it.

A file holds, for the numbers of images at which a sequence looks, each metric's estimate and the influence of
every image on it: some 30 bytes an image, against 25 U-Net calls to draw it again. The files of a card lie in
``evidence/CARD/PROTOCOL.safetensors`` beside the card, or beside the folder of cards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pytest_sdbench.base.errors import EvidenceError
from pytest_sdbench.base.files import write_atomically
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.metrics.moments import Array

FOLDER = "evidence"
_META = "sdbench"
_FORMAT = 1
_NUMBERS = ("value", "standard_error", "corrected", "slope", "degenerate")
_OPTIONAL = ("standard_error", "corrected")


@dataclass(frozen=True)
class Recorded:
    """The estimates of one checkpoint under one protocol, at growing numbers of images."""

    checkpoint_fingerprint: str
    protocol_fingerprint: str
    looks: Mapping[int, Mapping[str, Estimate]]
    """By number of images, then metric."""


def evidence_path(card: Path, name: str, protocol: str) -> Path:
    """Return where the recorded evidence of a card lies, or would."""
    folder = card.parent.parent if card.parent.name == "cards" else card.parent
    return folder / FOLDER / name / f"{protocol}.safetensors"


def read_recorded(path: Path) -> Recorded | None:
    """Return the recorded evidence in a file, or None where there is no file.

    Raises EvidenceError for a file that is no such evidence.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {})[_META])
            if about["format"] != _FORMAT:
                raise ValueError(f"format {about['format']}, this version reads {_FORMAT}")
            looks = {
                int(n): {
                    metric: _estimate(metric, int(n), figures, file.get_tensor(f"{n}/{metric}"))
                    for metric, figures in metrics.items()
                }
                for n, metrics in about["looks"].items()
            }
            return Recorded(about["checkpoint_fingerprint"], about["protocol_fingerprint"], looks)
    except (
        SafetensorError,
        OSError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
    ) as error:
        raise EvidenceError(
            f"not recorded evidence: {error}",
            file=path,
            remedy="Delete it, and record it again with --sdbench-update",
        ) from None


def _estimate(metric: str, n: int, figures: Mapping[str, float | None], moved: Array) -> Estimate:
    """Return an estimate as it was recorded; raise ValueError for one that cannot be."""
    numbers = {key: None if figures[key] is None else float(figures[key]) for key in _NUMBERS}  # type: ignore[arg-type]
    influence = np.asarray(moved, np.float64)
    if influence.shape != (n,):
        raise ValueError(f"{metric} of {n} images has influences of shape {list(influence.shape)}")
    lacking = [key for key, number in numbers.items() if number is None and key not in _OPTIONAL]
    if lacking:
        raise ValueError(f"{metric} of {n} images has no {', '.join(lacking)}")
    known = [number for number in numbers.values() if number is not None]
    if not (np.isfinite(influence).all() and np.isfinite(known).all()):
        raise ValueError(f"{metric} of {n} images holds NaN or infinity")
    if numbers["standard_error"] is not None and numbers["standard_error"] < 0:
        raise ValueError(f"{metric} of {n} images has a standard error below 0")
    return Estimate(metric=metric, n=n, influence=influence, **numbers)  # type: ignore[arg-type]


def write_recorded(path: Path, recorded: Recorded) -> bool:
    """Write recorded evidence and return whether the file changed; metrics without influence are left out."""
    from safetensors.numpy import save

    arrays, looks = {}, {}
    for n, estimates in recorded.looks.items():
        kept = {metric: each for metric, each in estimates.items() if each.influence is not None}
        looks[str(n)] = {
            metric: {key: getattr(each, key) for key in _NUMBERS} for metric, each in kept.items()
        }
        for metric, each in kept.items():
            assert each.influence is not None
            arrays[f"{n}/{metric}"] = each.influence.astype(np.float32)
    about = {
        "format": _FORMAT,
        "checkpoint_fingerprint": recorded.checkpoint_fingerprint,
        "protocol_fingerprint": recorded.protocol_fingerprint,
        "looks": looks,
    }
    content = save(arrays, {_META: json.dumps(about, sort_keys=True)})
    try:
        if path.is_file() and path.read_bytes() == content:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise EvidenceError(
            f"recorded evidence cannot be written: {error.strerror or error}",
            file=path,
            remedy="Make the folder writable and run again",
        ) from error
    return True
