"""The denoising objective: times, noise and loss from the samples' seeds alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pyfold.diffusion.schedules import Schedule
from pyfold.ops import TARGETS, add_noise, denoising_loss, randn

#: The stream that training times are drawn from.
TIME_STREAM = 3

#: Weights of the squared error of the prediction (A, B), from alpha and sigma.
WEIGHTINGS: dict[str, Callable[[Any, Any], Any]] = {
    "simple": lambda alpha, sigma: torch.ones_like(alpha),
    # Hang et al. 2023, eq. 5 for epsilon with gamma = 5: min(snr, gamma) / snr.
    "min_snr": lambda alpha, sigma: (5 * (sigma / alpha) ** 2).clamp(max=1.0),
}


@dataclass(frozen=True)
class Noised:
    """A batch ready for the model, and what its loss is made of again."""

    x_t: torch.Tensor
    t: torch.Tensor
    x0: torch.Tensor
    alpha: torch.Tensor
    sigma: torch.Tensor
    seeds: torch.Tensor


class TrainingLoss:
    """Each sample's denoising loss, the noise made again from its seed in forward and backward instead of stored.

    ::

        noised = loss.noise(x0, seeds)
        loss(model(noised.x_t, noised.t), noised).mean().backward()

    Args:
        schedule: of alpha and sigma.
        prediction: "epsilon", "x0", "v" or "flow".
        weighting: "simple" (Ho et al. 2020, eq. 14), or "min_snr" (Hang et al. 2023) for epsilon.
    """

    def __init__(self, schedule: Schedule, prediction: str = "epsilon", weighting: str = "simple"):
        if prediction not in TARGETS:
            raise ValueError(f"prediction must be one of {', '.join(map(repr, TARGETS))}, got {prediction!r}")
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting must be one of {', '.join(map(repr, WEIGHTINGS))}, got {weighting!r}")
        if weighting == "min_snr" and prediction != "epsilon":
            raise ValueError(f"weighting 'min_snr' is for the prediction 'epsilon', got {prediction!r}")
        self.schedule, self.prediction, self.weighting = schedule, prediction, weighting

    def times(self, seeds: torch.Tensor) -> torch.Tensor:
        """Uniform model times of samples, from their seeds: integers below ``schedule.steps``, or reals in (0, 1)."""
        uniform = torch.special.ndtr(randn(seeds, (), stream=TIME_STREAM, dtype=torch.float64))
        if self.schedule.is_flow:
            return uniform
        return (uniform * self.schedule.steps).floor().clamp(max=self.schedule.steps - 1)

    def noise(self, x0: torch.Tensor, seeds: torch.Tensor, *, dtype: torch.dtype | None = None) -> Noised:
        """The noised batch.

        Args:
            x0: clean samples [B, ...].
            seeds: int64 [B], a new one for each sample of each epoch.
            dtype: of the model's input, by default that of ``x0``.
        """
        t = self.times(seeds)
        alpha, sigma = self.schedule.coefficients(t)
        x_t = add_noise(x0, alpha, sigma, seeds, dtype=dtype)
        # A flow's model is told the noise level, which is the time after its shift.
        return Noised(x_t, (sigma if self.schedule.is_flow else t).to(torch.float32), x0, alpha, sigma, seeds)

    def __call__(self, prediction: torch.Tensor, noised: Noised) -> torch.Tensor:
        """Per-sample loss [B] of the model's prediction for a noised batch."""
        n = noised
        weight = WEIGHTINGS[self.weighting](n.alpha, n.sigma)
        return denoising_loss(prediction, n.x0, n.alpha, n.sigma, n.seeds, target=self.prediction, weight=weight)
