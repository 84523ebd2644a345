"""Read features inside a U-Net: which layers distillation compares, and a module that returns them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

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


def inner_taps(unet: Any) -> dict[str, tuple[int, int]]:
    """Return where a U-Net's inner levels end on the way up, innermost first, and the mid block's end.

    With each comes how many channels it has, and how many pixels of the outermost level one of its covers
    on a side.
    """
    covers, found = 2 ** (len(unet.up_blocks) - 1), {}
    if unet.mid_block is not None:
        found["mid_block"] = unet.mid_block.resnets[-1].out_channels, covers
    for place, block in enumerate(unet.up_blocks[:-1]):
        kind, last = "attentions" if hasattr(block, "attentions") else "resnets", len(block.resnets) - 1
        found[f"up_blocks.{place}.{kind}.{last}"] = block.resnets[last].out_channels, covers >> place
    return found


class Hearing(NamedTuple):
    """What the levels of a U-Net hear of captions; its mid block hears all of them."""

    outline: Tensor
    """What the levels around the mid block hear of each caption, in the form of the text."""
    whole: Tensor
    """In which pictures they hear all of it: bool [B]."""


class Readout(nn.Module):
    """Read the picture out of what a level of a U-Net says, each pixel of it alone; begins with nothing."""

    def __init__(self, channels: int, latent_channels: int, covers: int) -> None:
        super().__init__()
        self.read = nn.Conv2d(channels, latent_channels * covers**2, 1)
        self.covers = covers
        for parameter in self.read.parameters():
            nn.init.zeros_(parameter)

    def forward(self, feature: Tensor) -> Tensor:
        """Return latents [B, C, h, w] of a feature [B, F, h / covers, w / covers]."""
        return functional.pixel_shuffle(self.read(feature), self.covers)


class Denoiser(nn.Module):
    """A U-Net, with its text encoder if that learns too, that also returns the features at `taps`.

    The features are outputs of this module and not entries of a shared dictionary: wrappers (data parallel,
    compiled, checkpointed) then treat them as they treat the prediction, names of layers never change under
    them, and every feature has a gradient.
    """

    def __init__(
        self,
        unet: nn.Module,
        taps: Sequence[str] = (),
        text_encoder: nn.Module | None = None,
        readouts: nn.ModuleList | None = None,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        self.readouts = readouts
        self.taps = tuple(taps)
        self._caught: dict[str, Tensor] | None = None
        self._kept: Tensor | None = None
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

    def drop_inner_skips(self) -> Denoiser:
        """Let calls say in which pictures the two innermost levels are handed no skips on the way up."""
        unet: Any = self.unet
        for block in unet.up_blocks[:2]:
            block.register_forward_pre_hook(self._drop, with_kwargs=True)
        return self

    def tell_blocks_apart(self) -> Denoiser:
        """Let calls say what the levels around the mid block hear of captions."""
        unet: Any = self.unet
        for block in (*unet.down_blocks, *unet.up_blocks):
            block.register_forward_pre_hook(self._muffle, with_kwargs=True)
        return self

    def forward(
        self,
        noisy: Tensor,
        steps: Tensor,
        text: Tensor,
        guidance: Tensor | None = None,
        kept: Tensor | None = None,
        hearing: Hearing | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the prediction [B, C, h, w] and a feature for each tap.

        `text` is token numbers [B, T] where this module has a text encoder, else text states [B, T, D];
        `guidance` is the embedding of the guidance scale [B, G] of a consistency model. With readouts, a
        feature is the picture that they read out of it. `kept` says, after `drop_inner_skips`, in which
        pictures there are such skips, [B]; `hearing` says, after `tell_blocks_apart`, what the blocks hear.
        """
        if self.text_encoder is not None:
            text = self.text_encoder(text).last_hidden_state
            if hearing is not None:
                hearing = hearing._replace(outline=self.text_encoder(hearing.outline).last_hidden_state)
        caught: dict[str, Tensor] = {}
        self._caught, self._kept, self._hearing = caught, kept, hearing
        prediction = self.unet(noisy, steps, text, timestep_cond=guidance, return_dict=False)[0]
        # Gradient checkpointing runs layers again in the backward pass: what they put out then is not kept.
        self._caught = self._kept = self._hearing = None
        features = (caught[tap] for tap in self.taps)
        if self.readouts is not None:
            return prediction, tuple(read(each) for read, each in zip(self.readouts, features, strict=True))
        return prediction, tuple(features)

    def _drop(
        self, _module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._kept is None:
            return None
        kept, skips = self._kept.view(-1, 1, 1, 1), named["res_hidden_states_tuple"]
        return inputs, {
            **named,
            "res_hidden_states_tuple": tuple(skip * kept.to(skip.dtype) for skip in skips),
        }

    def _muffle(
        self, _module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        text = named.get("encoder_hidden_states")  # blocks without attention have none
        if self._hearing is None or text is None:
            return None
        heard = torch.where(self._hearing.whole.view(-1, 1, 1), text, self._hearing.outline.to(text.dtype))
        return inputs, {**named, "encoder_hidden_states": heard}

    def _hook(self, tap: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if self._caught is not None:
                self._caught[tap] = output[0] if isinstance(output, tuple) else output

        return keep


@torch.no_grad()
def without_gradient(module: Denoiser, *inputs: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Call a frozen network."""
    prediction, features = module(*inputs)
    return prediction, features
