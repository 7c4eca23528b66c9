"""AnyFlow: maps between any two times of a flow, by mean velocities with differences for the derivative."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from pyfold.diffusion.objectives.mean_flow import MeanFlowLoss
from pyfold.diffusion.objectives.two_times import NoisedInterval
from pyfold.diffusion.schedule import Schedule, check_number

#: So that no loss of a map that is met already is divided by.
_LEAST = 1e-5


def any_flow_weighting(t: torch.Tensor) -> torch.Tensor:
    """``15/4 t sqrt(1 - t)``, whose mean over [0, 1] is 1: little weight for both ends, more for the noisier times.

    Args:
        t: sigma of a flow, [B] in [0, 1].

    Returns:
        [B] in t's dtype.

    Source: Gu et al. 2026 (AnyFlow); the "beta08" of their published training.

    Example:
        >>> any_flow_weighting(torch.tensor([0.0, 0.75, 1.0]))
        tensor([0.0000, 1.4062, 0.0000])
    """
    return 3.75 * t * (1 - t).sqrt()


class AnyFlowLoss(MeanFlowLoss):
    """AnyFlow's first stage: u(x_t, t, r), so that ``x_r = x_t - (t - r) u`` from any time to any earlier one.

    ::

        interval = loss.noise(x0, seeds)
        loss(model, interval).mean().backward()    # model(x, t, r)

    The identity is :class:`MeanFlowLoss`'s, its derivative a central difference along the path:

        ``L = mean |u(x_t, t, r) - (v - (t - r) d)|^2``,
        ``d = (u(x_t + h v, t + h, r) - u(x_t - h v, t - h, r)) / (2 h)``,
        ``loss = w(t) L`` where r = t,  ``loss = m L / (L + 1e-5)`` elsewhere,

    with neither d nor m nor the divisor differentiated, and m the mean of the batch's losses with r = t: a map weighs as
    much as the velocities do on average, however long it is. (So a sample's loss depends on its batch, and of several processes
    each has its own m; a batch without r = t has m = 1.) Models sample in any number of steps by
    :func:`pyfold.diffusion.flow_map` and :func:`with_next_time`. The second stage, which matches distributions on the model's
    own samples, and guidance that is trained in are not here.

    Source: Gu et al. 2026 (AnyFlow, arXiv:2605.13724), forward flow map training, and their published configuration.

    Args:
        schedule: a flow, whose shift is applied to both times (theirs is 5). By default ``flow()``.
        different: share of the samples with r < t; the others learn the velocity itself.
        to_data: share of the samples with r = 0, a part of ``different``; r is anywhere below t for the rest of it.
        weighting: w, a function of t [B]; None for 1.
        step: h of the difference.
        dropout: as :class:`MeanFlowLoss` has it.

    Raises:
        ValueError: a schedule that is no flow, or a number out of its range.

    Example:
        >>> loss = pyfold.diffusion.AnyFlowLoss(dropout=False)
        >>> interval = loss.noise(torch.zeros(4, 2), torch.arange(4))
        >>> loss(lambda x, t, r: 0.5 * x, interval).shape
        torch.Size([4])
    """

    def __init__(
        self,
        schedule: Schedule | None = None,
        *,
        different: float = 0.5,
        to_data: float = 0.25,
        weighting: Callable[[torch.Tensor], torch.Tensor] | None = any_flow_weighting,
        step: float = 5e-3,
        dropout: bool = True,
    ):
        super().__init__(
            schedule,
            density="uniform",
            different=different,
            tangent="difference",
            step=step,
            dropout=dropout,
        )
        if not 0 <= check_number("to_data", to_data) <= different:
            raise ValueError(f"to_data must be from 0 to different, {different}, got {to_data}")
        if weighting is not None and not callable(weighting):
            raise TypeError(f"weighting must be a function of t or None, got {type(weighting).__name__}")
        self.to_data, self.weighting = to_data, weighting

    def times(self, seeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(t, r), sigma at both ends of the samples' intervals, float64 [B], from their seeds; r <= t."""
        t, r = super().times(seeds)
        return t, torch.where(self.coin(seeds) < self.to_data, 0.0, r)

    def _weighted(self, square: torch.Tensor, n: NoisedInterval) -> torch.Tensor:
        loss = square / math.prod(n.x0.shape[1:])
        of_velocity = loss if self.weighting is None else loss * self.weighting(n.t).to(loss.dtype)
        equal = n.r == n.t
        mean = torch.where(equal, of_velocity.detach(), 0.0).sum() / equal.sum().clamp(min=1)
        mean = torch.where(equal.any(), mean, 1.0)
        return torch.where(equal, of_velocity, mean * loss / (loss.detach() + _LEAST))
