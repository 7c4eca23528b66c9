"""Consistency models: x0 of a state, trained to be the same from two neighbouring states of a path."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pyfold._elementary import exp
from pyfold.diffusion.densities import lognormal
from pyfold.diffusion.objectives.two_times import Model, check_samples, check_target_model, model_time, same_draws, together
from pyfold.diffusion.schedule import Schedule, check_number
from pyfold.diffusion.schedules import edm
from pyfold.diffusion.training import Noised, TrainingLoss
from pyfold.ops import add_noise, mse_loss
from pyfold.ops._tensors import per_sample

#: Song and Dhariwal 2024, section 3.3: c of the pseudo-Huber distance by the square root of a sample's size.
_HUBER = 0.00054
#: The paper's for CIFAR-10.
_DENSITY = partial(lognormal, mean=-1.1, std=2.0)


@dataclass(frozen=True)
class NoisedPair:
    """A batch at two times of one path, with the same noise: x0 of the one is trained to be x0 of the other.

    Attributes:
        at_t: the noisier state, whose model is trained. at_r: the target's; where its sigma is 0 the target is x0 itself.
    """

    at_t: Noised
    at_r: Noised


class ECMLoss:
    """Easy consistency tuning: x0 of the state at t against x0 of the state at r < t, with r towards t as training goes.

    ::

        pair = loss.noise(x0, seeds, stage=8 * step // steps)
        loss(model, pair).mean().backward()        # model(x, t), as TrainingLoss has it

    With f(x, t) the x0 that the model's prediction means, and f(x_r, r) without gradient and x0 where r = 0,

        ``loss = (sqrt(|f(x_t, t) - f(x_r, r)|^2 + c^2) - c) / (t - r)``,  ``r = max(0, 1 - n(t) / q^(stage + 1)) t``,
        ``n(t) = 1 + k / (1 + exp(b t))``,

    t and r being noise-to-signal ratios. Stage -1 is r = 0, a diffusion model's loss; each later stage brings r nearer. Models
    sample by :func:`pyfold.diffusion.consistency`.

    Source: Geng et al. 2024 (Consistency Models Made Easy), its mapping function, weighting 1 / (t - r) and adaptive weight;
    the pseudo-Huber distance is Song and Dhariwal's (2024, section 3.3).

    Args:
        schedule: of alpha and sigma; by default ``edm()``.
        prediction: what the model predicts, a name in ``pyfold.diffusion.PREDICTIONS`` that gives x0 = x at no noise.
        density: of the times, a name in ``DENSITIES`` or a function; by default log(sigma / alpha) is normal with mean -1.1
            and standard deviation 2, as the paper has it for CIFAR-10.
        q, k, b: of the mapping from t to r.
        huber: c above; by default ``0.00054 sqrt(size of a sample)``. 0 is the distance itself, whose gradient is not finite
            where it is 0.
        dropout: whether the model draws random numbers, dropout's masks say, which are then the same in both forwards: by
            torch's generator put back between them, or, where the loss itself is compiled, by one forward of both under vmap,
            whose backward pass costs twice. False skips that.

    Example:
        >>> loss = ECMLoss()
        >>> pair = loss.noise(torch.zeros(4, 2), torch.arange(4), stage=0)
        >>> loss(lambda x, t: 0 * x, pair).shape
        torch.Size([4])
    """

    def __init__(
        self,
        schedule: Schedule | None = None,
        prediction: str = "F",
        *,
        density: str | Callable[..., torch.Tensor] = _DENSITY,
        q: float = 2.0,
        k: float = 8.0,
        b: float = 1.0,
        huber: float | None = None,
        dropout: bool = True,
    ):
        self._base = TrainingLoss(edm() if schedule is None else schedule, prediction, density=density)
        self.schedule, self.prediction, self.dropout = self._base.schedule, prediction, dropout
        if not 1 < check_number("q", q) < math.inf:
            raise ValueError(f"q must be finite and above 1, got {q}")
        for name, value in (("k", k), ("b", b), ("huber", 0.0 if huber is None else huber)):
            if not 0 <= check_number(name, value) < math.inf:
                raise ValueError(f"{name} must be finite and from 0, got {value}")
        self.q, self.k, self.b, self.huber = q, k, b, huber

    def times(self, seeds: torch.Tensor, strata: tuple[int, int] | None = None) -> torch.Tensor:
        """The samples' later times, as :meth:`pyfold.diffusion.TrainingLoss.times`."""
        return self._base.times(seeds, strata)

    def earlier_ratio(self, ratio: torch.Tensor, stage: float) -> torch.Tensor:
        """r of the noise-to-signal ratio t, float64 [B]."""
        if not -1 <= check_number("stage", stage) < math.inf:
            raise ValueError(f"stage must be finite and from -1, got {stage}")
        n = 1 + self.k / (1 + exp(self.b * ratio))
        ratio_r: torch.Tensor = ratio * (1 - n / self.q ** (stage + 1)).clamp(min=0)
        return ratio_r

    def _at_ratio(self, ratio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(time, alpha, sigma) with exactly that ratio, below the schedule's least too."""
        t = self.schedule.time(ratio)
        alpha, sigma = self.schedule.coefficients(t)
        if self.schedule.scales_input:
            return t, torch.ones_like(ratio), ratio
        scale = torch.where(ratio > 0, torch.hypot(alpha, sigma) / torch.hypot(torch.ones_like(ratio), ratio), 1.0)
        return t, scale, ratio * scale

    def noise(
        self,
        x0: torch.Tensor,
        seeds: torch.Tensor,
        t: torch.Tensor | None = None,
        *,
        stage: float = 0,
        strata: tuple[int, int] | None = None,
    ) -> NoisedPair:
        """The batch at both times, in one pass that draws its noise once.

        Args:
            x0: clean samples [B, ...].
            seeds: int64 [B], a new one for each sample of each epoch.
            t: the schedule's later times [B], instead of ``times(seeds, strata)``.
            stage: how often r has come nearer to t, from -1; not necessarily whole.
        """
        t = self.times(seeds, strata) if t is None else t.to(torch.float64)
        alpha, sigma = self.schedule.coefficients(t)
        ratio = sigma / alpha
        t_r, alpha_r, sigma_r = self._at_ratio(self.earlier_ratio(ratio, stage))
        scale = self.schedule.input_scale(alpha, sigma)
        scale_r = self.schedule.input_scale(alpha_r, sigma_r)
        x_t, x_r = add_noise(x0, alpha * scale, sigma * scale, seeds, target=(alpha_r * scale_r, sigma_r * scale_r))
        # At no noise the model is not asked, and log(0) would be told it.
        asked = torch.where(sigma_r > 0, sigma_r, torch.ones_like(sigma_r))
        times = (self.schedule.model_time(*point) for point in ((t, alpha, sigma), (t_r, alpha_r, asked)))
        time_t, time_r = (model_time(time, x0) for time in times)
        return NoisedPair(
            Noised(x_t, time_t, x0, alpha, sigma, seeds, t), Noised(x_r, time_r, x0, alpha_r, sigma_r, seeds, t_r)
        )

    def _x0(self, output: torch.Tensor, noised: Noised) -> torch.Tensor:
        return self._base.x0(check_samples("model", output, noised.x0), noised)

    def __call__(self, model: Model, pair: NoisedPair, target_model: Model | None = None) -> torch.Tensor:
        """Per-sample loss [B], differentiable once in the model's parameters.

        Args:
            model: ``model(x, t)``, x [B, ...] and t [B] -> [B, ...].
            pair: from :meth:`noise`.
            target_model: evaluated for the target instead: the module inside a wrapper for several processes, or an average.
        """
        check_target_model(target_model, self.dropout)
        at_t, at_r = pair.at_t, pair.at_r
        if self.dropout and torch.compiler.is_compiling():
            output, target = together(model, (at_t.x_t, at_t.t), (at_r.x_t, at_r.t))
            target = target.detach()
        else:
            with torch.no_grad(), same_draws(at_t.x_t.device, self.dropout):
                target = (target_model or model)(at_r.x_t, at_r.t)
            output = model(at_t.x_t, at_t.t)
        target = torch.where(per_sample(at_r.sigma > 0, at_t.x0), self._x0(target, at_r), at_t.x0)
        size = math.prod(at_t.x0.shape[1:])
        square: Any = mse_loss(self._x0(output, at_t), target.detach()) * size
        c = _HUBER * math.sqrt(size) if self.huber is None else self.huber
        distance = at_t.sigma / at_t.alpha - at_r.sigma / at_r.alpha
        loss: torch.Tensor = ((square + c**2).sqrt() - c) / distance.to(square.dtype)
        return loss
