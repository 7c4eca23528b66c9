"""Exact mean and variance of what a sampler makes of Gaussian data, from the sampler's own loop and without chance.

For data N(MEAN, VARIANCE) the best prediction is affine in the state, so a sampler's result is affine in the start and in each
of its draws, and elements do not mix. One element of the state is run for the constant part (all noise 0), and one for each
source of noise (that noise 1, all else 0, and the model without its constant): the result's mean is the first, its variance
the sum of the squares of the others.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch

from pyfold import diffusion
from pyfold.diffusion import Plan, Point, Schedule

MEAN, VARIANCE = 0.3, 0.49

SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "vp_linear": diffusion.vp_linear,
    "vp_scaled_linear": diffusion.vp_scaled_linear,
    "vp_cosine": diffusion.vp_cosine,
    "zero terminal SNR": lambda: diffusion.zero_terminal_snr(diffusion.vp_linear()),
    "vp": diffusion.vp,
    "sub_vp": diffusion.sub_vp,
    "ve": diffusion.ve,
    "edm": lambda: diffusion.edm(data_std=math.sqrt(VARIANCE)),
    "flow": diffusion.flow,
    "flow, shift 3": lambda: diffusion.flow(3.0),
    "trigflow": lambda: diffusion.trigflow(data_std=math.sqrt(VARIANCE)),
}


def spread(point: Point) -> float:
    """Standard deviation of the noised data."""
    return math.hypot(point.alpha * math.sqrt(VARIANCE), point.sigma)


def denoise(x: torch.Tensor, constant: torch.Tensor, point: Point) -> torch.Tensor:
    """E[x0 | x], the part that does not depend on x only where ``constant`` is 1."""
    gain = point.alpha * VARIANCE / spread(point) ** 2
    return constant * MEAN + gain * (x - constant * point.alpha * MEAN)


@dataclass
class Moments:
    mean: float
    variance: float


def moments(plan: Plan, schedule: Schedule, start: Point) -> Moments:
    """Of the plan's result, started from the noised data at ``start``."""
    noises: dict[int, int] = {}  # its draws, by what the sampler calls them: elements of the state
    most = 3 * len(plan) + 2
    constant = torch.zeros(1, 2 + most, dtype=torch.float64)
    constant[:, 0] = 1.0
    points = iter(plan.points)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        here = next(points)
        return denoise(x / schedule.input_scale(here.alpha, here.sigma), constant, here)

    def noise(n: int) -> torch.Tensor:
        unit = torch.zeros_like(constant)
        unit[:, noises.setdefault(n, 2 + len(noises))] = 1.0
        return unit

    x = constant * start.alpha * MEAN
    x[:, 1] = spread(start)
    x = diffusion.sample(model, plan, x.shape[1:], [0], x=x, noise=noise, dtype=torch.float64)[0]
    return Moments(x[0].item(), x[1:].square().sum().item())


# --- cases


def default_points(sampler: Callable[..., Plan], schedule: Schedule, steps: int) -> list[Point]:
    """The points of the sampler's own default."""
    seen: list[list[Point]] = []

    def spacing(schedule: Schedule, steps: int) -> list[Point]:
        default = inspect.signature(sampler).parameters["spacing"].default
        default = schedule.even_spacing if default == "trailing" else default
        seen.append(diffusion.spacings.choose_points(schedule, steps, default))
        return seen[-1]

    sampler(schedule, steps, prediction="x0", spacing=spacing)
    return seen[-1]


@cache
def evaluations(sampler: Callable[..., Plan], schedule: Schedule, steps: int) -> int:
    return len(sampler(schedule, steps, prediction="x0"))


def steps_for(sampler: Callable[..., Plan], schedule: Schedule, calls: int) -> int:
    """The most steps that take no more than so many model calls, or one."""
    steps = calls
    while steps > 1 and evaluations(sampler, schedule, steps) > calls:
        steps -= 1
    return steps


# --- references on the same points


def euler_maruyama(points: Sequence[Point]) -> float:
    """The variance of Euler and Maruyama's scheme for the reverse SDE in sigma / alpha, in the scale of alpha = 1."""
    variance = VARIANCE + points[0].ratio ** 2
    for here, there in zip(points, points[1:], strict=False):
        s, step = here.ratio, here.ratio - there.ratio
        # x' = x - 2 (x - x0(x)) step / s + sqrt(2 s step) z, with x0(x) = gain x + constant
        gain = VARIANCE / (VARIANCE + s * s)
        variance = (1 - 2 * (1 - gain) * step / s) ** 2 * variance + 2 * s * step
    return variance * points[-1].alpha ** 2


REFERENCES = {1: diffusion.euler, 2: diffusion.heun, 3: partial(diffusion.dpm_singlestep, order=3)}


def reference_variance(order: int, stochastic: bool, schedule: Schedule, points: Sequence[Point]) -> float:
    if stochastic and order == 1:
        return euler_maruyama(points)
    plan = REFERENCES[order](schedule, len(points) - 1, prediction="x0", spacing=points)
    return moments(plan, schedule, points[0]).variance
