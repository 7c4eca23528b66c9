"""Exponential integrators in ``lambda = log(alpha / sigma)``: the DPM-Solver family and its relatives.

The linear part of the flow is solved exactly, so that a step of length ``h = lambda' - lambda`` multiplies x by
``sigma' / sigma`` (x0 predicted, "++") or ``alpha' / alpha`` (epsilon predicted). With noise of strength eta the decay of x
is faster, by ``exp(-eta h)``, and ``sigma' sqrt(1 - exp(-2 eta h))`` of noise makes up for it.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from pyfold.diffusion.plan import Builder, Plan, Stage
from pyfold.diffusion.samplers.ancestral import Spacing, ancestral_split, check_eta, check_noise_scale
from pyfold.diffusion.samplers.orders import check_order, regular, usable_order
from pyfold.diffusion.schedules import Point, Schedule
from pyfold.diffusion.spacings import choose_points, span


def decay(here: Point, there: Point, eta: float = 0.0) -> tuple[float, float, float]:
    """(of x, of x0, of noise) in one step of constant x0."""
    h = there.lam - here.lam
    a = there.sigma / here.sigma * (math.exp(-eta * h) if eta else 1.0)
    return a, there.alpha - a * here.alpha, there.sigma * math.sqrt(-math.expm1(-2 * eta * h)) if eta else 0.0


def growth(here: Point, there: Point) -> tuple[float, float]:
    """(of x, of epsilon) in one step of constant epsilon."""
    a = there.alpha / here.alpha
    return a, there.sigma - a * here.sigma


def _differences(points: list[Point], i: int, order: int) -> list[list[float]]:
    """h d/dlambda and h^2 d^2/dlambda^2 of the values at points i, i - 1, ..., as coefficients of them."""
    h = points[i + 1].lam - points[i].lam
    if order == 1:
        return []
    r0 = (points[i].lam - points[i - 1].lam) / h
    newest = np.array([1 / r0, -1 / r0, 0.0])
    if order == 2:
        return [list(newest[:2])]
    r1 = (points[i - 1].lam - points[i - 2].lam) / h
    older = np.array([0.0, 1 / r1, -1 / r1])
    return [list(newest + (newest - older) * r0 / (r0 + r1)), list((newest - older) / (r0 + r1))]


def _combine(leading: float, factors: list[float], differences: list[list[float]]) -> list[float]:
    total = np.zeros(max((len(d) for d in differences), default=1))
    total[0] = leading
    for factor, difference in zip(factors, differences, strict=True):
        total[: len(difference)] += factor * np.array(difference)
    return [float(c) for c in total]


def _check_solver(solver: str) -> None:
    if solver not in ("midpoint", "heun", "exact"):
        raise ValueError(f"solver must be 'midpoint', 'heun' or 'exact', got {solver!r}")


def bends(h: float, plus: bool) -> tuple[float, float]:
    """Of h times the first and h^2 times the second derivative in one step: times alpha' of x0 (plus), sigma' of epsilon."""
    first = math.expm1(-h) / h + 1 if plus else 1 - math.expm1(h) / h
    return first, 0.5 - first / h if plus else 0.5 + first / h


def _factors(of_u: float, second: float, third: float, order: int, solver: str) -> list[float]:
    """Of the first and second differences; ``third`` is of h^2 times the second derivative."""
    if order == 2 and solver == "midpoint":
        return [of_u / 2]
    # The published order 3 takes the second difference for the second derivative, of which it is half.
    return [second, third * (2 if solver == "exact" else 1)][: order - 1]


def dpmpp_multistep(
    schedule: Schedule,
    steps: int = 20,
    *,
    prediction: str = "epsilon",
    order: int = 2,
    eta: float = 0.0,
    noise_scale: float = 1.0,
    solver: str = "midpoint",
    final_order: int | None = None,
    clip: float | None = None,
    spacing: Spacing = "karras",
) -> Plan:
    """DPM-Solver++ multistep: 1, 2M, 3M and, with eta, their SDE forms (Lu et al. 2022b, algorithm 2; k-diffusion).

    Args:
        schedule, steps, prediction, clip, spacing: as for :func:`pyfold.diffusion.euler`.
        order: from 1 to 3.
        eta: noise: 0 none, 1 the reverse SDE's.
        noise_scale: factor on the noise.
        solver: "midpoint" or "heun" weigh the derivative of order 2, both with the published order 3, which converges with
            order 2 only; "exact" integrates the interpolating polynomial, and converges with order 3.
        final_order: highest order of the last step, one more of the one before, and so on (diffusers' lower_order_final is
            1); a last step to zero noise is of order 1 anyway.
    """
    check_noise_scale(noise_scale)
    check_order(order, 3)
    check_order(order if final_order is None else final_order, 3, "final_order")
    check_eta(eta, math.inf)
    _check_solver(solver)
    build = Builder(schedule, prediction, clip)
    points = choose_points(schedule, steps, spacing)
    for i, (here, there) in enumerate(pairwise(points)):
        a, of_x0, noise = decay(here, there, eta)
        now = usable_order(points, i, order, final_order)
        factors = []
        if now > 1:
            h = (1 + eta) * (there.lam - here.lam)
            factors = _factors(of_x0, *(there.alpha * bend for bend in bends(h, True)), now, solver)
        c_u, *b = _combine(of_x0, factors, _differences(points, i, now))
        build.stage(here, a=a, c_u=c_u, b=b, noise=noise * noise_scale)
    return build.plan("dpmpp_multistep")


def dpm_multistep(
    schedule: Schedule,
    steps: int = 20,
    *,
    prediction: str = "epsilon",
    order: int = 2,
    stochastic: bool = False,
    solver: str = "midpoint",
    final_order: int | None = None,
    clip: float | None = None,
    spacing: Spacing = "karras",
) -> Plan:
    """DPM-Solver multistep, on epsilon (Lu et al. 2022a, eq. 3.3; 2022b, appendix for the SDE).

    Args:
        schedule, steps, prediction, order, solver, final_order, clip, spacing: as for :func:`dpmpp_multistep`.
        stochastic: the reverse SDE, of order 1 or 2.
    """
    check_order(order, 2 if stochastic else 3)
    check_order(order if final_order is None else final_order, 3, "final_order")
    _check_solver(solver)
    build = Builder(schedule, prediction, clip, "epsilon")
    points = choose_points(schedule, steps, spacing)
    for i, (here, there) in enumerate(pairwise(points)):
        if not regular([here, there]):
            # No noise left, or no signal yet: the limit, which is DDIM's step.
            build.stage(here, c_x0=there.alpha, c_u=there.sigma)
            continue
        h = there.lam - here.lam
        a, of_epsilon = growth(here, there)
        now = usable_order(points, i, order, final_order)
        factors = _factors(of_epsilon, *(there.sigma * bend for bend in bends(h, False)), now, solver)
        twice = 2.0 if stochastic else 1.0
        c_u, *b = _combine(twice * of_epsilon, [twice * f for f in factors], _differences(points, i, now))
        noise = there.sigma * math.sqrt(math.expm1(2 * h)) if stochastic else 0.0
        build.stage(here, a=a, c_u=c_u, b=b, noise=noise)
    return build.plan("dpm_multistep")


def res_multistep(
    schedule: Schedule,
    steps: int = 20,
    *,
    prediction: str = "epsilon",
    eta: float = 0.0,
    noise_scale: float = 1.0,
    clip: float | None = None,
    spacing: Spacing = "karras",
) -> Plan:
    """Refined exponential solver, multistep of order 2 (Zhang et al. 2023, eq. 14), with ancestral noise of strength eta.

    Args:
        schedule, steps, prediction, clip, spacing: as for :func:`pyfold.diffusion.euler`.
        eta, noise_scale: as for :func:`pyfold.diffusion.euler_ancestral`.
    """
    check_noise_scale(noise_scale)
    check_eta(eta)
    build = Builder(schedule, prediction, clip)
    points = choose_points(schedule, steps, spacing)
    last: Point | None = None
    for here, there in pairwise(points):
        down, up = ancestral_split(here, there, eta)
        # As far as `down`, in the scale of `there`.
        aim = Point(there.t, there.alpha, there.alpha * down)
        a, of_x0, _ = decay(here, aim)
        c_u, b = of_x0, []
        if last is not None and regular([last, here, aim]):
            h = aim.lam - here.lam
            slope = there.alpha * bends(h, True)[0] * h / (here.lam - last.lam)
            c_u, b = of_x0 + slope, [-slope]
        build.stage(here, a=a, c_u=c_u, b=b, noise=there.alpha * up * noise_scale)
        last = here
    return build.plan("res_multistep")


# --- singlestep


def between(schedule: Schedule, here: Point, there: Point, fraction: float) -> Point:
    return schedule.at_ratio(math.exp(-(here.lam + fraction * (there.lam - here.lam))))


def single_stages(
    schedule: Schedule, here: Point, there: Point, order: int, *, plus: bool = False, noise: float = 0.0
) -> list[Stage]:
    """One step of DPM-Solver (plus: ++) of order 1, 2 or 3 from x alone, between points of finite lambda; then noise."""
    linear = (lambda p: decay(here, p)[:2]) if plus else (lambda p: growth(here, p))
    h = there.lam - here.lam
    end, of_end = linear(there)
    last = [(noise, order - 1)] if noise else ()

    def bend(p: Point, fraction: float) -> float:
        """Of ``fraction h`` times the derivative: the second function of the exponential integrator."""
        first, _ = bends(fraction * h, plus)
        return first * (p.alpha if plus else p.sigma)

    if order == 1:
        return [Stage(there, end, [of_end], last)]
    if order == 2:
        middle = between(schedule, here, there, 0.5)
        a, of_u = linear(middle)
        return [Stage(middle, a, [of_u]), Stage(there, end, [0.0, of_end], last)]
    first, second = (between(schedule, here, there, f) for f in (1 / 3, 2 / 3))
    (a1, u1), (a2, u2) = linear(first), linear(second)
    tilt, slope = 2 * bend(second, 2 / 3), 1.5 * bend(there, 1.0)
    return [
        Stage(first, a1, [u1]),
        Stage(second, a2, [u2 - tilt, tilt]),
        Stage(there, end, [of_end - slope, 0.0, slope], last),
    ]


def _singlestep(schedule, steps, prediction, order, clip, spacing, plus):
    check_order(order, 3)
    build = Builder(schedule, prediction, clip, "x0" if plus else "epsilon")
    for here, there in pairwise(choose_points(schedule, steps, spacing)):
        if regular([here, there]):
            build.step(here, single_stages(schedule, here, there, order, plus=plus))
        else:
            a, of_x0, _ = decay(here, there)
            build.stage(here, a=a, c_x0=of_x0)
    return build.plan("dpmpp_singlestep" if plus else "dpm_singlestep")


def dpm_singlestep(
    schedule: Schedule,
    steps: int = 10,
    *,
    prediction: str = "epsilon",
    order: int = 2,
    clip: float | None = None,
    spacing: Spacing = "karras",
) -> Plan:
    """DPM-Solver-1, -2 and -3: ``order`` evaluations a step, no memory between steps (Lu et al. 2022a, algorithms 1, 2).

    Args:
        schedule, steps, prediction, clip, spacing: as for :func:`pyfold.diffusion.euler`.
        order: from 1 to 3; a step to zero noise is of order 1.
    """
    return _singlestep(schedule, steps, prediction, order, clip, spacing, plus=False)


def dpmpp_singlestep(
    schedule: Schedule,
    steps: int = 10,
    *,
    prediction: str = "epsilon",
    order: int = 2,
    clip: float | None = None,
    spacing: Spacing = "karras",
) -> Plan:
    """DPM-Solver++ 2S and 3S: as :func:`dpm_singlestep`, on x0 (Lu et al. 2022b, algorithm 1)."""
    return _singlestep(schedule, steps, prediction, order, clip, spacing, plus=True)


def dpm_fast(
    schedule: Schedule,
    steps: int = 20,
    *,
    prediction: str = "epsilon",
    eta: float = 0.0,
    noise_scale: float = 1.0,
    clip: float | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Plan:
    """DPM-Solver-fast: ``steps`` evaluations, in steps of order 3 with the rest at the end (Lu et al. 2022a, section 3.4).

    Args:
        schedule, prediction, clip: as for :func:`dpm_singlestep`.
        steps: model evaluations; the steps between are uniform in lambda.
        eta, noise_scale: as for :func:`pyfold.diffusion.euler_ancestral`.
        sigma_min, sigma_max: ends of sigma / alpha, by default the schedule's.
    """
    check_order(steps, 10**6, "steps")
    check_eta(eta)
    check_noise_scale(noise_scale)
    count = steps // 3 + 1
    orders = [3] * (count - 2) + [2, 1] if steps % 3 == 0 else [3] * (count - 1) + [steps % 3]
    low, high = span(schedule, sigma_min, sigma_max)
    levels = np.exp(np.linspace(math.log(high), math.log(low), len(orders) + 1))
    points = [schedule.at_ratio(float(r)) for r in levels]
    build = Builder(schedule, prediction, clip, "epsilon")
    for (here, there), order in zip(pairwise(points), orders, strict=True):
        aim, noise = ancestral_aim(here, there, eta, points[-1])
        build.step(here, single_stages(schedule, here, aim, order, noise=noise * noise_scale))
    return build.plan("dpm_fast")


def ancestral_aim(here: Point, there: Point, eta: float, end: Point) -> tuple[Point, float]:
    """Where a step with noise aims, not below the end's noise, in the scale of ``there``; and the noise that leads up to it."""
    if not eta:
        return there, 0.0
    down = max(ancestral_split(here, there, eta)[0], end.ratio)
    aim = Point(there.t, there.alpha, there.alpha * down)
    return aim, there.alpha * math.sqrt(max(there.ratio**2 - down**2, 0.0))
