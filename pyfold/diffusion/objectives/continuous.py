"""Consistency models in continuous time: x0 of a state, trained to stay the same along the path, by its derivative."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

from pyfold.diffusion.densities import lognormal
from pyfold.diffusion.objectives.two_times import Model, along_path, check_samples, check_target_model, model_time
from pyfold.diffusion.schedule import check_number
from pyfold.diffusion.schedules import trigflow
from pyfold.diffusion.training import Noised, TrainingLoss
from pyfold.ops import add_noise, mse_loss
from pyfold.ops._tensors import accumulation, per_sample

#: The paper's: of log(sigma / alpha).
_DENSITY = partial(lognormal, mean=-1.0, std=1.4)


class SCMLoss:
    """sCM: x0 of the state at t does not change along the sample's own path; the limit of :class:`ECMLoss` for r -> t.

    ::

        noised = loss.noise(x0, seeds)
        loss(model, noised, warmup=min(1, step / 10_000)).mean().backward()    # model(x, t) says "trigflow"

    On ``trigflow(data_std)``, with F the model's output, s the data's standard deviation, v = dx/dt = cos(t) s eps - sin(t) x0,
    D the size of a sample and sg() without gradient,

        ``loss = |F(x_t, t) - sg(F + g)|^2 / D``,  ``g = h / (|h| + c)``,
        ``h = -cos(t)^2 (s F - v) - warmup cos(t) sin(t) (x_t + s dF/dt)``,

    where warmup = 1 makes h cos(t) times the derivative of ``x0 = cos(t) x_t - sin(t) s F`` along the path, and 0 is a
    diffusion model's loss. dF/dt = v . grad_x F + dF/dt at x is one call of ``torch.func.jvp`` without a graph. Where a weight
    is learned, ``log_weight.exp() * loss - log_weight`` is the paper's. Models sample by
    :func:`pyfold.diffusion.consistency` with ``prediction="trigflow"``.

    Source: Lu and Song 2024 (Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models), algorithm 1, for
    training without a teacher.

    Args:
        data_std: standard deviation of the data.
        density: of the times, a name in ``DENSITIES`` or a function; by default log(sigma / alpha) is normal with mean -1 and
            standard deviation 1.4, the paper's.
        constant: c above; ``math.inf`` is refused, and 0 divides by the norm itself.
        dropout: whether the model draws random numbers, dropout's masks say, which are then the same in both forwards.

    Example:
        >>> loss = pyfold.diffusion.SCMLoss(dropout=False)
        >>> noised = loss.noise(torch.zeros(2, 3), torch.tensor([7, 8]))
        >>> loss(lambda x, t: 0.5 * x, noised).shape
        torch.Size([2])
    """

    def __init__(
        self,
        data_std: float = 0.5,
        *,
        density: str | Callable[..., torch.Tensor] = _DENSITY,
        constant: float = 0.1,
        dropout: bool = True,
    ):
        self._base = TrainingLoss(trigflow(data_std), "trigflow", density=density)
        self.schedule, self.dropout = self._base.schedule, dropout
        if not 0 <= check_number("constant", constant) < math.inf:
            raise ValueError(f"constant must be finite and from 0, got {constant}")
        self.constant = constant

    def times(self, seeds: torch.Tensor, strata: tuple[int, int] | None = None) -> torch.Tensor:
        """The samples' times, as :meth:`pyfold.diffusion.TrainingLoss.times`."""
        return self._base.times(seeds, strata)

    def noise(
        self,
        x0: torch.Tensor,
        seeds: torch.Tensor,
        t: torch.Tensor | None = None,
        *,
        strata: tuple[int, int] | None = None,
    ) -> Noised:
        """The noised batch, and as its target v / data_std, what F would be for one sample alone; in one pass.

        Args:
            x0: clean samples [B, ...].
            seeds: int64 [B], a new one for each sample of each epoch.
            t: the times [B] in (0, pi / 2], instead of ``times(seeds, strata)``.
        """
        t = self.times(seeds, strata) if t is None else t.to(torch.float64)
        alpha, sigma = self.schedule.coefficients(t)
        x_t, target = add_noise(x0, alpha, sigma, seeds, target=(-sigma / self.schedule.data_std**2, alpha))
        return Noised(x_t, model_time(t, x0), x0, alpha, sigma, seeds, t, target=target)

    def __call__(self, model: Model, noised: Noised, target_model: Model | None = None, *, warmup: float = 1.0) -> torch.Tensor:
        """Per-sample loss [B], differentiable once in the model's parameters.

        Args:
            model: ``model(x, t)``, x [B, ...] and t [B] -> [B, ...].
            noised: from :meth:`noise`.
            target_model: evaluated for the derivative instead: the module inside a wrapper for several processes.
            warmup: how much of the derivative counts, in [0, 1]; the paper raises it over the first 10,000 steps.
        """
        check_target_model(target_model, self.dropout)
        if not 0 <= check_number("warmup", warmup) <= 1:
            raise ValueError(f"warmup must be in [0, 1], got {warmup}")
        n, std = noised, self.schedule.data_std
        assert n.target is not None
        tangents = n.target * std, torch.ones_like(n.t)
        output, change = along_path(model, target_model, (n.x_t, n.t), tangents, self.dropout)
        # In float32 at least: of a half type the length overflows, and a target that is a small step away is the output.
        wide = accumulation(n.x0.dtype)
        output, change = check_samples("model", output, n.x0).to(wide), change.detach().to(wide)
        cos, sin = (per_sample(c, n.x0).to(wide) for c in (n.alpha, n.sigma / std))
        detached = output.detach()
        h = -(cos**2) * std * (detached - n.target) - warmup * cos * sin * (n.x_t + std * change)
        size = h.flatten(1).norm(dim=1)
        loss: torch.Tensor = mse_loss(output, detached + h / per_sample(size + self.constant, h))
        return loss
