"""Exponential integrators of the reverse SDE that take all they need in one step, and the extended reverse-time SDE."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyfold.diffusion.formulas import BASE, NOISE, X0, Form, H, N, Step, U, X
from pyfold.diffusion.integrals import lagrange_integrals
from pyfold.diffusion.samplers._declare import Past, Steps, alias, regular, sampler
from pyfold.diffusion.samplers.ancestral import less_noise
from pyfold.diffusion.samplers.exponential import between, decay
from pyfold.diffusion.schedule import Point


@sampler(15, source="k-diffusion")
def dpmpp_2s_ancestral(here: Point, there: Point, past: Past, *, eta: float = 1.0, noise_scale: float = 1.0) -> Steps:
    """DPM-Solver++ 2S to less noise than wanted, the rest put back as new noise."""
    aim, noise = less_noise(here, there, eta)
    (a, of_x0, _), noised = decay(here, aim), N * (noise * noise_scale)
    if aim.sigma == 0 or here.alpha == 0:
        return Step(X * a + X0 * of_x0 + noised)
    middle = between(past.schedule, here, aim, 0.5)
    a_middle, of_middle, _ = decay(here, middle)
    return Step(X * a_middle + U * of_middle), Step(BASE * a + U * of_x0 + noised, at=middle)


def ancestral_stage(start: Form, here: Point, to: Point, x0: Form, eta: float) -> tuple[Form, Any]:
    """(x0 followed to less noise than wanted, the noise that is left)."""
    aim, noise = less_noise(here, to, eta)
    a, of_x0, _ = decay(here, aim)
    return start * a + x0 * of_x0, noise


@sampler(
    15,
    source="k-diffusion",
    texts={
        "r": "where in lambda the inner step ends.",
        "brownian": "both noises are increments of one Brownian motion in sigma / alpha, as k-diffusion's default has it; else "
        "they are independent.",
    },
    r=(0.0, 1.0, "above"),
)
def dpmpp_sde(
    here: Point,
    there: Point,
    past: Past,
    *,
    eta: float = 1.0,
    noise_scale: float = 1.0,
    r: float = 0.5,
    brownian: bool = True,
) -> Steps:
    """DPM-Solver++ SDE: an inner ancestral step, then the whole one with both predictions."""
    if not regular([here, there]):
        whole, of_whole = ancestral_stage(X, here, there, X0, eta)
        return Step(whole + N * (of_whole * noise_scale))
    middle = between(past.schedule, here, there, r)
    shared = (here.ratio - middle.ratio) / (here.ratio - there.ratio) if brownian else 0.0
    inner, of_inner = ancestral_stage(X, here, middle, U, eta)
    both = H[0] * (1 - 1 / (2 * r)) + U * (1 / (2 * r))
    whole, of_whole = ancestral_stage(BASE, here, there, both, eta)
    noise = NOISE[0] * math.sqrt(shared) + N * math.sqrt(1 - shared)
    return Step(inner + N * (of_inner * noise_scale)), Step(whole + noise * (of_whole * noise_scale), at=middle)


def _phi(s: Any) -> Any:
    """The noise function ER-SDE 5."""
    return s * (np.exp(s**0.3) + 10)


@sampler(20, source="Cui et al. 2023, algorithms 1 to 3", order=(1, 3))
def er_sde(here: Point, there: Point, past: Past, *, order: int = 3, noise_scale: float = 1.0) -> Step:
    """Extended reverse-time SDE solver, its noise function ``phi(s) = s (exp(s^0.3) + 10)`` of ``s = sigma / alpha``."""
    if not regular([here, there]):
        return Step(X0 * there.alpha + N * (there.sigma * noise_scale))
    s, s_next = here.ratio, there.ratio
    r = _phi(s_next) / _phi(s)
    x0, now = U * (there.alpha * (1 - r)), past.order(order)
    if now >= 2:
        step, slope = s_next - s, (U - H[0]) / (s - past[0].ratio)
        # The integrals of 1 / phi and (s' - s) / phi between the levels.
        flat = lagrange_integrals([0.0], s_next, s, lambda v: 1 / _phi(v))[0]
        x0 = x0 + slope * (there.alpha * (step + flat * _phi(s_next)))
    if now == 3:
        tilted = lagrange_integrals([0.0], s_next, s, lambda v: (v - s) / _phi(v))[0]
        before = (H[0] - H[1]) / (past[0].ratio - past[1].ratio)
        curve = (slope - before) / ((s - past[1].ratio) / 2)
        x0 = x0 + curve * (there.alpha * (step**2 / 2 + tilted * _phi(s_next)))
    noise = there.alpha * math.sqrt(max(s_next**2 - (s * r) ** 2, 0.0)) * noise_scale
    return Step(X * (there.alpha / here.alpha * r) + x0 + N * noise)


@sampler(
    10,
    source="Gonzalez et al. 2023",
    order=(2, 3),
    eta=(0.0, math.inf),
    texts={"order": "the evaluations a step.", "eta": "strength of the noise: 1 is the reverse SDE's."},
)
def seeds_2(here: Point, there: Point, past: Past, *, order: int = 2, eta: float = 1.0, noise_scale: float = 1.0) -> Steps:
    """SEEDS-2 and -3: exponential Runge-Kutta on the reverse SDE, its noise exact between the stages."""
    if not regular([here, there]):
        a, of_x0, noise = decay(here, there, eta)
        return Step(X * a + X0 * of_x0 + N * (noise * noise_scale))
    ends = [0.0, 0.5, 1.0] if order == 2 else [0.0, 1 / 3, 2 / 3, 1.0]
    h, stages, at = there.lam - here.lam, [], here
    for k, end in enumerate(ends[1:]):
        to = there if end == 1 else between(past.schedule, here, there, end)
        a, of_x0, _ = decay(here, to, eta)
        prev = (BASE if k else X) * a + (H[k - 1] if k else U) * of_x0
        if k:
            # Order 2 weighs the two predictions alike in the middle, order 3 integrates the slope between them.
            z = (1 + eta) * end * h
            slope = of_x0 if order == 2 else to.alpha * (math.expm1(-z) / z + 1) * end / ends[k]
            prev = prev + (U - H[k - 1]) * slope
        for j in range(k + 1 if eta else 0):
            # Each noise decays from the stage that brings it in to this one.
            fresh, kept = -math.expm1(-2 * eta * (ends[j + 1] - ends[j]) * h), math.exp(-eta * (end - ends[j + 1]) * h)
            prev = prev + NOISE[j] * (to.sigma * kept * math.sqrt(fresh) * noise_scale)
        stages.append(Step(prev, at=at))
        at = to
    return stages


alias("dpmpp_2s_a", dpmpp_2s_ancestral, "A1111")
alias("seeds_3", seeds_2, "ComfyUI", order=3)
