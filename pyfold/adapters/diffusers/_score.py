"""Score-based SDEs with predictor and corrector (Song et al. 2021)."""

from __future__ import annotations

import math

import torch

from pyfold.adapters.diffusers._fused import Fused, Step, base, noise_tensor
from pyfold.diffusion.formulas import M, N, X


class ScoreSdeVeScheduler(Fused, base("ScoreSdeVeScheduler")):
    """The reverse diffusion predictor and the annealed Langevin corrector (algorithms 2 and 4)."""

    def add_noise(self, original_samples, noise, timesteps, *, seeds=None):
        sigma = self._on("discrete_sigmas", original_samples.device)[timesteps.to(original_samples.device).reshape(-1)]
        if noise is None and seeds is None and self._memory()["seeds"] is None:
            noise = torch.randn_like(original_samples)
        return self._combine(original_samples, 1.0, noise, sigma, seeds)

    def step_pred(self, model_output, timestep, sample, generator=None, return_dict=True, *, seeds=None):
        if self.timesteps is None:
            raise ValueError("set_timesteps must be called before step_pred, timesteps is None")
        noise, tick = self._draw(sample, generator, seeds), self._tick()
        # In their precision, which says the place in the table.
        timestep = timestep * torch.ones(sample.shape[0], device=sample.device)
        place = (timestep * (len(self.timesteps) - 1)).long()
        table = self._on("discrete_sigmas", sample.device)
        variance = table[place] ** 2 - torch.where(place == 0, 0.0, table[place - 1]) ** 2

        def rule(_):
            mean = X + M * variance
            return Step(mean + N * variance**0.5, keep=mean)

        return self._finish(return_dict, *self._fuse(None, rule, sample, model_output, noise=noise, tick=tick, upcast=True)[:2])

    def step_correct(self, model_output, sample, generator=None, return_dict=True, *, seeds=None):
        """A Langevin step; its length is by the batch's mean norms, so it is not the same for every batch split."""
        if self.timesteps is None:
            raise ValueError("set_timesteps must be called before step_correct, timesteps is None")
        dtype, cpu = torch.get_default_dtype(), torch.device("cpu")
        noise = self._draw(sample, generator, seeds, dtype=dtype, device=cpu)
        noise = noise_tensor(noise, sample, self._tick())
        of_score, of_noise = (t.flatten(1).norm(dim=-1).mean().double() for t in (model_output, noise))
        size = (self.config.snr * of_noise / of_score) ** 2 * 2
        rule = lambda _: Step(X + M * size + N * (size * 2) ** 0.5)  # noqa: E731
        prev = self._fuse(None, rule, sample, model_output, noise=noise, upcast=True)[0]
        if not return_dict:
            return (prev,)
        from diffusers.schedulers.scheduling_utils import SchedulerOutput

        return SchedulerOutput(prev_sample=prev)


class ScoreSdeVpScheduler(Fused, base("ScoreSdeVpScheduler", "deprecated.scheduling_sde_vp")):
    """Euler-Maruyama of the reverse SDE."""

    def step_pred(self, score, x, t, generator=None, *, seeds=None):
        """(next state, its mean)."""
        if self.timesteps is None:
            raise ValueError("set_timesteps must be called before step_pred, timesteps is None")
        noise, tick = self._draw(x, generator, seeds), self._tick()
        t, dt = t.to(x.device).double().reshape(-1), -1.0 / len(self.timesteps)
        low, high = self.config.beta_min, self.config.beta_max

        def rule(_):
            std = (-torch.expm1(-0.5 * t**2 * (high - low) - t * low)) ** 0.5
            beta = low + t * (high - low)
            mean = X * (1 - 0.5 * beta * dt) + M * (beta / std * dt)
            return Step(mean + N * (beta**0.5 * math.sqrt(-dt)), keep=mean)

        return self._fuse(None, rule, x, score, noise=noise, tick=tick, upcast=True)[:2]
