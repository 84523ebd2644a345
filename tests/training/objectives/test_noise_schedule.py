"""The noise schedule against diffusers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, PNDMScheduler

from training.errors import TrainingError
from training.objectives.noise_schedule import NoiseSchedule

SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STEPS = torch.tensor([0, 1, 19, 500, 999])


def latents() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 4, 3, 3, generator=generator), torch.randn(5, 4, 3, 3, generator=generator)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noise_and_targets_are_those_of_diffusers(prediction: str) -> None:
    theirs = DDPMScheduler(**SD, prediction_type=prediction)
    # A sampler's configuration, with entries that a training schedule knows nothing of.
    ours = NoiseSchedule.of(PNDMScheduler(**SD, prediction_type=prediction, skip_prk_steps=True).config)
    clean, noise = latents()
    noisy = theirs.add_noise(clean, noise, STEPS)
    torch.testing.assert_close(ours.add_noise(clean, noise, STEPS), noisy)
    wanted = noise if prediction == "epsilon" else theirs.get_velocity(clean, noise, STEPS)
    torch.testing.assert_close(ours.target(clean, noise, STEPS), wanted)
    assert len(ours) == 1000


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_right_prediction_means_the_clean_latents_and_the_noise(prediction: str) -> None:
    schedule = NoiseSchedule.of({**SD, "prediction_type": prediction})
    clean, noise = latents()
    noisy, output = schedule.add_noise(clean, noise, STEPS), schedule.target(clean, noise, STEPS)
    torch.testing.assert_close(schedule.clean(noisy, output, STEPS), clean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(schedule.noise(noisy, output, STEPS), noise, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights(prediction: str) -> None:
    schedule = NoiseSchedule.of({**SD, "prediction_type": prediction})
    betas = [(0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / 999) ** 2 for i in range(1000)]
    for step, weight in zip(STEPS.tolist(), schedule.min_snr(STEPS, 5.0).tolist(), strict=True):
        signal = 1.0
        for beta in betas[: step + 1]:
            signal *= 1 - beta
        snr = signal / (1 - signal)
        assert weight == pytest.approx(
            min(snr, 5.0) / (snr if prediction == "epsilon" else snr + 1), rel=1e-4
        )


def test_a_network_that_predicts_pictures_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"prediction_type.*found 'sample'.*epsilon, v_prediction"):
        NoiseSchedule.of({**SD, "prediction_type": "sample"})
