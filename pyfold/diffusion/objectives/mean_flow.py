"""Mean velocities: a model of two times, trained by the identity between the mean over an interval and its end's velocity."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

from pyfold.diffusion.densities import DENSITIES, logit_normal
from pyfold.diffusion.formulas import clipped, formula
from pyfold.diffusion.objectives.two_times import (
    COIN,
    SECOND_TIME,
    Interval,
    Model,
    NoisedInterval,
    check_samples,
    check_target_model,
    jvp,
    same_draws,
    together,
)
from pyfold.diffusion.plan import Plan
from pyfold.diffusion.schedule import Schedule, check_number
from pyfold.diffusion.training import _named_or_function, uniform_of_seeds
from pyfold.ops import mse_loss
from pyfold.ops._tensors import per_sample

#: The paper's.
_DENSITY = partial(logit_normal, mean=-0.4, std=1.0)


class MeanFlowLoss(Interval):
    """MeanFlow: u(x_t, t, r), the mean of the flow's velocity over [r, t], so that one step goes from noise to data.

    ::

        interval = loss.noise(x0, seeds)
        loss(model, interval).mean().backward()    # model(x, t, r)

    With v = eps - x0 the velocity of the sample's path, and the target without gradient,

        ``loss = w |u(x_t, t, r) - (v - (t - r) d)|^2``,  ``d = v . grad_x u + du/dt``,  ``w = 1 / (|..|^2 + c)^p``.

    The target's d is one call of ``torch.func.jvp`` without a graph, beside the plain forward that is trained: less memory than
    a jvp with a gradient (which holds both passes), and the only form that a wrapper for several processes takes. Models
    sample by :func:`pyfold.diffusion.flow_map` and :func:`with_next_time`.

    Source: Geng et al. 2025, eq. 6 (identity), 8 (its derivative), 9 to 11 (loss), 22 (weight).

    Args:
        schedule: a flow; its shift is the density's alone. By default ``flow()``.
        density: of both times, the greater of which is t: a name in ``DENSITIES`` or a function; by default logit-normal with
            mean -0.4 and standard deviation 1, the paper's.
        different: share of the samples with r < t; the others learn the velocity itself.
        power, constant: p and c of the adaptive weight; power 0 for none.
        tangent: "jvp", or "difference": ``(u(x + h v, t + h, r) - u(x - h v, t - h, r)) / (2 h)``, for models that forward-mode
            differentiation cannot pass, at two forwards more.
        step: h of the difference.
        dropout: whether the model draws random numbers, dropout's masks say, which are then the same in all forwards: by
            torch's generator put back between them, or, where the loss itself is compiled, by one evaluation for all (which
            holds the memory of all). False skips that.

    Example:
        >>> loss = MeanFlowLoss(dropout=False)
        >>> interval = loss.noise(torch.zeros(4, 2), torch.arange(4))
        >>> loss(lambda x, t, r: 0 * x, interval).shape
        torch.Size([4])
    """

    def __init__(
        self,
        schedule: Schedule | None = None,
        *,
        density: str | Callable[..., torch.Tensor] = _DENSITY,
        different: float = 0.25,
        power: float = 1.0,
        constant: float = 1e-3,
        tangent: str = "jvp",
        step: float = 5e-3,
        dropout: bool = True,
    ):
        super().__init__(schedule)
        if not 0 <= check_number("different", different) <= 1:
            raise ValueError(f"different must be in [0, 1], got {different}")
        if not 0 <= check_number("power", power) < math.inf:
            raise ValueError(f"power must be finite and from 0, got {power}")
        for name, value in (("constant", constant), ("step", step)):
            if not 0 < check_number(name, value) < math.inf:
                raise ValueError(f"{name} must be finite and above 0, got {value}")
        if tangent not in ("jvp", "difference"):
            raise ValueError(f"tangent must be 'jvp' or 'difference', got {tangent!r}")
        self.density = _named_or_function("density", density, DENSITIES)
        self.different, self.power, self.constant = different, power, constant
        self.tangent, self.h, self.dropout = tangent, step, dropout

    def times(self, seeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(t, r), sigma at both ends of the samples' intervals, float64 [B], from their seeds; r <= t."""
        density = DENSITIES[self.density] if isinstance(self.density, str) else self.density
        drawn = (density(self.schedule, uniform_of_seeds(seeds, step=n)) for n in (0, SECOND_TIME))
        first, second = (self.schedule.coefficients(t)[1] for t in drawn)
        t = torch.maximum(first, second)
        return t, torch.where(self.coin(seeds) < self.different, torch.minimum(first, second), t)

    def coin(self, seeds: torch.Tensor) -> torch.Tensor:
        """What decides whether a sample has r < t: uniform in [0, 1), float64 [B]."""
        return uniform_of_seeds(seeds, step=COIN)

    def _at(self, n: NoisedInterval, h: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The model's input h further on the path."""
        return n.x_t + h * n.velocity, n.t + h, n.r

    def _tangents(self, n: NoisedInterval) -> tuple[torch.Tensor, ...]:
        """Along the path, r held."""
        return n.velocity, torch.ones_like(n.t), torch.zeros_like(n.r)

    def _derivative(self, model: Model, n: NoisedInterval) -> torch.Tensor:
        if self.tangent == "jvp":
            return jvp(model, (n.x_t, n.t, n.r), self._tangents(n))[1]
        with same_draws(n.x_t.device, self.dropout):
            after = model(*self._at(n, self.h))
        return (after - model(*self._at(n, -self.h))) / (2 * self.h)

    def _in_one(self, model: Model, n: NoisedInterval) -> tuple[torch.Tensor, torch.Tensor]:
        """(u, its derivative) of one evaluation, so that they have their random numbers in common."""
        if self.tangent == "jvp":
            return jvp(model, (n.x_t, n.t, n.r), self._tangents(n))
        u, after, before = together(model, self._at(n, 0.0), self._at(n, self.h), self._at(n, -self.h))
        return u, (after - before) / (2 * self.h)

    def __call__(self, model: Model, interval: NoisedInterval, target_model: Model | None = None) -> torch.Tensor:
        """Per-sample loss [B], differentiable once in the model's parameters.

        Args:
            model: ``model(x, t, r)``, x [B, ...], t and r [B] -> [B, ...].
            interval: from :meth:`noise`.
            target_model: evaluated for the target instead: the module inside a wrapper for several processes.
        """
        check_target_model(target_model, self.dropout)
        n = interval
        if self.dropout and torch.compiler.is_compiling():
            u, along = self._in_one(model, n)
        else:
            of_target = target_model or model
            with torch.no_grad(), same_draws(n.x_t.device, self.dropout):
                # Where r = t the derivative has the factor 0.
                along = self.of_longer(lambda part: self._derivative(of_target, part), n)
            u = model(n.x_t, n.t, n.r)
        u, along = check_samples("model", u, n.x0), along.detach().to(n.x0.dtype)
        target = n.velocity - per_sample((n.t - n.r).to(n.x0.dtype), n.x0) * along
        return self._weighted(mse_loss(u, target) * math.prod(n.x0.shape[1:]), n)

    def _weighted(self, square: torch.Tensor, n: NoisedInterval) -> torch.Tensor:
        """The loss [B] of its squares, summed over each sample's elements."""
        if not self.power:
            return square
        return square * (square.detach() + self.constant) ** -self.power


def with_next_time(model: Model, plan: Plan) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """``model(x, t)`` for :func:`pyfold.diffusion.sample` of a model of two times: r is where the plan's step from t ends.

    Args:
        model: ``model(x, t, r)`` is the mean of the flow's velocity over [r, t].
        plan: :func:`pyfold.diffusion.flow_map`'s, or another of Euler's steps on a flow.

    Returns:
        ``model(x, t)`` for the plan's times; each sample of a batch may be at its own.

    Raises:
        ValueError: a plan of other steps.
    """
    ends = []
    for row, point in zip(plan.rows, plan.points, strict=True):
        after, _ = formula(row)
        if plan.prediction != "flow" or plan.history or clipped(row) or abs(after["x"] - 1) > 1e-9 or row.get("d1"):
            raise ValueError(f"plan must be of steps x + (r - t) u, such as those of flow_map, without clip, got {plan.name}")
        ends.append(max(point.sigma + after["m"], 0.0))
    made: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def with_both_times(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if t.device not in made:
            made[t.device] = tuple(torch.tensor([*v], dtype=torch.float32, device=t.device) for v in (plan.times, ends))  # type: ignore[assignment]
        times, after = made[t.device]
        return model(x, t, after[(times - t[:, None]).abs().argmin(1)].to(t.dtype))

    return with_both_times
