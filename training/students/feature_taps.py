"""Read features inside a U-Net: which layers distillation compares, and a module that returns them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from training.errors import TrainingError
from training.students.block_removal import Removal

Pairing = Literal["bk-sdm", "segmind"]
Pair = tuple[str, str]
"""A layer of the teacher, a layer of the student; both put out the same shape."""

_LEVELS: tuple[Pair, ...] = tuple((f"{way}_blocks.{i}",) * 2 for way in ("down", "up") for i in range(4))
_TINY_UP: tuple[Pair, ...] = tuple((f"up_blocks.{i + 1}", f"up_blocks.{i}") for i in range(3))
_TINY_DOWN: tuple[Pair, ...] = (("down_blocks.0", "down_blocks.0"), ("down_blocks.1", "down_blocks.1"))
# What BK-SDM compares where the tiny student has no third downsampler: the ends of the last attention
# before it.
_TINY_PROJECTION: Pair = ("down_blocks.2.attentions.1.proj_out", "down_blocks.2.attentions.0.proj_out")
# What segmind compares there: the teacher's innermost level on the way up has the size of the student's
# innermost.
_TINY_TURN: Pair = ("up_blocks.0", "down_blocks.2")


def feature_pairs(pairing: Pairing, remove: Removal) -> tuple[Pair, ...]:
    """Return the layers whose outputs are compared, teacher first.

    Source: the published training scripts of BK-SDM and of segmind's distill-sd.
    """
    if remove == "tiny":
        turn = _TINY_PROJECTION if pairing == "bk-sdm" else _TINY_TURN
        return (*_TINY_DOWN, turn, *_TINY_UP)
    if pairing == "segmind" and remove in ("none", "base"):
        return (*_LEVELS[:4], ("mid_block", "mid_block"), *_LEVELS[4:])
    return _LEVELS


class Hearing(NamedTuple):
    """Which levels of a U-Net hear a picture's caption."""

    outermost: Tensor
    """The outermost level that does, for each picture, int64 [B]; the inner ones do, too."""
    nothing: Tensor
    """What the others hear: the empty prompt, as the text is given, of one picture."""


class Denoiser(nn.Module):
    """A U-Net, with its text encoder if that learns too, that also returns the features at `taps`.

    The features are outputs of this module and not entries of a shared dictionary: wrappers (data parallel,
    compiled, checkpointed) then treat them as they treat the prediction, names of layers never change under
    them, and every feature has a gradient.
    """

    def __init__(
        self, unet: nn.Module, taps: Sequence[str] = (), text_encoder: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        self.taps = tuple(taps)
        self._caught: dict[str, Tensor] | None = None
        self._hearing: Hearing | None = None
        layers = dict(unet.named_modules())
        for tap in self.taps:
            if tap not in layers:
                raise TrainingError(
                    "the U-Net has no such layer to compare features at",
                    key=tap,
                    remedy="Choose the pairing that fits the student's architecture",
                )
            layers[tap].register_forward_hook(self._hook(tap))

    def tell_levels_apart(self) -> Denoiser:
        """Let calls say which levels of the U-Net hear a picture's caption; level 0 is the outermost."""
        unet: Any = self.unet
        last = len(unet.up_blocks) - 1
        levels = [*enumerate(unet.down_blocks), (last, unet.mid_block)]
        levels += [(last - place, block) for place, block in enumerate(unet.up_blocks)]
        for level, block in levels:
            if block is not None:  # some have no mid block
                block.register_forward_pre_hook(self._muffler(level), with_kwargs=True)
        return self

    def forward(
        self,
        noisy: Tensor,
        steps: Tensor,
        text: Tensor,
        guidance: Tensor | None = None,
        hearing: Hearing | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the prediction [B, C, h, w] and a feature for each tap.

        `text` is token numbers [B, T] where this module has a text encoder, else text states [B, T, D];
        `guidance` is the embedding of the guidance scale [B, G] of a consistency model; `hearing` says, after
        `tell_levels_apart`, to which levels the text is another.
        """
        if self.text_encoder is not None:
            text = self.text_encoder(text).last_hidden_state
            if hearing is not None:
                hearing = hearing._replace(nothing=self.text_encoder(hearing.nothing).last_hidden_state)
        caught: dict[str, Tensor] = {}
        self._caught, self._hearing = caught, hearing
        prediction = self.unet(noisy, steps, text, timestep_cond=guidance, return_dict=False)[0]
        # Gradient checkpointing runs layers again in the backward pass: what they put out then is not kept.
        self._caught = self._hearing = None
        return prediction, tuple(caught[tap] for tap in self.taps)

    def _hook(self, tap: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if self._caught is not None:
                self._caught[tap] = output[0] if isinstance(output, tuple) else output

        return keep

    def _muffler(self, level: int) -> Any:
        def muffle(
            _module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            text = named.get("encoder_hidden_states")
            if self._hearing is None or text is None:
                return None
            outermost, nothing = self._hearing
            heard = torch.where((outermost <= level).view(-1, 1, 1), text, nothing.to(text.dtype))
            return inputs, {**named, "encoder_hidden_states": heard}

        return muffle


@torch.no_grad()
def without_gradient(module: Denoiser, *inputs: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Call a frozen network."""
    prediction, features = module(*inputs)
    return prediction, features
