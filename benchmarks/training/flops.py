"""Count the floating-point operations of a training step, on networks without storage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training.scenario import Scenario
from benchmarks.training.ways import Way
from pytest_sdbench.models.skeleton import known_keys, text_encoder_skeleton, unet_skeleton, vae_skeleton
from training.students.block_removal import student_config


@dataclass(frozen=True)
class Flops:
    """Floating-point operations per image: two for each multiplication and addition of a matrix product."""

    teacher: int
    forward: int
    """Of the student."""
    backward: int
    encode: int
    """The VAE's encoder."""
    text: int

    @property
    def needed(self) -> int:
        """What a step cannot do without: the teacher, the student and its gradient."""
        return self.teacher + self.forward + self.backward

    def done(self, way: Way | None) -> int:
        """What a way of running the step computes (None: the published script)."""
        way = way or Way.of(())
        extra = 0 if way.cached_latents else self.encode
        extra += 0 if way.cached_text else self.text
        return self.needed + extra + (0 if way.stored_activations else self.forward)


def count(scenario: Scenario) -> Flops:
    """Count them for the networks of a scenario."""
    parts, recipe = scenario.parts, scenario.recipe
    teacher = unet_skeleton(known_keys(parts.unet.config))
    student = unet_skeleton(student_config(parts.unet.config, recipe.student.remove)).requires_grad_(True)
    text_encoder = text_encoder_skeleton(parts.text_encoder.config.to_dict())
    vae = vae_skeleton(known_vae(parts.vae.config))
    channels, height, width = scenario.cached.latents.shape[3:]
    length = scenario.cached.tokens.shape[1]
    with torch.device("meta"):
        latents = torch.empty(1, channels, height, width)
        states = torch.empty(1, length, parts.unet.config.cross_attention_dim)
        steps = torch.zeros(1, dtype=torch.long)
        tokens = torch.zeros(1, length, dtype=torch.long)
        pixels = torch.empty(1, *scenario.pixels.shape[1:])
    forward = _counted(lambda: student(latents, steps, states))
    return Flops(
        teacher=_counted(lambda: teacher(latents, steps, states)),
        forward=forward,
        backward=_counted(lambda: student(latents, steps, states).sample.sum().backward()) - forward,
        encode=_counted(lambda: vae.encode(pixels)),
        text=_counted(lambda: text_encoder(tokens)),
    )


def known_vae(config: Any) -> dict[str, Any]:
    """Return a VAE's configuration without the notes of its library."""
    return {key: value for key, value in dict(config).items() if not key.startswith("_")}


def _counted(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())
