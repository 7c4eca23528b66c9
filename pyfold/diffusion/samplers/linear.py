"""Linear multistep methods on the probability flow: one evaluation a step, earlier derivatives extrapolated."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from pyfold.diffusion.formulas import EPSILON, Form, H, Step, U, X, weighted
from pyfold.diffusion.integrals import lagrange_integrals
from pyfold.diffusion.samplers._declare import NOISE_FRAME, Frame, Past, Steps, alias, sampler
from pyfold.diffusion.samplers._starters import Start, derivatives_in_lambda, in_frame, starting
from pyfold.diffusion.samplers.exponential import single_stages
from pyfold.diffusion.samplers.runge_kutta import from_pure_noise, line
from pyfold.diffusion.schedule import Point, Schedule

#: Adams-Bashforth with equal steps, the newest derivative first.
ADAMS_BASHFORTH = ([1.0], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])


_adams = partial(sampler, 30, keeps="frame", needs_signal=True, order=(1, 4))


def _adams_step(
    here: Point, there: Point, past: Past, order: int, starter: str, frame: Frame, end: Callable[[int, tuple[Form, ...]], Form]
) -> Steps:
    """``end``: of the step, by so many earlier derivatives, which are those of the forms."""
    start = Start(starter, order, len(past) + 1)
    if start.runs:
        return starting(in_frame(past.schedule, frame, here, there, order - 1, U), start.first)
    return start.step(Step(end(min(len(past), order - 1), start.history)))


@_adams(source="k-diffusion's LMS, whose integrals are numerical; Zhang and Chen 2023, iPNDM", way="turns")
def lms(
    here: Point,
    there: Point,
    past: Past,
    *,
    order: int = 4,
    starter: str = "lower_order",
    frame: Frame = NOISE_FRAME,
) -> Steps:
    """Adams-Bashforth with variable steps: the exact integral of the interpolating polynomial."""

    def end(count: int, history: tuple[Form, ...]) -> Form:
        nodes = [frame.s(p) for p in (here, *(past[j] for j in range(count)))]
        slope = weighted((U, *history), lagrange_integrals(nodes, nodes[0], frame.s(there)))
        moved: Form = line(frame, here, there, X, Form()) + slope * frame.scale(there)
        return moved

    return _adams_step(here, there, past, order, starter, frame, end)


@_adams(source="Zhang and Chen 2023, appendix B")
def ipndm(
    here: Point,
    there: Point,
    past: Past,
    *,
    order: int = 4,
    starter: str = "lower_order",
    frame: Frame = NOISE_FRAME,
) -> Steps:
    """Adams-Bashforth with the coefficients of equal steps, of order 2 on unequal ones."""
    return _adams_step(
        here, there, past, order, starter, frame,
        lambda count, history: line(frame, here, there, X, weighted((U, *history), ADAMS_BASHFORTH[count])),
    )  # fmt: skip


@sampler(
    30,
    source="Permenter and Yuan 2024, algorithm 2",
    keeps="frame",
    needs_signal=True,
    gamma=(-math.inf, math.inf),
    texts={"gamma": "1 is Euler's method."},
)
def gradient_estimation(here: Point, there: Point, past: Past, *, gamma: float = 2.0, frame: Frame = NOISE_FRAME) -> Step:
    """Euler's method along ``gamma u + (1 - gamma) u_{-1}``."""
    slope = weighted((U, *H), [gamma, 1 - gamma]) if len(past) else U
    return Step(line(frame, here, there, X, slope))


def _classical(here: Point, middle: Point, there: Point, frame: Frame, first: bool, u: Form) -> Steps:
    """Runge and Kutta's step of order 4: of its derivatives the first is kept, behind an entry to be overwritten.

    With ``y = x / scale``, half step d and step D, its states are ``y + d k1``, ``y + d k2`` and ``y + D k3``. Four entries
    have to hold three steps' k1 and what the last stage wants of k2 and k3, so the third stage keeps these as one,
    ``v = D / (3 d) (y + d k2) + D (D / d - 2) / 3 k3``: then ``y' = (1 - D / (3 d)) (y + D k3) + v + D / 6 (k1 + k4)``.
    """
    half, step = frame.s(middle) - frame.s(here), frame.s(there) - frame.s(here)
    ratio, scale = step / half, frame.scale(there)
    kept = X * (ratio / 3 / frame.scale(middle)) + U * (step * (ratio - 2) / 3)
    last = X * (1 - ratio / 3) + (u * (step / 6) + H[0] + H[1] * (step / 6)) * scale
    return (
        Step(line(frame, here, middle, X, u), overwrites=not first),
        Step(line(frame, middle, middle, X, Form()) + (u - H[0]) * (frame.scale(middle) * half), at=middle),
        Step(X * (scale / frame.scale(middle)) + (u * step - H[0] * half) * scale, kept, at=middle, overwrites=True),
        Step(last, at=there, overwrites=True),
    )


def _enough(schedule: Schedule, points: list[Point], options: dict[str, Any]) -> list[Point]:
    if options["start"] == "runge_kutta" and len(points) < 5:
        raise ValueError(f"steps must be at least 4 for start 'runge_kutta', got {len(points) - 1}")
    return points


@sampler(
    50,
    source="Liu et al. 2022, PNDM, eq. 12; as in Stable Diffusion",
    keeps="frame",
    needs_signal=True,
    spacing="leading",
    on_sigmas=False,
    points=_enough,
    start=("heun", "runge_kutta"),
    texts={
        "start": "the first step is one of Heun's, ``steps + 1`` evaluations in all (S-PNDM, corrected), or the first three "
        "are of the classical order 4 (F-PNDM, eq. 13), ``steps + 9`` evaluations."
    },
)
def plms(here: Point, there: Point, past: Past, *, start: str = "heun", frame: Frame = NOISE_FRAME) -> Steps:
    """Pseudo linear multistep: Adams-Bashforth of order 4 with the coefficients of equal steps."""
    i = len(past)
    weights = list(ADAMS_BASHFORTH[min(i, 3)])
    if start == "runge_kutta":
        if i < 3:
            return _classical(here, past.schedule.at((here.t + there.t) / 2), there, frame, i == 0, U)
        if i == 3:
            # In front of the three steps' derivatives lies one of the last stages'.
            weights.insert(1, 0.0)
    elif 1 <= i <= 3:
        # The corrector's derivative lies between the first one and the others, and is not one of the method's.
        weights.insert(i, 0.0)
    first = Step(line(frame, here, there, X, weighted((U, *H), weights)), overwrites=start == "runge_kutta" and i == 3)
    if i or start != "heun" or there.sigma == 0:
        return first
    half = frame.scale(there) * (frame.s(there) - frame.s(here)) / 2
    return first, Step(X + (U - H[0]) * half, at=there, starts=True)


@sampler(
    20,
    source="Zhang and Chen 2023, eq. 15",
    keeps="epsilon",
    spacing="trailing",
    order=(1, 4),
    final_order=(1, 4),
)
def deis(
    here: Point,
    there: Point,
    past: Past,
    *,
    order: int = 3,
    starter: str = "lower_order",
    final_order: int | None = None,
) -> Steps:
    """Exponential integrator with epsilon a polynomial in log(sigma / alpha); of order 1 where that is infinite."""
    if here.alpha == 0:
        return from_pure_noise(there)
    start = Start(starter, order, derivatives_in_lambda(past))
    if start.runs:
        return starting(single_stages(past.schedule, here, there, order - 1, U), start.first)
    weights = [there.ratio - here.ratio]
    if there.sigma:
        now = past.order(order, final_order)
        nodes = [-p.lam for p in (here, *(past[j] for j in range(now - 1)))]
        weights = lagrange_integrals(nodes, -here.lam, -there.lam, np.exp)
    return start.step(Step((X / here.alpha + weighted((EPSILON, *start.history), weights)) * there.alpha))


alias("ipndm_v", lms, "ComfyUI")
alias("pndm", plms, "diffusers", start="runge_kutta")
