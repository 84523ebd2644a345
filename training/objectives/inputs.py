"""Turn a piece of a run into latents and text states: what every objective starts from."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from training.data.batch import Examples, Pairs, tokenize
from training.data.prefetch import Prefetcher
from training.data.shuffle import Order
from training.objectives.noise_schedule import NoiseSchedule
from training.run.randomness import Dice
from training.run.task import Piece
from training.students.networks import Parts


@dataclass(frozen=True)
class NoisyLatents:
    """Latents with noise at random steps."""

    latents: Tensor
    """float32 [B, C, h, w]"""
    steps: Tensor
    """int64 [B]"""
    noise: Tensor
    target: Tensor
    """What the network is to predict."""
    clean: Tensor


class Inputs:
    """The pairs of a run in their order, with the frozen networks that make latents and text of them."""

    def __init__(
        self,
        parts: Parts,
        pairs: Pairs,
        *,
        seed: int,
        flip: bool,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        look_ahead: int = 2,
    ) -> None:
        """Take the VAE and the text encoder of `parts`; they go to the device where they are needed."""
        schedule = NoiseSchedule.of(parts.scheduler.config)
        # On the device at once: copied there in every step it would make the host wait for the device.
        self.schedule = replace(schedule, signal=schedule.signal.to(device))
        self.pairs, self.device, self.dtype = pairs, device, dtype
        self._order, self._seed, self._flip = Order(pairs.group_sizes, seed), seed, flip
        self._vae, self._text_encoder, self._tokenizer = parts.vae, parts.text_encoder, parts.tokenizer
        self._scaling = float(parts.vae.config.scaling_factor)
        self._nothing: Tensor | None = None
        self._placed_networks: dict[str, Any] = {}
        self._reader: Prefetcher[tuple[int, int], Examples] = Prefetcher(self.read, depth=look_ahead)

    def read(self, place: tuple[int, int]) -> Examples:
        """Return the pairs of (first, count) of the run's sequence."""
        first, count = place
        flipped = [mirrored(self._seed, first + i) for i in range(count)] if self._flip else None
        examples = self.pairs.take(self._order.rows(first, count), flipped)
        return examples.pinned() if self.device.type == "cuda" else examples

    def examples(self, piece: Piece) -> Examples:
        """Return the pairs of a piece, on the device."""
        return self._reader.get((piece.first, piece.count)).to(self.device)

    @torch.no_grad()
    def latents(self, examples: Examples, dice: Dice) -> Tensor:
        """Draw latents from the VAE's posterior, scaled: float32 [B, C, h, w]."""
        if examples.mean is not None and examples.deviation is not None:
            mean, deviation = examples.mean.float(), examples.deviation.float()
        else:
            assert examples.pixels is not None
            vae = self._placed("vae", self._vae)
            posterior = vae.encode(examples.pixels.to(self.dtype)).latent_dist
            mean, deviation = posterior.mean.float(), posterior.std.float()
        return (mean + deviation * dice.normal(*mean.shape[1:])) * self._scaling

    @torch.no_grad()
    def text(self, examples: Examples) -> Tensor:
        """Return the text states [B, T, D]."""
        if examples.text is not None:
            return examples.text.to(self.dtype)
        encoder = self._placed("text_encoder", self._text_encoder)
        states: Tensor = encoder(examples.tokens).last_hidden_state
        return states

    def empty_tokens(self) -> Tensor:
        """Return the tokens of the empty prompt, int64 [1, T]."""
        tokens, _ = tokenize(self._tokenizer, [""])
        return tokens.to(self.device)

    @torch.no_grad()
    def empty_prompt(self) -> Tensor:
        """Return the text states of the empty prompt, computed once: [1, T, D]."""
        if self._nothing is None:
            encoder = self._placed("text_encoder", self._text_encoder)
            self._nothing = encoder(self.empty_tokens()).last_hidden_state
        return self._nothing

    def drop_captions(self, text: Tensor, nothing: Tensor, share: float, dice: Dice) -> Tensor:
        """Replace the captions of a share of the pictures by the empty prompt."""
        if not share:
            return text
        dropped = dice.uniform() < share
        return torch.where(dropped.view(-1, *[1] * (text.dim() - 1)), nothing.to(text.dtype), text)

    def noisy(self, clean: Tensor, dice: Dice, noisier_half: float | None = None) -> NoisyLatents:
        """Add noise at steps that are drawn evenly, or from the noisier half in a share of the pictures."""
        noise = dice.normal(*clean.shape[1:])
        if noisier_half is None:
            steps = dice.integers(len(self.schedule))
        else:
            half = len(self.schedule) // 2
            steps = dice.integers(half) + half * (dice.uniform() < noisier_half)
        latents = self.schedule.add_noise(clean, noise, steps)
        return NoisyLatents(latents, steps, noise, self.schedule.target(clean, noise, steps), clean)

    def close(self) -> None:
        """End the look-ahead."""
        self._reader.close()

    def _placed(self, name: str, network: Any) -> Any:
        """Return a frozen network, put on the device on first use: with all cached it never goes there."""
        if name not in self._placed_networks:
            # A cast would round what is exported later.
            mine = network if self.dtype == torch.float32 else copy.deepcopy(network)
            # diffusers' own `to` warns of every cast, whether or not there is anything to keep in float32.
            torch.nn.Module.to(mine, self.device, self.dtype).eval().requires_grad_(False)
            self._placed_networks[name] = mine
        return self._placed_networks[name]


def mirrored(seed: int, ordinal: int) -> bool:
    """Say whether an image of a run is mirrored: a fair coin, a function of seed and ordinal."""
    return bool(hashlib.blake2b(f"{seed} {ordinal}".encode(), digest_size=1).digest()[0] & 1)
