"""Linear multistep methods on the probability flow: one evaluation a step, earlier derivatives extrapolated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from pyfold.diffusion.integrals import lagrange_integrals
from pyfold.diffusion.plan import Builder, Plan
from pyfold.diffusion.predictions import convert
from pyfold.diffusion.samplers.ancestral import Spacing
from pyfold.diffusion.samplers.orders import check_order, usable_order
from pyfold.diffusion.samplers.runge_kutta import Frame, check_scale, choose_frame
from pyfold.diffusion.schedules import Point, Schedule
from pyfold.diffusion.spacings import choose_points


def _stage(build: Builder, frame: Frame, here: Point, there: Point, slopes: Sequence[float]) -> None:
    """``x' / scale' = x / scale + slopes_0 u + sum_j slopes_j u_{-j}``."""
    check_scale(frame, here)
    scale = frame.scale(there)
    c_u, *b = (scale * slope for slope in slopes)
    build.stage(here, a=scale / frame.scale(here), c_u=c_u, b=b)


def lms(
    schedule: Schedule,
    steps: int = 30,
    *,
    prediction: str = "epsilon",
    order: int = 4,
    clip: float | None = None,
    frame: str | None = None,
    spacing: Spacing = "karras",
) -> Plan:
    """Adams-Bashforth with variable steps, up to order 4: the exact integral of the interpolating polynomial.

    k-diffusion's LMS, whose integrals are numerical; Zhang and Chen (2023) call it iPNDM with variable steps.

    Args:
        schedule, steps, prediction, clip, frame, spacing: as for :func:`pyfold.diffusion.euler`.
        order: from 1 to 4.
    """
    chosen = choose_frame(schedule, frame)
    check_order(order, 4)
    build = Builder(schedule, prediction, clip, chosen.u)
    points = choose_points(schedule, steps, spacing)
    s = [chosen.s(p) for p in points]
    for i, (here, there) in enumerate(pairwise(points)):
        nodes = s[max(i - order + 1, 0) : i + 1][::-1]
        _stage(build, chosen, here, there, lagrange_integrals(nodes, s[i], s[i + 1]))
    return build.plan("lms")


#: Adams-Bashforth with equal steps, the newest derivative first.
ADAMS_BASHFORTH = ([1.0], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])


def ipndm(
    schedule: Schedule,
    steps: int = 30,
    *,
    prediction: str = "epsilon",
    order: int = 4,
    clip: float | None = None,
    frame: str | None = None,
    spacing: Spacing = "karras",
) -> Plan:
    """Adams-Bashforth with the coefficients of equal steps, started at order 1 (Zhang and Chen 2023, appendix B).

    Args:
        schedule, steps, prediction, order, clip, frame, spacing: as for :func:`lms`.
    """
    chosen = choose_frame(schedule, frame)
    check_order(order, 4)
    build = Builder(schedule, prediction, clip, chosen.u)
    for i, (here, there) in enumerate(pairwise(choose_points(schedule, steps, spacing))):
        step = chosen.s(there) - chosen.s(here)
        _stage(build, chosen, here, there, [step * c for c in ADAMS_BASHFORTH[min(i, order - 1)]])
    return build.plan("ipndm")


def _classical(build: Builder, frame: Frame, here: Point, middle: Point, there: Point) -> None:
    """Runge and Kutta's step of order 4: of its derivatives the first is kept, behind an entry to be replaced.

    With ``y = x / scale``, half step d and step D, its states are ``y + d k1``, ``y + d k2`` and ``y + D k3``. Four entries
    have to hold three steps' k1 and what the last stage wants of k2 and k3, so the third stage remembers these as one,
    ``v = D / (3 d) (y + d k2) + D (D / d - 2) / 3 k3``: then ``y' = (1 - D / (3 d)) (y + D k3) + v + D / 6 (k1 + k4)``.
    """
    half, step = frame.s(middle) - frame.s(here), frame.s(there) - frame.s(here)
    if build.rows:
        build.replaces.add(len(build.rows))
    _stage(build, frame, here, middle, [half])
    _stage(build, frame, middle, middle, [half, -half])
    build.replaces.add(len(build.rows))
    _stage(build, frame, middle, there, [step, -half])
    third, ratio = build.rows[-1], step / half
    # u is taken, so k3 enters through x0: k3 = r x + t x0.
    r, t = convert("x0", build.u, middle.alpha, middle.sigma, build.schedule.data_std)
    p, q = convert(build.prediction, "x0", middle.alpha, middle.sigma, build.schedule.data_std)
    third |= {"p": p, "q": q, "a": third["a"] + third["c_u"] * r, "c_x0": third["c_u"] * t, "c_u": 0.0}
    of_k3 = step * (ratio - 2) / 3
    third |= {name: of_k3 * third.get(name, 0.0) for name in ("r", "s", "t")}
    third["r"] += ratio / 3 / frame.scale(middle)
    build.replaces.add(len(build.rows))
    _stage(build, frame, there, there, [step / 6, 1.0, step / 6])
    build.rows[-1]["a"] *= 1 - ratio / 3
    del build.begins[-3:]


def plms(
    schedule: Schedule,
    steps: int = 50,
    *,
    prediction: str = "epsilon",
    clip: float | None = None,
    frame: str | None = None,
    start: str = "heun",
    spacing: Spacing = "leading",
) -> Plan:
    """Pseudo linear multistep (Liu et al. 2022, PNDM, eq. 12).

    Args:
        schedule, steps, prediction, clip, frame, spacing: as for :func:`lms`.
        start: "heun": the first step is one of Heun's, ``steps + 1`` evaluations in all (the paper's S-PNDM corrected, as in
            Stable Diffusion); "runge_kutta": the first three steps are of the classical order 4 (the paper's F-PNDM, eq. 13),
            ``steps + 9`` evaluations.
    """
    if start not in ("heun", "runge_kutta"):
        raise ValueError(f"start must be 'heun' or 'runge_kutta', got {start!r}")
    chosen = choose_frame(schedule, frame)
    build = Builder(schedule, prediction, clip, chosen.u)
    points = choose_points(schedule, steps, spacing)
    s = [chosen.s(p) for p in points]
    if start == "runge_kutta" and len(points) < 5:
        raise ValueError(f"steps must be at least 4 for start 'runge_kutta', got {len(points) - 1}")
    for i, (here, there) in enumerate(pairwise(points)):
        slopes = [(s[i + 1] - s[i]) * c for c in ADAMS_BASHFORTH[min(i, 3)]]
        if start == "runge_kutta":
            if i < 3:
                _classical(build, chosen, here, schedule.at((here.t + there.t) / 2), there)
                continue
            if i == 3:
                # In front of the three steps' derivatives lies one of the last stages'.
                slopes.insert(1, 0.0)
                build.replaces.add(len(build.rows))
        elif 1 <= i <= 3:
            # The corrector's derivative lies between the first one and the others, and is not one of the method's.
            slopes.insert(i, 0.0)
        _stage(build, chosen, here, there, slopes)
        if i == 0 and start == "heun" and there.sigma:
            _stage(build, chosen, there, there, [slopes[0] / 2, -slopes[0] / 2])
    return build.plan("plms")


def gradient_estimation(
    schedule: Schedule,
    steps: int = 30,
    *,
    prediction: str = "epsilon",
    gamma: float = 2.0,
    clip: float | None = None,
    frame: str | None = None,
    spacing: Spacing = "karras",
) -> Plan:
    """Euler's method along ``gamma u + (1 - gamma) u_{-1}`` (Permenter and Yuan 2024, algorithm 2).

    Args:
        schedule, steps, prediction, clip, frame, spacing: as for :func:`lms`.
        gamma: 1 is Euler's method.
    """
    if not math.isfinite(gamma):
        raise ValueError(f"gamma must be finite, got {gamma}")
    chosen = choose_frame(schedule, frame)
    build = Builder(schedule, prediction, clip, chosen.u)
    for i, (here, there) in enumerate(pairwise(choose_points(schedule, steps, spacing))):
        step = chosen.s(there) - chosen.s(here)
        _stage(build, chosen, here, there, [step * gamma, step * (1 - gamma)] if i else [step])
    return build.plan("gradient_estimation")


def deis(
    schedule: Schedule,
    steps: int = 20,
    *,
    prediction: str = "epsilon",
    order: int = 3,
    final_order: int | None = None,
    clip: float | None = None,
    spacing: Spacing = "trailing",
) -> Plan:
    """Exponential integrator with epsilon a polynomial in log(sigma / alpha), up to order 4 (Zhang and Chen 2023, eq. 15).

    Args:
        schedule, steps, prediction, clip, spacing: as for :func:`lms`.
        order: from 1 to 4; steps at either end at which the logarithm is infinite are of order 1.
        final_order: highest order of the last step, one more of the one before, and so on; None for no limit.
    """
    check_order(order, 4)
    check_order(order if final_order is None else final_order, 4, "final_order")
    build = Builder(schedule, prediction, clip, "epsilon")
    points = choose_points(schedule, steps, spacing)
    for i, (here, there) in enumerate(pairwise(points)):
        if here.alpha == 0:
            build.stage(here, c_x0=there.alpha, c_u=there.sigma)
            continue
        slopes = [there.ratio - here.ratio]
        if there.sigma:
            now = usable_order(points, i, order, final_order)
            nodes = [-p.lam for p in points[i - now + 1 : i + 1][::-1]]
            slopes = lagrange_integrals(nodes, -here.lam, -there.lam, np.exp)
        build.stage(here, a=there.alpha / here.alpha, c_u=there.alpha * slopes[0], b=[there.alpha * c for c in slopes[1:]])
    return build.plan("deis")
