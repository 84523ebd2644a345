"""Shorten captions to the words that name things."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Outline:
    """Leave of a caption's tokens those of certain words alone, in their order."""

    def __init__(self, tokenizer: Any, words: Iterable[str]) -> None:
        spoken = torch.zeros(len(tokenizer), dtype=torch.bool)
        spoken[tokenizer.bos_token_id] = True
        for word in words:
            spoken[tokenizer(word, add_special_tokens=False).input_ids] = True
        self._spoken, self._end = spoken, int(tokenizer.eos_token_id)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the tokens that a caption of these words alone has, int64 [B, T]."""
        kept = self._spoken.to(tokens.device)[tokens]
        order = torch.argsort((~kept).to(torch.uint8), dim=1, stable=True)
        return torch.where(kept.gather(1, order), tokens.gather(1, order), self._end)
