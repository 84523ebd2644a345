"""Count the floating-point operations of a training step, on networks without storage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training.scenario import Scenario
from benchmarks.training.ways import PLAIN, Way
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
        way = way or PLAIN
        extra = 0 if way.cached_latents else self.encode
        extra += 0 if way.cached_text else self.text
        return self.needed + extra + (0 if way.stored_activations else self.forward)


def count(scenario: Scenario) -> Flops:
    """Count them for the networks of a scenario."""
    parts, recipe, cached = scenario.parts, scenario.recipe, scenario.cached
    teacher = unet_skeleton(known_keys(parts.unet.config))
    student = unet_skeleton(student_config(parts.unet.config, recipe.student.remove)).requires_grad_(True)
    text_encoder = text_encoder_skeleton(parts.text_encoder.config.to_dict())
    # Without the notes of its library.
    vae = vae_skeleton({k: value for k, value in parts.vae.config.items() if not k.startswith("_")})
    with torch.device("meta"):
        steps = torch.zeros(1, dtype=torch.long)
        tokens = torch.zeros(1, cached.tokens.shape[1], dtype=torch.long)
        states = torch.empty(*tokens.shape, parts.unet.config.cross_attention_dim)
        latents = torch.empty(1, *cached.latents.shape[3:])
        pixels = torch.empty(1, *scenario.pixels.shape[1:])
    forward = counted(lambda: student(latents, steps, states))
    return Flops(
        teacher=counted(lambda: teacher(latents, steps, states)),
        forward=forward,
        backward=counted(lambda: student(latents, steps, states).sample.sum().backward()) - forward,
        encode=counted(lambda: vae.encode(pixels)),
        text=counted(lambda: text_encoder(tokens)),
    )


def counted(call: Callable[[], object]) -> int:
    """Return the floating-point operations of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())
