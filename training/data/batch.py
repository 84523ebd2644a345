"""Hand training pairs to the loop: what a batch holds, and where batches come from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """Some training pairs; either `pixels`, or `mean` and `deviation` are there."""

    tokens: Tensor
    """Caption tokens, int64 [B, T], padded to the tokenizer's length."""

    pixels: Tensor | None = None
    """Pictures, float32 [B, 3, H, W], -1 to 1: where latents are not cached."""

    mean: Tensor | None = None
    """Mean of the VAE's posterior, before scaling, float16 [B, C, h, w]."""

    deviation: Tensor | None = None
    """Standard deviation of the VAE's posterior, float16 [B, C, h, w]."""

    text: Tensor | None = None
    """Last hidden states of the frozen text encoder, float16 [B, T, D]: where they are cached."""

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: str | torch.device, non_blocking: bool = True) -> Examples:
        """Return the same examples on a device."""
        return self._each(lambda value: value.to(device, non_blocking=non_blocking))

    def pinned(self) -> Examples:
        """Return the same examples in memory that a GPU copies from while it computes."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Examples:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if value is not None})


class Pairs(Protocol):
    """Captioned pictures that can be taken in any order, as often as one likes."""

    @property
    def group_sizes(self) -> Sequence[int]:
        """Number of rows of each shard, in the order of the rows; a single number where there are none."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identify the content of the source; empty where that is not known."""
        ...

    @property
    def skipped(self) -> Mapping[str, str]:
        """The corrupt samples met so far: the reason of each by its key."""
        ...

    def __len__(self) -> int: ...

    def take(self, rows: Sequence[int], flipped: Sequence[bool] | None = None) -> Examples:
        """Return the pairs of these rows, with the pictures mirrored where `flipped` says so."""
        ...


@dataclass(frozen=True)
class NoPairs:
    """What stands in the place of a run's pairs where it is exported and not trained: how many there were."""

    count: int = 0
    """0: not known."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    group_sizes: Sequence[int] = (1,)
    fingerprint: str = ""

    def __len__(self) -> int:
        return self.count

    def take(self, rows: Sequence[int], flipped: Sequence[bool] | None = None) -> Examples:
        raise RuntimeError("a run that is exported takes no pairs")


_ONE_AT_A_TIME = threading.Lock()
"""A tokenizer keeps between calls how it cuts and pads: a look-ahead would change it under another thread."""


def tokenize(tokenizer: Any, captions: Sequence[str]) -> tuple[Tensor, int]:
    """Return padded tokens, int64 [N, T], and how many captions were too long.

    A caption that is too long loses its last words; its end token stays, as CLIP reads its result there.
    """
    length = tokenizer.model_max_length
    with _ONE_AT_A_TIME:
        whole = tokenizer(list(captions), truncation=False, verbose=False).input_ids
        cut = tokenizer(
            list(captions), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
    return cut.input_ids, sum(len(tokens) > length for tokens in whole)
