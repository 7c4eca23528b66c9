"""DPM-Solver with steps as long as the error allows: the one sampler whose steps are not known beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from pyfold.diffusion.draws import address, stream_and_step
from pyfold.diffusion.formulas import BASE, H, Step, U
from pyfold.diffusion.loop import Model, initial_noise, stage
from pyfold.diffusion.plan import Rows
from pyfold.diffusion.samplers._declare import OPTIONS, check_option
from pyfold.diffusion.samplers.exponential import ancestral_aim, between, growth, single_stages
from pyfold.diffusion.schedule import Point, Schedule
from pyfold.diffusion.spacings import ratio_span
from pyfold.ops import add_noise, affine_step, affine_table, mse_loss
from pyfold.ops._tensors import accumulation


class Attempt(NamedTuple):
    """What a callback of :func:`dpm_adaptive` sees after each step that was tried.

    Attributes:
        x, x0: the state after the step, and what the model predicted; [B, ...].
        point: where the step led to.
        error: of the step, in units of the tolerance; below 1 it is accepted.
        h: its length in -log sigma / alpha.
        accepted: whether the run goes on from x.
        steps, evaluations, rejected: counts so far.
    """

    x: torch.Tensor
    x0: torch.Tensor
    point: Point
    error: float
    h: float
    accepted: bool
    steps: int
    evaluations: int
    rejected: int


class _Controller:
    """Chooses the next step in lambda from the errors of this one and the two accepted before (Hairer and Wanner, IV.2)."""

    def __init__(self, h: float, proportional: float, integral: float, derivative: float, order: float, safety: float):
        self.h, self.safety, self.inverses = h, safety, [0.0] * 3
        self.powers = (
            (proportional + integral + derivative) / order,
            -(proportional + 2 * derivative) / order,
            derivative / order,
        )

    def accepts(self, error: float) -> bool:
        inverse = 1 / (error + 1e-8)
        self.inverses = [inverse, *(self.inverses[1:] if self.inverses[1] else [inverse, inverse])]
        factor = math.prod(value**power for value, power in zip(self.inverses, self.powers, strict=True))
        # Smoothly between 0.2 and 2.6.
        factor = 1 + math.atan(factor - 1)
        self.h *= factor
        if factor < self.safety:
            return False
        self.inverses = [inverse, inverse, self.inverses[1]]
        return True


def _low_stages(schedule: Schedule, here: Point, there: Point, order: int) -> list[Step]:
    """One order less, from the same evaluations but the last."""
    if order == 2:
        return single_stages(schedule, here, there, 1, U)
    first, second, _ = single_stages(schedule, here, there, 3, U)
    a, of_u = growth(here, there)
    return [first, Step(BASE * a + (U * 1.5 - H[0] * 0.5) * of_u, at=second.at)]


@torch.no_grad()
def _root_mean_square(x: torch.Tensor) -> float:
    """Of all elements, in an order that no machine and no number of threads changes: it decides on the steps."""
    squares = mse_loss(x, torch.zeros_like(x)).tolist()
    return math.sqrt(math.fsum(squares) / len(squares))


def dpm_adaptive(
    model: Model,
    schedule: Schedule,
    shape: Sequence[int],
    seeds: torch.Tensor | Sequence[int],
    *,
    prediction: str = "epsilon",
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h: float = 0.05,
    proportional: float = 0.0,
    integral: float = 1.0,
    derivative: float = 0.0,
    safety: float = 0.81,
    eta: float = 0.0,
    noise_scale: float = 1.0,
    clip: float | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    x: torch.Tensor | None = None,
    noise: Callable[[int, float, float], torch.Tensor] | None = None,
    callback: Callable[[Attempt], None] | None = None,
    most_steps: int = 10_000,
) -> torch.Tensor:
    """DPM-Solver-12 and -23: each step is tried with two orders, whose difference sets the length of the next one.

    Lu et al. 2022a, appendix C.3 (the pair of orders, the norm of the error), with k-diffusion's PID controller. The error is
    ``rms((low - high) / max(atol, rtol max(|low|, |low before|)))`` over the whole batch, and a step is taken back where the
    controller would shorten it below ``safety`` of itself. That decision reads one number from the device in each step, so
    this loop is no CUDA graph, and a sample's result depends on its batch through the lengths of the steps.

    Args:
        model, shape, seeds, device, dtype, x: as for :func:`pyfold.diffusion.sample`.
        schedule, prediction, clip: as for :func:`pyfold.diffusion.euler`.
        order: 2 or 3, the evaluations a step; a rejected step keeps its first one.
        rtol, atol: of a step's error.
        h: of the first step, in lambda.
        proportional, integral, derivative: of the controller.
        safety: least factor on the length at which a step is accepted.
        eta, noise_scale: as for :func:`pyfold.diffusion.euler_ancestral`.
        sigma_min, sigma_max: ends of sigma / alpha, by default the schedule's.
        noise: ``noise(n, sigma, sigma')`` gives the n-th accepted step's normals in place of those from the seeds.
        callback: called with an :class:`Attempt` after each step that was tried.
        most_steps: a RuntimeError after so many, accepted or not.

    Returns:
        float32 [B, *shape] at ``sigma_min``, or float64.

    Raises:
        RuntimeError: no end after ``most_steps``.
        ValueError: a model whose values are not finite.

    Example:
        >>> schedule, tried = pyfold.diffusion.vp_linear(), []
        >>> x = dpm_adaptive(lambda x, t: 0 * x, schedule, (2,), [1], callback=tried.append)  # a straight way: long steps
        >>> x.shape, len(tried) < 20
        (torch.Size([1, 2]), True)
    """
    check_option("order", order, (2, 3))
    for name, number in (("eta", eta), ("noise_scale", noise_scale)):
        check_option(name, number, OPTIONS[name][1])
    for name, number in (("rtol", rtol), ("atol", atol), ("h", h)):
        check_option(name, number, (0.0, math.inf, "above"))
    low, high = ratio_span(schedule, sigma_min, sigma_max)
    here, end = schedule.at_ratio(high), schedule.at_ratio(low)
    state = accumulation(dtype)
    device = torch.device(device)
    x, seeds = initial_noise(shape, seeds, schedule.start_std(here), device, state, x)
    control = _Controller(h, proportional, integral, derivative, 1.5 if eta else order, safety)

    def run(value: torch.Tensor, at: Point) -> Any:
        t = torch.full((len(seeds),), schedule.model_time(*at), dtype=state, device=device)
        scale = schedule.input_scale(at.alpha, at.sigma)
        return model((value if scale == 1 else value * scale).to(dtype), t)

    def rows(stages: list[Step]) -> list[dict[str, float]]:
        made = Rows(schedule, prediction, clip, "epsilon")
        made.add(here, there, stages)
        return made.rows

    first, before, accepted, steps, evaluations, rejected = None, x, True, 0, 0, 0
    while here.lam < end.lam - 1e-5:
        if steps == most_steps:
            raise RuntimeError(f"no end after {steps} steps, {rejected} of them rejected, at sigma / alpha {here.ratio:g}")
        there = end if here.lam + control.h >= end.lam else between(schedule, here, end, control.h / (end.lam - here.lam))
        aim, up = ancestral_aim(here, there, eta, end)
        stages, lower = single_stages(schedule, here, aim, order, U), _low_stages(schedule, here, aim, order)
        table = affine_table([*rows(stages), rows(lower)[-1]], x.device)
        history: list[torch.Tensor] = []
        value, x0 = x, torch.empty_like(x)
        for i, part in enumerate(stages):
            output = run(value, part.at or here) if i or first is None else first
            first = output if i == 0 else first
            if i == len(lower) - 1:
                x_low = stage(affine_step, value, output, history, 0, table=table[-1:])
            value = stage(affine_step, value, output, history, order, table=table[i : i + 1])
            if i == 0:
                torch.mul(history[0], -here.sigma, out=x0).add_(x).div_(here.alpha)
        evaluations += order - (not accepted)
        scale = (torch.maximum(x_low.abs(), before.abs()) * rtol).clamp(min=atol)
        error = _root_mean_square((x_low - value) / scale)
        if not math.isfinite(error):
            raise ValueError(f"model must give finite values, got an error of {error} at sigma / alpha {here.ratio:g}")
        accepted = control.accepts(error)
        if accepted:
            if up:
                amount = up * noise_scale
                if noise is None:
                    place = stream_and_step(address(there.ratio))
                    value = add_noise(value, 1.0, amount, seeds, stream=place["stream"], step=place["step"], out=value)
                else:
                    value = value + amount * noise(steps - rejected, here.ratio, there.ratio).to(value)
            x, before, here, first = value, x_low, there, None
        steps, rejected = steps + 1, rejected + (not accepted)
        if callback is not None:
            callback(Attempt(x, x0, here, error, control.h, accepted, steps, evaluations, rejected))
    return x
