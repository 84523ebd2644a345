"""Follow the weights by an exponential moving average."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The moving average of the trainable parameters of a module, in their own precision and place."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Start at the parameters as they are; `decay` is per step, between 0 and 1."""
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in _trainable(module).items()}

    @torch.no_grad()
    def follow(self, module: nn.Module, step: int) -> None:
        """Move toward the parameters after optimiser step `step`, counted from 1.

        The average remembers min(decay, (1 + step) / (10 + step)): early on it forgets faster, not to keep
        the start.
        """
        keep = min(self.decay, (1 + step) / (10 + step))
        parameters = _trainable(module)
        torch._foreach_lerp_(
            [self.values[name] for name in parameters],
            [value.detach() for value in parameters.values()],
            1 - keep,
        )

    @torch.no_grad()
    def put(self, module: nn.Module) -> None:
        """Put the average in the place of the parameters for good."""
        for name, value in _trainable(module).items():
            value.copy_(self.values[name])

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Put the average in the place of the parameters; put them back afterwards."""
        parameters = _trainable(module)
        kept = {name: value.detach().clone() for name, value in parameters.items()}
        self.put(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in parameters.items():
                    value.copy_(kept[name])


def _trainable(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.named_parameters() if value.requires_grad}
