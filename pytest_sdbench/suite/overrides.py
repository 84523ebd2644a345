"""What a project's own fixtures may give in place of the suite's, as the suite needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_sdbench.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class PlainPipeline:
    """Load a checkpoint's pipeline as it is, given the name of a dtype."""

    checkpoint: Checkpoint
    device: str

    def __call__(self, dtype: str) -> Any:
        from pytest_sdbench.models.pipeline import load_pipeline

        return load_pipeline(self.checkpoint, device=self.device, dtype=dtype)


def dtype_name(dtype: Any) -> str:
    """Return the name of a dtype, given it or a torch.dtype."""
    return str(dtype).removeprefix("torch.")


def loader(pipeline: Any) -> Callable[[str], Any]:
    """Return what ``sdbench_pipeline`` gave; raise pytest.UsageError where it is a pipeline itself."""
    if callable(pipeline) and not hasattr(pipeline, "scheduler"):
        load: Callable[[str], Any] = pipeline
        return load
    what = f"sdbench_pipeline gave a {type(pipeline).__name__}"
    remedy = "Return a function that takes the name of a dtype and returns the pipeline"
    raise pytest.UsageError(f"{what}, and not a function. {remedy}")
