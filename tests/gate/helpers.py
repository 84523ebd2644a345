"""An evaluation of known scores, and what a run reports."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from pytest_sdbench.evaluation.evaluate import Evaluation
from pytest_sdbench.protocols.protocol import Protocol

Run = Callable[..., pytest.RunResult]


def evaluation(
    protocol: Protocol, estimates: Mapping[str, Any], checkpoint: str, **changes: Any
) -> Evaluation:
    """Return an evaluation of all images of a protocol; ``changes`` replace its other fields."""
    fields: dict[str, Any] = {"lacking": {}, "requested": protocol.n, "complete": True, "device": "here"}
    fields |= {
        "versions": {},
        "seconds": 1.0,
        "images_made": 0,
        "blacked_out": 0,
        "truncated": 0,
        "notes": (),
    }
    values = fields | changes
    return Evaluation(estimates=estimates, protocol=protocol, checkpoint_fingerprint=checkpoint, **values)


def report(pytester: pytest.Pytester) -> dict[str, Any]:
    """Return what the last run wrote to r.json."""
    content: dict[str, Any] = json.loads((pytester.path / "r.json").read_text(encoding="utf-8"))
    return content
