"""Draw the random numbers of a step so that they do not depend on how the step is cut."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


class Dice:
    """The random numbers of some images of one step.

    A step draws for its whole global batch, from a generator seeded by (seed, images seen before the step),
    and each piece of it (a micro-batch of a process) keeps its own rows. So the numbers of an image are the
    same on one process or many, with accumulation or without, after a resume or not. All pieces have to
    draw in the same order.
    """

    def __init__(
        self, seed: int, seen: int, total: int, first: int, count: int, device: torch.device | str = "cpu"
    ) -> None:
        """Draw rows `first` to `first + count` of a step of `total` images, `seen` images into the run."""
        if not 0 <= first <= first + count <= total:
            raise ValueError(f"rows {first} to {first + count} of {total}")
        # torch's CPU generator reads the low 32 bits of a seed alone, so both numbers are mixed into them.
        mixed = hashlib.sha256(f"{seed} {seen}".encode()).digest()
        self.device = torch.device(device)
        self._generator = torch.Generator(self.device).manual_seed(int.from_bytes(mixed[:4], "little"))
        self._total, self._rows = total, slice(first, first + count)

    def normal(self, *shape: int) -> Tensor:
        """Draw from the standard normal distribution: float32 [count, *shape]."""
        return torch.randn(self._total, *shape, generator=self._generator, device=self.device)[self._rows]

    def uniform(self, *shape: int) -> Tensor:
        """Draw from 0 to 1: float32 [count, *shape]."""
        return torch.rand(self._total, *shape, generator=self._generator, device=self.device)[self._rows]

    def integers(self, high: int, *shape: int) -> Tensor:
        """Draw whole numbers from 0 to `high - 1`: int64 [count, *shape]."""
        return torch.randint(high, (self._total, *shape), generator=self._generator, device=self.device)[
            self._rows
        ]
