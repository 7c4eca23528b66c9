"""Score-based SDEs with predictor and corrector (Song et al. 2021).

Rules of their own: the model says the score, each sample of a batch is at its own time, and the corrector stays at one level
and is as long as the batch's norms say; a sampler's rule goes between two points and reads no tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from pyfold._elementary import exp, one_minus_exp, sqrt
from pyfold._torch_private import transforms_active
from pyfold.adapters.diffusers._fused import Fused
from pyfold.adapters.diffusers._rows import Counted, Step, T, as_dtype, noise_tensor, pass_once
from pyfold.diffusion.draws import Addresses
from pyfold.diffusion.formulas import Form, M, N, X
from pyfold.diffusion.schedule import Point
from pyfold.ops._tensors import accumulation


def _of_ratio(sigma: Any) -> Point:
    return Point(0.0, sigma * 0.0 + 1.0, sigma)


def _mean_norm(t: T) -> T:
    norms: T = torch.linalg.vector_norm(as_dtype(t, accumulation(t.dtype)).flatten(1), dim=-1)
    return norms.mean()


@dataclass
class _Way:
    """Where the predictor led: the address of its draw, and how often a corrector has drawn at that level since."""

    at: Any
    corrected: int = 0
    visits: Addresses = field(default_factory=Addresses)


class ScoreSdeVeScheduler(Fused):
    """The reverse diffusion predictor and the annealed Langevin corrector (algorithms 2 and 4).

    A corrector is not given its level: it draws at the one that the predictor led to, draws 1, 2, ...; before the first
    predictor, at the first of the table.
    """

    def add_noise(self, original_samples: T, noise: T | None, timesteps: T, *, seeds: Any = None) -> T:
        sigma = self._on("discrete_sigmas", original_samples.device)[timesteps.to(original_samples.device).reshape(-1)]
        if noise is None and seeds is None and self._memory.seeds is None:
            noise = torch.randn_like(original_samples)
        return self._combine(original_samples, 1.0, noise, sigma, seeds)

    def step_pred(
        self, model_output: T, timestep: Any, sample: T, generator: Any = None, return_dict: bool = True, *, seeds: Any = None
    ) -> Any:
        if self.timesteps is None:
            raise ValueError("set_timesteps must be called before step_pred, timesteps is None")
        noise = self._draw(sample, generator, seeds)
        at = timestep, len(self.timesteps), sample.shape[0], sample.device
        draw = self._arrive(*at) if isinstance(noise, Counted) else None

        def rule(_: int) -> Step:
            here, there = self._ends(*at)
            variance = here**2 - there**2
            mean = X + M * variance
            return Step(mean + N * variance**0.5, keep=mean, draw=draw)

        return self._finish(return_dict, *self._fuse(0, rule, sample, model_output, noise=noise, upcast=True)[:2])

    def _ends(self, timestep: Any, steps: int, samples: int, device: torch.device) -> tuple[T, T]:
        # In their precision, which says the place in the table.
        place = (timestep * torch.ones(samples, device=device) * (steps - 1)).long()
        table = self._on("discrete_sigmas", device)
        return table[place], torch.where(place == 0, 0.0, table[place - 1])

    def _walk(self) -> _Way:
        return self._way(lambda: _Way(self._draw_at(_of_ratio(self._host("discrete_sigmas")[-1]))))

    def _arrive(self, timestep: Any, steps: int, samples: int, device: torch.device) -> Any:
        """The address of the predictor's draw; a level of timesteps that are one for each sample is not counted as visited."""
        way, sigmas = self._walk(), self._host("discrete_sigmas")
        if isinstance(timestep, torch.Tensor) and timestep.numel() > 1:
            way.at = self._draw_at(_of_ratio(self._ends(timestep, steps, samples, device)[1]))
        else:
            place = int(np.float32(self._number(timestep)) * np.float32(steps - 1))
            points = _of_ratio(sigmas[place]), _of_ratio(sigmas[place - 1] if place else 0.0)
            way.at = way.visits.step(*points, [None])[0]
        way.corrected = 0
        return way.at

    def step_correct(
        self, model_output: T, sample: T, generator: Any = None, return_dict: bool = True, *, seeds: Any = None
    ) -> Any:
        """A Langevin step; its length is by the batch's mean norms, so it is not the same for every batch split."""
        if self.timesteps is None:
            raise ValueError("set_timesteps must be called before step_correct, timesteps is None")
        dtype, cpu = torch.get_default_dtype(), torch.device("cpu")
        noise = self._draw(sample, generator, seeds, dtype=dtype, device=cpu)
        if isinstance(noise, Counted):
            way = self._walk()
            way.corrected += 1
            noise = noise_tensor(noise, sample, way.at + (way.corrected << 32))
        norms: Any = _mean_norm(model_output), _mean_norm(noise)
        numbers = sample.is_cpu and not transforms_active()
        of_score, of_noise = [np.float64(norm.item()) if numbers else norm.double() for norm in norms]
        with np.errstate(all="ignore"):
            ratio = self.config.snr * of_noise / of_score
            size = ratio * ratio * 2
            std = np.sqrt(size * 2) if numbers else (size * 2) ** 0.5
        prev = pass_once(Form(x=1.0, m=size, base=std), sample, model_output, noise)
        return SchedulerOutput(prev_sample=prev) if return_dict else (prev,)


class ScoreSdeVpScheduler(Fused):
    """Euler-Maruyama of the reverse SDE."""

    def step_pred(self, score: T, x: T, t: T, generator: Any = None, *, seeds: Any = None) -> tuple[T, T | None]:
        """(next state, its mean)."""
        if self.timesteps is None:
            raise ValueError("set_timesteps must be called before step_pred, timesteps is None")
        noise = self._draw(x, generator, seeds)
        t, dt = t.to(x.device).double().reshape(-1), -1.0 / len(self.timesteps)
        low, high = self.config.beta_min, self.config.beta_max

        def rule(_: int) -> Step:
            std = sqrt(one_minus_exp(0.5 * t**2 * (high - low) + t * low))
            beta = low + t * (high - low)
            mean = X * (1 - 0.5 * beta * dt) + M * (beta / std * dt)
            end = (t + dt).clamp(min=0)
            log_alpha = -0.25 * end**2 * (high - low) - 0.5 * end * low
            draw = self._draw_at(Point(0.0, exp(log_alpha), sqrt(one_minus_exp(-2 * log_alpha))))  # type: ignore[arg-type]
            return Step(mean + N * (beta**0.5 * math.sqrt(-dt)), keep=mean, draw=draw)

        return self._fuse(0, rule, x, score, noise=noise, upcast=True)[:2]
