"""What a student descends: a function per method, returning named losses of which `loss` is descended.

All losses are computed in float32, whatever the networks compute in: squared errors of features overflow
float16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from training.objectives.noise_schedule import NoiseSchedule
from training.recipes.schema import Weights

Losses = dict[str, Tensor]


def squared_error(guess: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error in float32, a scalar."""
    return functional.mse_loss(guess.float(), target.float())


def prediction_losses(
    guess: Tensor, target: Tensor, steps: Tensor, schedule: NoiseSchedule, min_snr: float | None
) -> Losses:
    """Return the error of a prediction [B, C, h, w], weighted by min-SNR where `min_snr` is given."""
    errors = (guess.float() - target.float()).square().mean(dim=(1, 2, 3))
    if min_snr is None:
        return {"loss": errors.mean()}
    return {
        "loss": (schedule.min_snr(steps, min_snr) * errors).mean(),
        "error": errors.detach().mean(),
    }


def distillation_losses(
    guess: Tensor,
    target: Tensor,
    features: Sequence[Tensor],
    teacher_guess: Tensor | None,
    teacher_features: Sequence[Tensor],
    weights: Weights,
) -> Losses:
    """Return task, output and feature losses and their weighted sum (Kim et al. 2023, eqs. 1 to 3).

    A feature loss is the sum over layers of the mean squared error. The weights are 1, 1, 1 in BK-SDM, and
    1, 0.5, 0.5 in segmind's distill-sd. `teacher_guess` may be None where
    neither output nor features count.
    """
    losses: Losses = {"task": squared_error(guess, target)}
    loss = weights.task * losses["task"]
    if weights.output:
        assert teacher_guess is not None
        losses["output"] = squared_error(guess, teacher_guess)
        loss = loss + weights.output * losses["output"]
    if weights.feature:
        pairs = zip(features, teacher_features, strict=True)
        losses["feature"] = torch.stack([squared_error(mine, theirs) for mine, theirs in pairs]).sum()
        loss = loss + weights.feature * losses["feature"]
    return {"loss": loss, **losses}


def prior_preservation_losses(
    guess: Tensor, target: Tensor, is_subject: Tensor, prior_weight: float
) -> Losses:
    """Return the errors on pictures of the subject and of its class (Ruiz et al. 2023, eq. 2).

    `is_subject` is bool [B]. Each error is a mean over its own pictures; the class counts `prior_weight`. A
    step without pictures of one kind has a zero there.
    """
    errors = (guess.float() - target.float()).square().mean(dim=(1, 2, 3))
    count = len(errors)
    # Twice the share of the batch: equal halves then give the sum of two means, however the batch is cut.
    subject = torch.where(is_subject, errors, 0.0).sum() * 2 / count
    prior = torch.where(is_subject, 0.0, errors).sum() * 2 / count
    return {"loss": subject + prior_weight * prior, "subject": subject, "prior": prior}


# --- latent consistency distillation (Luo et al. 2023) --------------------


def ddim_grid(train_steps: int, grid_steps: int) -> Tensor:
    """Return the steps of the solver's grid, rising: int64 [grid_steps], from k - 1 to train_steps - 1."""
    skip = train_steps // grid_steps
    return torch.arange(1, grid_steps + 1) * skip - 1


def guidance_embedding(guidance: Tensor, width: int) -> Tensor:
    """Embed guidance scales [B] (less one) as sines and cosines of 1000 w: float32 [B, width].

    Source: the published LCM script and diffusers' pipeline, which has to embed the same way when it samples.
    """
    half = width // 2
    rates = torch.exp(torch.arange(half, device=guidance.device) * -(math.log(10000.0) / (half - 1)))
    angles = 1000.0 * guidance.float()[:, None] * rates[None]
    return functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


def boundary(steps: Tensor, timestep_scaling: float, sigma_data: float) -> tuple[Tensor, Tensor]:
    """Return c_skip and c_out, float32 [B, 1, 1, 1]: at step 0 a consistency function is the identity."""
    scaled = timestep_scaling * steps.float().view(-1, 1, 1, 1)
    below = scaled.square() + sigma_data**2
    return sigma_data**2 / below, scaled / below.sqrt()


def pseudo_huber(guess: Tensor, target: Tensor, constant: float) -> Tensor:
    """Return the mean of sqrt(d^2 + c^2) - c over all values, float32 scalar."""
    difference = guess.float() - target.float()
    return ((difference.square() + constant**2).sqrt() - constant).mean()


def consistency_function(
    output: Tensor,
    noisy: Tensor,
    steps: Tensor,
    schedule: NoiseSchedule,
    *,
    timestep_scaling: float,
    sigma_data: float,
) -> Tensor:
    """Return what a consistency model puts out: c_skip * noisy + c_out * predicted clean latents."""
    skip, out = boundary(steps, timestep_scaling, sigma_data)
    return skip * noisy.float() + out * schedule.clean(noisy.float(), output.float(), steps)


def guided_ddim_step(
    noisy: Tensor,
    steps: Tensor,
    earlier: Tensor,
    output: Tensor,
    unconditional: Tensor,
    guidance: Tensor,
    schedule: NoiseSchedule,
) -> Tensor:
    """Move noisy latents one DDIM step back along the teacher's guided flow.

    Predicted noise and clean latents are guided alike: c + w (c - u), `guidance` being w [B]. `earlier` are
    the steps to arrive at.
    """
    w = guidance.float().view(-1, 1, 1, 1)

    def guided(of_prompt: Tensor, of_nothing: Tensor) -> Tensor:
        return of_prompt + w * (of_prompt - of_nothing)

    noisy, output, unconditional = noisy.float(), output.float(), unconditional.float()
    noise = guided(schedule.noise(noisy, output, steps), schedule.noise(noisy, unconditional, steps))
    clean = guided(schedule.clean(noisy, output, steps), schedule.clean(noisy, unconditional, steps))
    return schedule.add_noise(clean, noise, earlier)
