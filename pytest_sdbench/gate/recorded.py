"""Keep what each image of a released checkpoint adds to its scores, so that others are paired with it.

So are its pairs with the pictures of its baseline, whose fingerprint the file holds. For the numbers of
images at which a sequence looks it has each metric's estimate and the influence of every image on it: some 30
bytes an image, against 25 U-Net calls to draw it again. The files of a card lie in
``evidence/CARD/PROTOCOL.safetensors`` beside the card, or beside the folder of cards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_sdbench.base.errors import EvidenceError, first_line
from pytest_sdbench.base.files import holds_pointer, json_mapping, write_atomically
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.card import Card, baseline_of, card_name
from pytest_sdbench.cards.network import baseline_checkpoint
from pytest_sdbench.cards.records import Record, nearly
from pytest_sdbench.gate.looks import looks
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.metrics.moments import Array, Rows
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.models.changes import Description
from pytest_sdbench.models.layout import CLASSES, COMPONENTS
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.protocol import Protocol

if TYPE_CHECKING:
    from pytest_sdbench.evaluation.fidelity import Reference, Setups

FOLDER = "evidence"
_META = "sdbench"
_FORMAT = 1
_NUMBERS = ("value", "standard_error", "corrected", "slope", "degenerate")
_OPTIONAL = ("standard_error", "corrected")


@dataclass(frozen=True)
class RecordedEvidence:
    """The estimates of one checkpoint under one protocol, at growing numbers of images."""

    checkpoint_fingerprint: str
    protocol_fingerprint: str
    looks: Mapping[int, Mapping[str, Estimate]]
    """By number of images, then metric."""
    description: Description | None = field(default=None, compare=False)
    """Of the checkpoint; None in older files."""
    reference_fingerprint: str | None = None
    """Of the checkpoint that its metrics of pairs compare with; None where there is none of them."""
    reference_setups: Setups | None = field(default=None, compare=False)
    """Where the pictures of that checkpoint were drawn; None in older files."""

    def is_beside(self, metric: str, reference: Reference | None) -> bool:
        """Tell whether its figure of a metric compares with the same pictures as one beside `reference`."""
        here = None if reference is None else reference.fingerprint
        return METRICS[metric].reads != "pair" or here == self.reference_fingerprint

    def estimate(self, n: int, metric: str) -> Estimate | None:
        """Return the estimate of the first n images, or None where it is not recorded."""
        return self.looks.get(n, {}).get(metric)


def evidence_path(card: Path, protocol: str) -> Path:
    """Return where the recorded evidence of a card lies, or would."""
    card = card.absolute()
    folder = card.parent.parent if card.parent.name == "cards" else card.parent
    return folder / FOLDER / card_name(card) / f"{protocol}.safetensors"


def read_recorded(path: Path) -> RecordedEvidence | None:
    """Return the recorded evidence in a file, or None where there is no file.

    Raises EvidenceError for a file that is no such evidence.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    if holds_pointer(path):
        raise EvidenceError("a Git LFS pointer, not the evidence", file=path, remedy="Run: git lfs pull")
    try:
        with safe_open(path, "numpy") as file:
            about = json_mapping((file.metadata() or {})[_META].encode())
            if about["format"] != _FORMAT:
                raise ValueError(f"format {about['format']}, this version reads {_FORMAT}")
            looks = {
                int(n): {
                    metric: _estimate(metric, int(n), figures, file.get_tensor(f"{n}/{metric}"))
                    for metric, figures in metrics.items()
                }
                for n, metrics in about["looks"].items()
            }
            described, setups = about.get("checkpoint"), about.get("reference_setups")
            return RecordedEvidence(
                about["checkpoint_fingerprint"],
                about["protocol_fingerprint"],
                looks,
                None if described is None else _description(described, file.get_tensor),
                about.get("reference_fingerprint"),
                None if setups is None else frozenset(tuple(map(str, each)) for each in setups),
            )
    except (SafetensorError, OSError, AttributeError, KeyError, TypeError, ValueError, OverflowError) as why:
        raise EvidenceError(
            f"not recorded evidence: {first_line(why)}",
            file=path,
            remedy="Delete it, and record it again with --sdbench-update",
        ) from None


def _description(described: Mapping[str, Any], array: Callable[[str], Any]) -> Description:
    """Return a checkpoint's description, whose arrays lie beside those of the images, or raise ValueError."""
    configs, vocabulary = described["configs"], described["vocabulary"]
    for key, kind, values in (("configs", dict, configs), ("vocabulary", str, vocabulary)):
        if not (isinstance(values, dict) and all(isinstance(each, kind) for each in values.values())):
            raise ValueError(f"the checkpoint's description has {key} of another form")
    components = [name for name in CLASSES if name in COMPONENTS or name in configs]
    arrays = {
        key: {name: array(f"checkpoint/{key}/{name}") for name in components}
        for key in ("checksums", "norms")
    }
    for name in components:
        sums, norms = arrays["checksums"][name], arrays["norms"][name]
        written = (sums.dtype, norms.dtype) == (np.uint32, np.float32)
        if not (written and sums.ndim == 1 and sums.shape == norms.shape):
            raise ValueError(f"the checkpoint's description has checksums and norms of another form: {name}")
    return Description(configs, vocabulary, **arrays)


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


def write_recorded(path: Path, recorded: RecordedEvidence) -> bool:
    """Write recorded evidence and return whether the file changed; metrics without influence are left out."""
    from safetensors.numpy import save

    arrays: dict[str, Rows] = {}
    looks: dict[str, dict[str, Any]] = {str(n): {} for n in recorded.looks}
    for n, estimates in recorded.looks.items():
        for metric, each in estimates.items():
            if each.influence is not None:
                looks[str(n)][metric] = {key: getattr(each, key) for key in _NUMBERS}
                arrays[f"{n}/{metric}"] = each.influence.astype(np.float32)
    about = {
        "format": _FORMAT,
        "checkpoint_fingerprint": recorded.checkpoint_fingerprint,
        "protocol_fingerprint": recorded.protocol_fingerprint,
        "looks": looks,
    }
    if recorded.reference_fingerprint is not None:
        about["reference_fingerprint"] = recorded.reference_fingerprint
    if recorded.reference_setups is not None:
        about["reference_setups"] = sorted(recorded.reference_setups)
    if (described := recorded.description) is not None:
        about["checkpoint"] = {"configs": described.configs, "vocabulary": described.vocabulary}
        for name in described.checksums:
            arrays[f"checkpoint/checksums/{name}"] = described.checksums[name]
            arrays[f"checkpoint/norms/{name}"] = described.norms[name]
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


def record_evidence(card: Card, protocol_name: str, workspace: Workspace) -> Path | None:
    """Record a card's images under a protocol from the store; return the file if it is new or changed.

    Its metrics of pairs are those beside its baseline, whose pictures are in the store, too. What says the
    same but for the last digits stays, as records do. So does a file with a metric more, which this machine
    lacks the references for. Raises Unavailable where the store lacks some of the images.
    """
    from pytest_sdbench.evaluation.evaluate import evaluate
    from pytest_sdbench.evaluation.job import Extras
    from pytest_sdbench.models.changes import describe
    from pytest_sdbench.models.checkpoint import resolve

    protocol = load_protocol(protocol_name, search=(card.path.parent,))
    checkpoint = resolve(card.checkpoint, card=card.name, near=card.path.parent)
    extras = Extras(original=cache(lambda: baseline_checkpoint(card, baseline_of(card), protocol_name)))
    found: dict[int, dict[str, Estimate]] = {}
    reference: Reference | None = None
    for look in looks(protocol.n):
        made = evaluate(checkpoint, protocol, workspace, samples=look.n, max_images=0, extras=extras)
        found[look.n] = {name: each for name, each in made.estimates.items() if isinstance(each, Estimate)}
        reference = made.reference
    path = evidence_path(card.path, protocol.name)
    recorded = RecordedEvidence(checkpoint.fingerprint, protocol.fingerprint, found)
    if reference is not None:
        recorded = replace(
            recorded, reference_fingerprint=reference.fingerprint, reference_setups=reference.setups
        )
    known = read_recorded(path)
    recorded = _with_metrics_of(known, recorded, protocol)
    if known is not None and _says_the_same(known, recorded):
        # Images of an older format stay as they are, and gain what it did not hold.
        recorded = replace(known, reference_setups=known.reference_setups or recorded.reference_setups)
    described = recorded.description or describe(checkpoint)
    return path if write_recorded(path, replace(recorded, description=described)) else None


def _with_metrics_of(
    known: RecordedEvidence | None, new: RecordedEvidence, protocol: Protocol
) -> RecordedEvidence:
    """Return new evidence with what is known of metrics that this machine lacks the references for.

    The protocol may have gained metrics since: that changes nothing of the others. Pairs are left out where
    the baseline is another one now.
    """
    if known is None or known.checkpoint_fingerprint != new.checkpoint_fingerprint:
        return new
    if known.protocol_fingerprint == new.protocol_fingerprint or not protocol.covers(
        known.protocol_fingerprint
    ):
        return new
    reference = new.reference_fingerprint or known.reference_fingerprint
    left = {
        n: {
            metric: each
            for metric, each in estimates.items()
            if METRICS[metric].reads != "pair" or reference == known.reference_fingerprint
        }
        for n, estimates in known.looks.items()
    }
    looks = {n: {**left.get(n, {}), **each} for n, each in new.looks.items()}
    beside = [each.reference_setups for each in (known, new) if each.reference_fingerprint == reference]
    setups = frozenset[tuple[str, ...]]().union(*(each for each in beside if each is not None))
    return replace(
        new,
        looks=looks,
        reference_fingerprint=reference,
        reference_setups=None if None in beside else setups,
    )


def _says_the_same(known: RecordedEvidence, new: RecordedEvidence) -> bool:
    """Return whether recorded images say all that others say, but for the last digits."""
    reference = new.reference_fingerprint or known.reference_fingerprint
    same = replace(known, looks={}) == replace(new, looks={}, reference_fingerprint=reference)
    if not same or not set(new.looks) <= set(known.looks):
        return False
    pairs = [
        (known.estimate(n, metric), each)
        for n, estimates in new.looks.items()
        for metric, each in estimates.items()
        if each.influence is not None
    ]
    return all(old is not None and same_figure(old, each) for old, each in pairs)


def same_figure(known: Record | Estimate, new: Record | Estimate) -> bool:
    """Return whether two figures differ in the last digits alone: threads and batches move them."""
    errors = known.standard_error, new.standard_error
    if None in errors and errors != (None, None):
        return False
    return nearly(known.value, new.value) and math.isclose(errors[0] or 0.0, errors[1] or 0.0, rel_tol=0.02)
