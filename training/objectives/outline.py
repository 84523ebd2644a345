"""Shorten captions to the words that name things."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from training.errors import TrainingError


class Outline:
    """Leave of a caption's tokens those of certain words alone, in their order.

    A word is left wherever it stands: "at" of "at sign" is that of "at dusk", too. Raises TrainingError for a
    tokenizer that spells one of `others`, which are to go, with pieces of the words alone.
    """

    def __init__(self, tokenizer: Any, words: Iterable[str], others: Iterable[str] = ()) -> None:
        spoken = torch.zeros(len(tokenizer), dtype=torch.bool)
        spoken[tokenizer.bos_token_id] = True
        for word in words:
            spoken[tokenizer(word, add_special_tokens=False).input_ids] = True
        for word in others:
            if bool(spoken[tokenizer(word, add_special_tokens=False).input_ids].all()):
                raise TrainingError(
                    "the tokenizer spells names and other words with the same pieces",
                    key="objective.inner_captions",
                    found=word,
                    remedy="Give student.networks.text_encoder: its tokenizer has the words of scenes",
                )
        self._spoken, self._end = spoken, int(tokenizer.eos_token_id)
        self._rest = self._end if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the tokens that a caption of these words alone has, int64 [B, T]."""
        kept = self._spoken.to(tokens.device)[tokens]
        order = torch.argsort((~kept).to(torch.uint8), dim=1, stable=True)
        places, count = torch.arange(tokens.shape[1], device=tokens.device), kept.sum(dim=1, keepdim=True)
        rest = torch.where(places == count, self._end, self._rest)
        return torch.where(kept.gather(1, order), tokens.gather(1, order), rest)
