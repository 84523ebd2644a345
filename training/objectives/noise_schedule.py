"""The forward process: how much signal and noise each step has, and what a network is to predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from training.errors import TrainingError

PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class NoiseSchedule:
    """The variance that is signal after each step, and what the network predicts."""

    signal: Tensor
    """float64 [steps]: alpha-bar of Ho et al. 2020."""
    prediction: str
    """`epsilon`, or `v_prediction` (Salimans and Ho 2022)."""

    @classmethod
    def of(cls, scheduler: Mapping[str, Any]) -> NoiseSchedule:
        """Read the configuration of a diffusers scheduler; raise TrainingError for an unknown prediction."""
        from diffusers import DDPMScheduler

        prediction = scheduler.get("prediction_type", "epsilon")
        if prediction not in PREDICTIONS:
            raise TrainingError(
                "the network has to predict noise or velocity",
                file="the teacher's scheduler",
                key="prediction_type",
                found=prediction,
                remedy=f"Known: {', '.join(PREDICTIONS)}",
            )
        known = {key: value for key, value in scheduler.items() if not key.startswith("_")}
        return cls(DDPMScheduler.from_config(known).alphas_cumprod.double(), prediction)

    def __len__(self) -> int:
        return len(self.signal)

    def parts(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the amplitudes of signal and noise at these steps: float32 [B, 1, 1, 1] each."""
        signal = self.signal.to(steps.device)[steps].view(-1, 1, 1, 1)
        return signal.sqrt().float(), (1 - signal).sqrt().float()

    def add_noise(self, clean: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Return the noisy latents at these steps (eq. 4 of Ho et al. 2020).

        With predicted latents and noise it is a DDIM step to them (eq. 12 of Song et al. 2021, eta = 0).
        """
        alpha, sigma = self.parts(steps)
        return alpha * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Return what the network is to predict: the noise, or alpha * noise - sigma * clean."""
        if self.prediction == "epsilon":
            return noise
        alpha, sigma = self.parts(steps)
        return alpha * noise - sigma * clean

    def clean(self, noisy: Tensor, output: Tensor, steps: Tensor) -> Tensor:
        """Return the clean latents that a prediction means."""
        alpha, sigma = self.parts(steps)
        if self.prediction == "epsilon":
            return (noisy - sigma * output) / alpha
        return alpha * noisy - sigma * output

    def noise(self, noisy: Tensor, output: Tensor, steps: Tensor) -> Tensor:
        """Return the noise that a prediction means."""
        if self.prediction == "epsilon":
            return output
        alpha, sigma = self.parts(steps)
        return alpha * output + sigma * noisy

    def min_snr(self, steps: Tensor, limit: float) -> Tensor:
        """Return the min-SNR weight of each step, float32 [B] (Hang et al. 2023, eq. 5)."""
        signal = self.signal.to(steps.device)[steps]
        ratio = signal / (1 - signal)
        below = ratio if self.prediction == "epsilon" else ratio + 1
        weight: Tensor = (ratio.clamp(max=limit) / below).float()
        return weight
