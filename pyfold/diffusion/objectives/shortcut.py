"""Shortcut models: a step as long as two is trained to be those two."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pyfold.diffusion.densities import DENSITIES
from pyfold.diffusion.objectives.two_times import (
    COIN,
    SECOND_TIME,
    Interval,
    Model,
    NoisedInterval,
    check_samples,
    same_draws,
)
from pyfold.diffusion.schedule import Schedule, check_number
from pyfold.diffusion.training import _named_or_function, uniform_of_seeds
from pyfold.ops import mse_loss
from pyfold.ops._tensors import per_sample


class ShortcutLoss(Interval):
    """Shortcut models: u(x_t, t, r), the step from t to r over its length, so that one step is the two of half its length.

    ::

        interval = loss.noise(x0, seeds)
        loss(model, interval).mean().backward()    # model(x, t, r)

    With m in the middle of r and t, x_m = x_t - (t - m) u(x_t, t, m), and the target without gradient,

        ``loss = mean |u(x_t, t, r) - (u(x_t, t, m) + u(x_m, m, r)) / 2|^2``;  where r = t, ``mean |u(x_t, t, t) - v|^2``

    with v = eps - x0 the velocity of the sample's path. Steps have lengths 1, 1/2, 1/4, ... and start at multiples of them;
    those of the least length, ``2^-levels``, are taken with the velocity itself, u(., t, t). Models sample by
    :func:`pyfold.diffusion.flow_map` in 1, 2, 4, ... steps, and :func:`with_next_time`.

    Source: Frans et al. 2024 (One Step Diffusion via Shortcut Models), eq. 4, 5 and algorithm 1; their model is told t - r.

    Args:
        schedule: a flow; its shift is the density's alone. By default ``flow()``.
        density: of the times of the samples with r = t: a name in ``DENSITIES`` or a function.
        longer: share of the samples with r < t; the others learn the velocity itself.
        levels: how often a step is halved until the velocity takes it, 7 in the paper.
        dropout: whether the model draws random numbers, dropout's masks say, which are then the same in all forwards. One
            forward starts where another ends, so no compiled graph has them the same: there it must be False.

    Example:
        >>> loss = pyfold.diffusion.ShortcutLoss(dropout=False)
        >>> interval = loss.noise(torch.zeros(2, 3), torch.tensor([7, 8]))
        >>> loss(lambda x, t, r: 0.5 * x, interval).shape
        torch.Size([2])
    """

    def __init__(
        self,
        schedule: Schedule | None = None,
        *,
        density: str | Callable[..., torch.Tensor] = "uniform",
        longer: float = 0.25,
        levels: int = 7,
        dropout: bool = True,
    ):
        super().__init__(schedule)
        if not 0 <= check_number("longer", longer) <= 1:
            raise ValueError(f"longer must be in [0, 1], got {longer}")
        if isinstance(levels, bool) or not isinstance(levels, int) or not 1 <= levels <= 20:
            raise ValueError(f"levels must be an int from 1 to 20, got {levels!r}")
        self.density = _named_or_function("density", density, DENSITIES)
        self.longer, self.levels, self.dropout = longer, levels, dropout

    def times(self, seeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(t, r), sigma at both ends of the samples' steps, float64 [B], from their seeds; r <= t."""
        density = DENSITIES[self.density] if isinstance(self.density, str) else self.density
        place = uniform_of_seeds(seeds)
        level = (uniform_of_seeds(seeds, step=SECOND_TIME) * self.levels).floor().clamp(max=self.levels - 1)
        length = 0.5**level
        end = length * (place / length).floor().clamp(max=1 / length - 1)
        longer = uniform_of_seeds(seeds, step=COIN) < self.longer
        t = torch.where(longer, end + length, self.schedule.coefficients(density(self.schedule, place))[1])
        return t, torch.where(longer, end, t)

    def _two_steps(self, model: Model, n: NoisedInterval) -> torch.Tensor:
        """The mean of the two steps of half the length."""
        middle = (n.t + n.r) / 2
        least = n.t - n.r <= 2 * 0.5**self.levels
        with same_draws(n.x_t.device, self.dropout):
            first = model(n.x_t, n.t, torch.where(least, n.t, middle))
        x = n.x_t - per_sample((n.t - middle).to(n.x_t.dtype), n.x_t) * first
        return (first + model(x, middle, torch.where(least, middle, n.r))) / 2

    def __call__(self, model: Model, interval: NoisedInterval, target_model: Model | None = None) -> torch.Tensor:
        """Per-sample loss [B], differentiable any number of times in the model's parameters.

        Args:
            model: ``model(x, t, r)``, x [B, ...], t and r [B] -> [B, ...].
            interval: from :meth:`noise`; t and r of a step at multiples of its length.
            target_model: evaluated for the two steps instead: an average of the weights, as the paper has it.
        """
        if self.dropout and torch.compiler.is_compiling():
            raise ValueError("dropout must be False where the loss is compiled, got True")
        n = interval
        with torch.no_grad(), same_draws(n.x_t.device, self.dropout):
            two = self.of_longer(lambda part: self._two_steps(target_model or model, part), n)
        u = check_samples("model", model(n.x_t, n.t, n.r), n.x0)
        target = torch.where(per_sample(n.r < n.t, n.x0), two.to(n.x0.dtype), n.velocity)
        loss: torch.Tensor = mse_loss(u, target)
        return loss
