"""Exponential integrators of the reverse SDE that take all they need in one step, and the extended reverse-time SDE."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from pyfold.diffusion.integrals import lagrange_integrals
from pyfold.diffusion.plan import Builder, Plan, Stage
from pyfold.diffusion.samplers.ancestral import Spacing, ancestral_split, check_eta, check_noise_scale
from pyfold.diffusion.samplers.exponential import between, decay
from pyfold.diffusion.samplers.orders import check_order, regular, usable_order
from pyfold.diffusion.schedules import Point, Schedule
from pyfold.diffusion.spacings import choose_points


def dpmpp_2s_ancestral(
    schedule: Schedule,
    steps: int = 15,
    *,
    prediction: str = "epsilon",
    eta: float = 1.0,
    noise_scale: float = 1.0,
    clip: float | None = None,
    spacing: Spacing = "karras",
) -> Plan:
    """DPM-Solver++ 2S to less noise than wanted, the rest put back as new noise (k-diffusion).

    Args:
        schedule, steps, prediction, clip, spacing: as for :func:`pyfold.diffusion.euler`.
        eta, noise_scale: as for :func:`pyfold.diffusion.euler_ancestral`.
    """
    check_noise_scale(noise_scale)
    check_eta(eta)
    build = Builder(schedule, prediction, clip)
    for here, there in pairwise(choose_points(schedule, steps, spacing)):
        down, up = ancestral_split(here, there, eta)
        aim = Point(there.t, there.alpha, there.alpha * down)
        a, of_x0, _ = decay(here, aim)
        if down == 0 or here.alpha == 0:
            build.stage(here, a=a, c_x0=of_x0, noise=there.alpha * up * noise_scale)
            continue
        middle = between(schedule, here, aim, 0.5)
        a_middle, of_middle, _ = decay(here, middle)
        noise = [(there.alpha * up * noise_scale, 1)]
        build.step(here, [Stage(middle, a_middle, [of_middle]), Stage(there, a, [0.0, of_x0], noise)])
    return build.plan("dpmpp_2s_ancestral")


def dpmpp_sde(
    schedule: Schedule,
    steps: int = 15,
    *,
    prediction: str = "epsilon",
    eta: float = 1.0,
    noise_scale: float = 1.0,
    r: float = 0.5,
    brownian: bool = True,
    clip: float | None = None,
    spacing: Spacing = "karras",
) -> Plan:
    """DPM-Solver++ SDE: an inner ancestral step, then the whole one with both predictions (k-diffusion).

    Args:
        schedule, steps, prediction, clip, spacing: as for :func:`pyfold.diffusion.euler`.
        eta, noise_scale: as for :func:`pyfold.diffusion.euler_ancestral`.
        r: where in lambda the inner step ends, in (0, 1].
        brownian: both noises are increments of one Brownian motion in sigma / alpha, as k-diffusion's default has it; else
            they are independent.
    """
    check_noise_scale(noise_scale)
    check_eta(eta)
    if not 0 < r <= 1:
        raise ValueError(f"r must be in (0, 1], got {r}")
    build = Builder(schedule, prediction, clip)
    for here, there in pairwise(choose_points(schedule, steps, spacing)):
        if not regular([here, there]):
            down, up = (0.0, 0.0) if there.sigma == 0 else (0.0, there.ratio)
            build.stage(here, c_x0=there.alpha, noise=there.alpha * up * noise_scale)
            continue
        stages = []
        middle = between(schedule, here, there, r)
        shared = (here.ratio - middle.ratio) / (here.ratio - there.ratio) if brownian else 0.0
        for target, weights, split in (
            (middle, [1.0], [(1.0, 0)]),
            (there, [1 - 1 / (2 * r), 1 / (2 * r)], [(math.sqrt(shared), 0), (math.sqrt(1 - shared), 1)]),
        ):
            down, up = ancestral_split(here, target, eta)
            a, of_x0, _ = decay(here, Point(target.t, target.alpha, target.alpha * down))
            noise = [(target.alpha * up * noise_scale * part, n) for part, n in split]
            stages.append(Stage(target, a, [of_x0 * w for w in weights], noise))
        build.step(here, stages)
    return build.plan("dpmpp_sde")


def er_sde(
    schedule: Schedule,
    steps: int = 20,
    *,
    prediction: str = "epsilon",
    order: int = 3,
    noise_scale: float = 1.0,
    clip: float | None = None,
    spacing: Spacing = "karras",
) -> Plan:
    """Extended reverse-time SDE solver, orders 1 to 3 (Cui et al. 2023, algorithms 1 to 3), noise function ER-SDE 5:

    ``phi(s) = s (exp(s^0.3) + 10)`` of ``s = sigma / alpha``.

    Args:
        schedule, steps, prediction, clip, spacing: as for :func:`pyfold.diffusion.euler`.
        order: from 1 to 3.
        noise_scale: factor on the noise.
    """
    check_noise_scale(noise_scale)

    def phi(s):
        return s * (np.exp(s**0.3) + 10)

    check_order(order, 3)
    build = Builder(schedule, prediction, clip)
    points = choose_points(schedule, steps, spacing)
    for i, (here, there) in enumerate(pairwise(points)):
        if not regular([here, there]):
            build.stage(here, c_x0=there.alpha, noise=there.sigma * noise_scale)
            continue
        s, s_next = here.ratio, there.ratio
        r = float(phi(s_next) / phi(s))
        terms = np.zeros(3)
        terms[0] = there.alpha * (1 - r)
        now = usable_order(points, i, order)
        if now >= 2:
            step = s_next - s
            # The integrals of 1 / phi and (s' - s) / phi between the levels.
            plain = lagrange_integrals([0.0], s_next, s, lambda v: 1 / phi(v))[0]
            tilted = lagrange_integrals([0.0], s_next, s, lambda v: (v - s) / phi(v))[0]
            slope = np.array([1.0, -1.0, 0.0]) / (s - points[i - 1].ratio)
            terms += there.alpha * (step + plain * phi(s_next)) * slope
            if now == 3:
                before = np.array([0.0, 1.0, -1.0]) / (points[i - 1].ratio - points[i - 2].ratio)
                curve = (slope - before) / ((s - points[i - 2].ratio) / 2)
                terms += there.alpha * (step**2 / 2 + tilted * phi(s_next)) * curve
        c_u, *b = (float(c) for c in terms[:now])
        noise = there.alpha * math.sqrt(max(s_next**2 - (s * r) ** 2, 0.0)) * noise_scale
        build.stage(here, a=there.alpha / here.alpha * r, c_u=c_u, b=b, noise=noise)
    return build.plan("er_sde")


def seeds(
    schedule: Schedule,
    steps: int = 10,
    *,
    prediction: str = "epsilon",
    order: int = 2,
    eta: float = 1.0,
    noise_scale: float = 1.0,
    clip: float | None = None,
    spacing: Spacing = "karras",
) -> Plan:
    """SEEDS-2 and -3: exponential Runge-Kutta on the reverse SDE, its noise exact between the stages (Gonzalez et al. 2023).

    Args:
        schedule, steps, prediction, clip, spacing: as for :func:`pyfold.diffusion.euler`.
        order: 2 or 3, the evaluations a step.
        eta: noise: 0 none, 1 the reverse SDE's.
        noise_scale: factor on the noise.
    """
    check_noise_scale(noise_scale)
    check_order(order, 3)
    check_eta(eta, math.inf)
    if order < 2:
        raise ValueError(f"order must be 2 or 3, got {order}")
    fractions = [0.5, 1.0] if order == 2 else [1 / 3, 2 / 3, 1.0]
    build = Builder(schedule, prediction, clip)
    for here, there in pairwise(choose_points(schedule, steps, spacing)):
        if not regular([here, there]):
            a, of_x0, noise = decay(here, there, eta)
            build.stage(here, a=a, c_x0=of_x0, noise=noise * noise_scale)
            continue
        h = there.lam - here.lam
        stages: list[Stage] = []
        for k, fraction in enumerate(fractions):
            target = there if fraction == 1 else between(schedule, here, there, fraction)
            a, of_x0, _ = decay(here, target, eta)
            weights = [of_x0, 0.0, 0.0][: k + 1]
            if k:
                # Order 2 weighs the two predictions alike in the middle, order 3 integrates the slope between them.
                z = (1 + eta) * fraction * h
                slope = of_x0 if order == 2 else target.alpha * (math.expm1(-z) / z + 1) * fraction / fractions[k - 1]
                weights[0] -= slope
                weights[k] += slope
            # Each noise decays from the stage that brings it in to this one.
            noise = []
            for j in range(k + 1):
                start = fractions[j - 1] if j else 0.0
                fresh = -math.expm1(-2 * eta * (fractions[j] - start) * h)
                kept = math.exp(-eta * (fraction - fractions[j]) * h)
                noise.append((target.sigma * kept * math.sqrt(fresh) * noise_scale, j))
            stages.append(Stage(target, a, weights, noise if eta else ()))
        build.step(here, stages)
    return build.plan("seeds")
