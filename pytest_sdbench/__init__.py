"""A model card is a test file: verify the published figures of compressed Stable Diffusion checkpoints.

What a team needs in its conftest or notebook is imported from here; everything else may move. A name is
loaded when it is first asked for: ``import pytest_sdbench`` costs neither torch nor pydantic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_sdbench.base.errors import SdbenchError, Unavailable
    from pytest_sdbench.base.workspace import Workspace
    from pytest_sdbench.cards.card import Card, read_card
    from pytest_sdbench.evaluation.evaluate import Evaluation, evaluate
    from pytest_sdbench.features.definition import Extractor
    from pytest_sdbench.features.extractors import register_extractor
    from pytest_sdbench.gate.verdict import Outcome, Verdict
    from pytest_sdbench.metrics.definition import Metric, Sample
    from pytest_sdbench.metrics.estimates import Estimate, Undefined
    from pytest_sdbench.metrics.moments import FeatureStatistics
    from pytest_sdbench.metrics.registry import register_metric
    from pytest_sdbench.metrics.standard_error import standard_error
    from pytest_sdbench.models.checkpoint import Checkpoint, resolve
    from pytest_sdbench.models.pipeline import load_pipeline
    from pytest_sdbench.protocols.load import load_protocol
    from pytest_sdbench.protocols.protocol import Protocol

__version__ = "0.1.0"

_PLACES = {
    "base.errors": ("SdbenchError", "Unavailable"),
    "base.workspace": ("Workspace",),
    "cards.card": ("Card", "read_card"),
    "evaluation.evaluate": ("Evaluation", "evaluate"),
    "features.definition": ("Extractor",),
    "features.extractors": ("register_extractor",),
    "gate.verdict": ("Outcome", "Verdict"),
    "metrics.definition": ("Metric", "Sample"),
    "metrics.estimates": ("Estimate", "Undefined"),
    "metrics.moments": ("FeatureStatistics",),
    "metrics.registry": ("register_metric",),
    "metrics.standard_error": ("standard_error",),
    "models.checkpoint": ("Checkpoint", "resolve"),
    "models.pipeline": ("load_pipeline",),
    "protocols.load": ("load_protocol",),
    "protocols.protocol": ("Protocol",),
}
_PLACE_OF = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "Card",
    "Checkpoint",
    "Estimate",
    "Evaluation",
    "Extractor",
    "FeatureStatistics",
    "Metric",
    "Outcome",
    "Protocol",
    "Sample",
    "SdbenchError",
    "Unavailable",
    "Undefined",
    "Verdict",
    "Workspace",
    "evaluate",
    "load_pipeline",
    "load_protocol",
    "read_card",
    "register_extractor",
    "register_metric",
    "resolve",
    "standard_error",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACE_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
