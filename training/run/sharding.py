"""Tensors that are cut over the processes of a run (FSDP); plain ones pass through."""

from __future__ import annotations

import torch
from torch import Tensor


def shard(value: Tensor) -> Tensor:
    """Return the part of a sharded tensor that this process holds: it may be empty."""
    local: Tensor = value.to_local() if hasattr(value, "to_local") else value
    return local


def full(value: Tensor) -> Tensor:
    """Gather a sharded tensor; all processes take part."""
    gathered: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return gathered


@torch.no_grad()
def fill(place: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a tensor that may be sharded."""
    if hasattr(place, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(place.device), place.device_mesh, place.placements)  # type: ignore[attr-defined]
    place.copy_(value)
