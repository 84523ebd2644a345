"""What a run trains: the interface between the loop and an objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from training.run.randomness import Dice


@dataclass(frozen=True)
class Piece:
    """Some consecutive images of a run's endless sequence: what one process computes at once."""

    first: int
    count: int
    dice: Dice


class Task(Protocol):
    """What the loop needs to know of what is trained; tasks inherit the methods that do nothing."""

    model: nn.Module
    """Everything that learns; the loop wraps it for its processes."""

    def losses(self, model: nn.Module, piece: Piece) -> dict[str, Tensor]:
        """Return named scalars; the one named `loss` is descended. `model` is the wrapped model."""
        ...

    def after_step(self, model: nn.Module) -> None:
        """Follow the weights after a step of the optimiser; `model` is unwrapped."""
        return None

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs besides the weights."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        return None

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return losses that are measured the same way every time."""
        return {}

    def preview(self, model: nn.Module, path: Path) -> None:
        """Write a sheet of samples."""
        return None

    def close(self) -> None:
        """End what runs beside the loop; the task can be used on."""
        return None
