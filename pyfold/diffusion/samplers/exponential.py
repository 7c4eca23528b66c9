"""Exponential integrators in ``lambda = log(alpha / sigma)``: the DPM-Solver family and its relatives.

The linear part of the flow is solved exactly, so that a step of length ``h = lambda' - lambda`` multiplies x by
``sigma' / sigma`` (x0 predicted, "++") or ``alpha' / alpha`` (epsilon predicted). With noise of strength eta the decay of x
is faster, by ``exp(-eta h)``, and ``sigma' sqrt(1 - exp(-2 eta h))`` of noise makes up for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from pyfold.diffusion.formulas import BASE, X0, Form, H, N, Step, U, X, weighted
from pyfold.diffusion.samplers._declare import Past, Steps, alias, check_option, regular, sampler
from pyfold.diffusion.samplers._starters import Start, check_starter, derivatives_in_lambda, starting
from pyfold.diffusion.samplers.ancestral import ancestral_split, less_noise
from pyfold.diffusion.schedule import Point, Schedule
from pyfold.diffusion.spacings import ratio_span

SOLVERS = ("midpoint", "heun", "exact")
_SOLVER = (
    '"midpoint" and "heun" weigh the derivative of order 2, both with the published order 3, which converges with order 2 '
    'only; "exact" integrates the interpolating polynomial, and converges with order 3.'
)


def decay(here: Point, there: Point, eta: float = 0.0) -> tuple[Any, Any, Any]:
    """(of x, of x0, of noise) in one step of constant x0."""
    h = there.lam - here.lam
    a = there.sigma / here.sigma * (np.exp(-eta * h) if eta else 1.0)
    return a, there.alpha - a * here.alpha, there.sigma * np.sqrt(-np.expm1(-2 * eta * h)) if eta else 0.0


def growth(here: Point, there: Point) -> tuple[Any, Any]:
    """(of x, of epsilon) in one step of constant epsilon."""
    a = there.alpha / here.alpha
    return a, there.sigma - a * here.sigma


def bends(h: Any, plus: bool) -> tuple[Any, Any]:
    """Of h times the first and h^2 times the second derivative in one step: times alpha' of x0 (plus), sigma' of epsilon."""
    first = np.expm1(-h) / h + 1 if plus else 1 - np.expm1(h) / h
    return first, 0.5 - first / h if plus else 0.5 + first / h


def differences(levels: Sequence[Point], values: Sequence[Form]) -> list[Form]:
    """h d/dlambda and h^2 d^2/dlambda^2 of values here, before, ...; levels there, here, before, ..."""
    there, here, *past = levels
    if len(values) == 1:
        return []
    h = there.lam - here.lam
    r0 = (here.lam - past[0].lam) / h
    newest = (values[0] - values[1]) / r0
    if len(values) == 2:
        return [newest]
    r1 = (past[0].lam - past[1].lam) / h
    older = (values[1] - values[2]) / r1
    bend = (newest - older) / (r0 + r1)
    return [newest + bend * r0, bend]


def multistep(
    levels: Sequence[Point],
    linear: tuple[Any, Any, Any],
    size: Any,
    h: Any,
    us: Sequence[Form],
    solver: str,
    plus: bool,
) -> Step:
    """The linear part, and the differences of u here, before, ... weighed by the solver; ``size`` of the integrals over h.

    "heun_sde" and "exact_sde" are diffusers' SDE forms of order 3, with one second difference less.
    """
    a, of_u, noise = linear
    step = X * a + us[0] * of_u + N * noise
    slopes = differences(levels, us[: len(levels) - 1])
    if len(slopes) == 1 and solver == "midpoint":
        step = step + slopes[0] * (of_u / 2)
    elif slopes:
        first, second = bends(h, plus)
        # The published order 3 takes the second difference for the second derivative, of which it is half.
        weights = [size * first, size * (second - solver.endswith("_sde")) * (2 if solver.startswith("exact") else 1)]
        step = step + weighted(slopes, weights)
    return Step(step)


def levels_of(here: Point, there: Point, past: Past, order: int) -> list[Point]:
    """there, here, before, ...: those that a method of that order looks at."""
    return [there, here, *(past[j] for j in range(order - 1))]


_multistep = partial(sampler, 20, order=(1, 3), final_order=(1, 3), solver=SOLVERS)


@_multistep(
    source="Lu et al. 2022b, algorithm 2; k-diffusion",
    way=lambda options: "falls" if options.get("eta") else "turns",
    eta=(0.0, math.inf),
    check=check_starter,
    texts={"solver": _SOLVER, "eta": "strength of the noise: 1 is the reverse SDE's."},
)
def dpmpp_multistep(
    here: Point,
    there: Point,
    past: Past,
    *,
    order: int = 2,
    eta: float = 0.0,
    noise_scale: float = 1.0,
    solver: str = "midpoint",
    starter: str = "lower_order",
    final_order: int | None = None,
) -> Steps:
    """DPM-Solver++ multistep: 1, 2M, 3M and, with eta, their SDE forms; a last step to zero noise is of order 1."""
    a, of_x0, noise = decay(here, there, eta)
    start = Start(starter, order, derivatives_in_lambda(past))
    if start.runs:
        return starting(single_stages(past.schedule, here, there, order - 1, U, plus=True), start.first)
    levels, h = levels_of(here, there, past, past.order(order, final_order)), (1 + eta) * (there.lam - here.lam)
    us = (U, *start.history)
    return start.step(multistep(levels, (a, of_x0, noise * noise_scale), there.alpha, h, us, solver, True))


def _check_stochastic(options: dict[str, Any]) -> None:
    check_starter(options)
    if options["stochastic"]:
        check_option("order", options["order"], (1, 2))


@_multistep(
    source="Lu et al. 2022a, eq. 3.3; 2022b, appendix for the SDE",
    keeps="epsilon",
    check=_check_stochastic,
    texts={"solver": _SOLVER, "stochastic": "the reverse SDE, of order 1 or 2."},
)
def dpm_multistep(
    here: Point,
    there: Point,
    past: Past,
    *,
    order: int = 2,
    stochastic: bool = False,
    solver: str = "midpoint",
    starter: str = "lower_order",
    final_order: int | None = None,
) -> Steps:
    """DPM-Solver multistep, on epsilon."""
    if not regular([here, there]):
        # No noise left, or no signal yet: the limit, which is DDIM's step.
        return Step(X0 * there.alpha + U * there.sigma)
    (a, of_epsilon), h, twice = growth(here, there), there.lam - here.lam, 2.0 if stochastic else 1.0
    noise = there.sigma * np.sqrt(np.expm1(2 * h)) if stochastic else 0.0
    start = Start(starter, order, derivatives_in_lambda(past))
    if start.runs:
        return starting(single_stages(past.schedule, here, there, order - 1, U), start.first)
    levels, us = levels_of(here, there, past, past.order(order, final_order)), (U, *start.history)
    return start.step(multistep(levels, (a, twice * of_epsilon, noise), twice * there.sigma, h, us, solver, False))


@sampler(20, source="Zhang et al. 2023, eq. 14")
def res_multistep(here: Point, there: Point, past: Past, *, eta: float = 0.0, noise_scale: float = 1.0) -> Step:
    """Refined exponential solver, multistep of order 2, with ancestral noise of strength eta."""
    aim, noise = less_noise(here, there, eta)
    a, of_x0, _ = decay(here, aim)
    step = X * a + U * of_x0 + N * (noise * noise_scale)
    if len(past) and regular([past[0], here, aim]):
        # The slope is over the step before as it was aimed, without the noise that led back up to here.
        before, _ = less_noise(past[0], here, eta)
        h = aim.lam - here.lam
        step = step + (U - H[0]) * (there.alpha * bends(h, True)[0] * h / (before.lam - past[0].lam))
    return Step(step)


# --- singlestep


def between(schedule: Schedule, here: Point, there: Point, fraction: float) -> Point:
    """The point at that part of the way in lambda."""
    return schedule.at_ratio(math.exp(-(here.lam + fraction * (there.lam - here.lam))))


def single_stages(schedule: Schedule, here: Point, there: Point, order: int, u: Form, *, plus: bool = False) -> list[Step]:
    """One step of DPM-Solver (plus: ++) of order 1, 2 or 3 from x alone, between points of finite lambda."""

    def along(start: Form, to: Point, slope: Form = u, first: Form = u, fraction: float = 0.0) -> Form:
        """From the start with u of its first stage, and ``slope`` a part of the way on."""
        a, of_u = decay(here, to)[:2] if plus else growth(here, to)
        moved: Form = start * a + first * of_u
        if not fraction:
            return moved
        bend = bends((to.lam - here.lam), plus)[0] * (to.alpha if plus else to.sigma) / fraction
        bent: Form = moved + (slope - first) * bend
        return bent

    if order == 1:
        return [Step(along(X, there))]
    if order == 2:
        middle = between(schedule, here, there, 0.5)
        return [Step(along(X, middle)), Step(along(BASE, there, first=u), at=middle)]
    one, two = (between(schedule, here, there, f) for f in (1 / 3, 2 / 3))
    return [
        Step(along(X, one)),
        Step(along(BASE, two, u, H[0], 1 / 2), at=one),
        Step(along(BASE, there, u, H[1], 2 / 3), at=two),
    ]


def _singlestep(here: Point, there: Point, past: Past, order: int, plus: bool) -> Steps:
    if regular([here, there]):
        return single_stages(past.schedule, here, there, order, U, plus=plus)
    a, of_x0, _ = decay(here, there)
    return Step(X * a + X0 * of_x0)


@sampler(10, source="Lu et al. 2022a, algorithms 1 and 2", keeps="epsilon", order=(1, 3))
def dpm_singlestep(here: Point, there: Point, past: Past, *, order: int = 2) -> Steps:
    """DPM-Solver-1, -2 and -3: ``order`` evaluations a step but one to zero noise, no memory between steps."""
    return _singlestep(here, there, past, order, False)


@sampler(10, source="Lu et al. 2022b, algorithm 1", order=(1, 3))
def dpmpp_singlestep(here: Point, there: Point, past: Past, *, order: int = 2) -> Steps:
    """DPM-Solver++ 2S and 3S: as :func:`dpm_singlestep`, on x0."""
    return _singlestep(here, there, past, order, True)


def _orders(steps: int) -> list[int]:
    """Steps of order 3 with what is left at the end."""
    count = steps // 3 + 1
    return [3] * (count - 2) + [2, 1] if steps % 3 == 0 else [3] * (count - 1) + [steps % 3]


def _uniform(schedule: Schedule, points: list[Point], options: dict[str, Any]) -> list[Point]:
    check_option("steps", options["steps"], (1, 10**6))
    low, high = ratio_span(schedule, options["sigma_min"], options["sigma_max"])
    levels = np.exp(np.linspace(math.log(high), math.log(low), len(_orders(options["steps"])) + 1))
    return schedule.at_ratios(levels.tolist())


@sampler(
    20,
    source="Lu et al. 2022a, section 3.4",
    keeps="epsilon",
    spacing=None,
    points=_uniform,
    steps_are="evaluations of the model; the steps between are uniform in lambda.",
)
def dpm_fast(
    here: Point,
    there: Point,
    past: Past,
    *,
    steps: int = 20,
    eta: float = 0.0,
    noise_scale: float = 1.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Steps:
    """DPM-Solver-fast: ``steps`` evaluations, in steps of order 3 with what is left at the end."""
    aim, noise = ancestral_aim(here, there, eta, past.points[-1])
    *stages, last = single_stages(past.schedule, here, aim, _orders(steps)[len(past)], U)
    return [*stages, Step(last.prev + N * (noise * noise_scale), at=last.at)]


def ancestral_aim(here: Point, there: Point, eta: float, end: Point) -> tuple[Point, float]:
    """Where a step with noise aims, not below the end's noise, in the scale of ``there``; and the noise that leads up to it."""
    if not eta:
        return there, 0.0
    down = max(ancestral_split(here, there, eta)[0], end.ratio)
    aim = Point(there.t, there.alpha, there.alpha * down)
    return aim, there.alpha * math.sqrt(max(there.ratio**2 - down**2, 0.0))


alias("dpmpp_2m", dpmpp_multistep, "k-diffusion and ComfyUI")
alias("dpmpp_2m_sde", dpmpp_multistep, "k-diffusion and ComfyUI", eta=1.0)
alias("dpmpp_3m_sde", dpmpp_multistep, "k-diffusion and ComfyUI", order=3, eta=1.0, solver="heun")
alias("res_multistep_ancestral", res_multistep, "ComfyUI", eta=1.0)
