"""Losses against numpy, and the parts of consistency distillation against diffusers' samplers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionPipeline
from torch import Tensor

from training.objectives import losses as objectives
from training.objectives.noise_schedule import NoiseSchedule
from training.recipes.schema import Weights

SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mse(first: Tensor, second: Tensor) -> float:
    return float(np.mean((first.double().numpy() - second.double().numpy()) ** 2))


def test_prediction_losses_are_means_weighted_by_min_snr() -> None:
    schedule, steps = NoiseSchedule.of(SD), torch.tensor([0, 100, 999])
    guess, target = draw(3, 4, 2, 2), draw(3, 4, 2, 2, seed=1)
    signal = DDIMScheduler(**SD).alphas_cumprod.double()[steps].numpy()
    snr = signal / (1 - signal)
    errors = np.array([mse(guess[i], target[i]) for i in range(3)])
    for most, wanted in ((None, errors.mean()), (5.0, (np.minimum(snr, 5) / snr * errors).mean())):
        losses = objectives.prediction_losses(guess, target, steps, schedule, most)
        assert float(losses["loss"]) == pytest.approx(wanted, rel=1e-5)
    assert float(losses["error"]) == pytest.approx(errors.mean(), rel=1e-5)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 0.5, 0.5), (0.0, 2.0, 0.0), (1.0, 0.0, 0.0)])
def test_distillation_sums_errors_of_task_output_and_every_feature(weights: Any) -> None:
    guess, target, teacher = (draw(2, 4, 3, 3, seed=seed) for seed in range(3))
    mine = [draw(2, 8, 3, 3, seed=3), draw(2, 16, 2, 2, seed=4)]
    theirs = [draw(2, 8, 3, 3, seed=5), draw(2, 16, 2, 2, seed=6)]
    losses = objectives.distillation_losses(
        guess, target, mine, teacher, theirs, Weights(task=weights[0], output=weights[1], feature=weights[2])
    )
    parts = {
        "task": mse(guess, target),
        "output": mse(guess, teacher),
        "feature": mse(mine[0], theirs[0]) + mse(mine[1], theirs[1]),
    }
    for name, weight in zip(parts, weights, strict=True):
        if weight or name == "task":
            assert float(losses[name]) == pytest.approx(parts[name], rel=1e-6)
    assert float(losses["loss"]) == pytest.approx(np.dot(list(parts.values()), weights), rel=1e-6)


def test_half_features_do_not_overflow() -> None:
    large = torch.full((1, 1, 2, 2), 300.0, dtype=torch.float16)  # 300 squared is over 65504
    losses = objectives.distillation_losses(
        large, -large, [large], -large, [-large], Weights(task=1.0, output=1.0, feature=1.0)
    )
    assert float(losses["loss"]) == 3 * 600.0**2


def test_prior_preservation_adds_two_means() -> None:
    guess, target = draw(4, 4, 2, 2), draw(4, 4, 2, 2, seed=1)
    is_subject = torch.tensor([True, False, False, True])
    losses = objectives.prior_preservation_losses(guess, target, is_subject, 0.7)
    subject = mse(guess[[0, 3]], target[[0, 3]])
    prior = mse(guess[[1, 2]], target[[1, 2]])
    assert float(losses["subject"]) == pytest.approx(subject, rel=1e-6)
    assert float(losses["prior"]) == pytest.approx(prior, rel=1e-6)
    assert float(losses["loss"]) == pytest.approx(subject + 0.7 * prior, rel=1e-6)
    halves = [
        objectives.prior_preservation_losses(guess[half], target[half], is_subject[half], 0.7)["loss"]
        for half in (slice(0, 1), slice(1, 4))
    ]
    # Cut into 1 and 3, weighted by their sizes: the whole.
    assert float(halves[0] + 3 * halves[1]) / 4 == pytest.approx(float(losses["loss"]), rel=1e-6)


# --- consistency ----------------------------------------------------------


def test_boundary_is_that_of_the_lcm_scheduler() -> None:
    scheduler = LCMScheduler(**SD)
    scheduler.set_timesteps(4)
    steps = torch.tensor([0, 19, 339, 999])
    skip, out = objectives.boundary(steps, 10.0, 0.5)
    theirs = [scheduler.get_scalings_for_boundary_condition_discrete(step) for step in steps]
    torch.testing.assert_close(skip.flatten(), torch.stack([s for s, _ in theirs]).float())
    torch.testing.assert_close(out.flatten(), torch.stack([o for _, o in theirs]).float())
    assert (float(skip[0]), float(out[0])) == (1.0, 0.0)


@pytest.mark.parametrize("width", [256, 8])
def test_guidance_is_embedded_as_the_pipeline_does(width: int) -> None:
    guidance_scale = torch.tensor([1.0, 8.0, 7.3, 16.0])
    theirs = StableDiffusionPipeline.get_guidance_scale_embedding(
        SimpleNamespace(), guidance_scale - 1, embedding_dim=width
    )
    ours = objectives.guidance_embedding(guidance_scale - 1, width)
    assert ours.shape == (4, width)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_pseudo_huber() -> None:
    guess, target = draw(2, 4, 3, 3), draw(2, 4, 3, 3, seed=1)
    d = guess.double().numpy() - target.double().numpy()
    wanted = float(np.mean(np.sqrt(d**2 + 1e-6) - 1e-3))
    assert float(objectives.pseudo_huber(guess, target, 1e-3)) == pytest.approx(wanted, rel=1e-5)


def test_grid_has_fifty_steps_of_twenty() -> None:
    grid = objectives.ddim_grid(1000, 50)
    assert grid.tolist() == [20 * i + 19 for i in range(50)]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("index", [0, 1, 24, 49])
def test_guided_step_is_that_of_the_ddim_scheduler(index: int, prediction: str) -> None:
    """At the first step of the grid the scheduler arrives at step 0, not at clean latents."""
    scheduler = DDIMScheduler(
        **SD,
        prediction_type=prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(50)
    grid = objectives.ddim_grid(1000, 50)
    assert sorted(scheduler.timesteps.tolist()) == grid.tolist()
    noisy, output, unconditional = (draw(2, 4, 3, 3, seed=seed) for seed in range(3))
    guidance = torch.tensor([5.0, 11.5])
    steps = grid[index].repeat(2)
    ours = objectives.guided_ddim_step(
        noisy, steps, (steps - 20).clamp(min=0), output, unconditional, guidance, NoiseSchedule.of(
            {**SD, "prediction_type": prediction}
        )
    )  # fmt: skip
    # The pipeline's guidance scale is w + 1; guided predictions are linear in noise and in clean latents.
    guided = unconditional + (guidance + 1).view(-1, 1, 1, 1) * (output - unconditional)
    theirs = scheduler.step(guided, int(steps[0]), noisy, eta=0.0).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_consistency_function_is_what_the_sampler_makes_of_an_output() -> None:
    scheduler = LCMScheduler(**SD)
    scheduler.set_timesteps(1)
    step = scheduler.timesteps[0]
    output, noisy = draw(1, 4, 3, 3), draw(1, 4, 3, 3, seed=1)
    theirs = scheduler.step(output, step, noisy).denoised
    ours = objectives.consistency_function(
        output, noisy, step.view(1), NoiseSchedule.of(SD), timestep_scaling=10.0, sigma_data=0.5
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
