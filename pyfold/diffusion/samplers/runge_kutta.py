"""Runge-Kutta methods on the probability flow, as tableaus: Euler, Heun, midpoint; with churn or ancestral noise.

In a frame ``x / scale = x0 + s eps`` (or ``(1 - s) x0 + s eps``) the flow is ``d(x / scale) / ds = u`` with u = eps (or
eps - x0), whatever the schedule: Karras et al. 2022, eq. 4; Lipman et al. 2023, eq. 20.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from pyfold.diffusion.plan import Builder, Plan, Stage
from pyfold.diffusion.samplers.ancestral import Spacing, ancestral_split, check_eta, check_noise_scale
from pyfold.diffusion.schedules import Point, Schedule, check_schedule
from pyfold.diffusion.spacings import choose_points


class Frame(NamedTuple):
    """Where the flow's curves are straightest: what x is divided by, the variable, and the derivative."""

    scale: Callable[[Point], float]
    s: Callable[[Point], float]
    u: str


#: As EDM and k-diffusion have it; and as flow matching has it, which is finite at pure noise too.
FRAMES = {
    "noise": Frame(lambda p: p.alpha, lambda p: p.ratio, "epsilon"),
    "flow": Frame(lambda p: p.alpha + p.sigma, lambda p: p.sigma / (p.alpha + p.sigma), "flow"),
}


def choose_frame(schedule: Schedule, frame: str | None) -> Frame:
    """The frame of that name; the schedule's own for None."""
    if frame is None:
        frame = "flow" if check_schedule(schedule).is_flow else "noise"
    if frame not in FRAMES:
        raise ValueError(f"frame must be 'noise' or 'flow', got {frame!r}")
    return FRAMES[frame]


def check_scale(frame: Frame, here: Point) -> None:
    """Whether the frame can start here."""
    if frame.scale(here) == 0:
        raise ValueError("spacing must not start at pure noise (alpha 0) in the frame 'noise'; the frame 'flow' may")


def _euler_step(build: Builder, frame: Frame, here: Point, there: Point) -> None:
    build.step(here, [Stage(there, *_line(frame, here, there, [1.0]))])


def _line(frame: Frame, here: Point, there: Point, weights: list[float]) -> tuple[float, list[float]]:
    """(of_x, of_u) of ``x' / scale' = x / scale + (s' - s) sum_j weights_j u_j``."""
    check_scale(frame, here)
    scale = frame.scale(there)
    return scale / frame.scale(here), [scale * (frame.s(there) - frame.s(here)) * w for w in weights]


def euler(
    schedule: Schedule,
    steps: int = 30,
    *,
    prediction: str = "epsilon",
    clip: float | None = None,
    frame: str | None = None,
    spacing: Spacing = "trailing",
) -> Plan:
    """Euler's method, order 1; the same numbers as DDIM without clip (Karras et al. 2022, section 3).

    Args:
        schedule, steps, prediction, clip, spacing: as for :func:`pyfold.diffusion.ddpm`; any schedule.
        frame: "noise" or "flow"; by default the schedule's own.
    """
    chosen = choose_frame(schedule, frame)
    build = Builder(schedule, prediction, clip, chosen.u)
    for here, there in pairwise(choose_points(schedule, steps, spacing)):
        if here.alpha == 0 and chosen.u == "epsilon":
            build.stage(here, c_x0=there.alpha, c_u=there.sigma)
        else:
            _euler_step(build, chosen, here, there)
    return build.plan("euler")


def flow_euler(
    schedule: Schedule,
    steps: int = 28,
    *,
    prediction: str = "flow",
    clip: float | None = None,
    spacing: Spacing = "trailing",
) -> Plan:
    """Euler's method on the flow ``dx/ds = eps - x0`` from noise to data (Lipman et al. 2023; Liu et al. 2022).

    Args:
        schedule: a flow schedule.
        steps: equal steps of the time before its shift.
        prediction, clip, spacing: as for :func:`pyfold.diffusion.ddpm`.
    """
    return _flow(schedule, steps, prediction, clip, spacing, _euler_step, "flow_euler")


def flow_heun(
    schedule: Schedule,
    steps: int = 14,
    *,
    prediction: str = "flow",
    clip: float | None = None,
    spacing: Spacing = "trailing",
) -> Plan:
    """Heun's method on the flow, order 2: the mean of the velocities at both ends; two evaluations a step but the last.

    Args:
        schedule, steps, prediction, clip, spacing: as for :func:`flow_euler`.
    """
    return _flow(schedule, steps, prediction, clip, spacing, _heun_step, "flow_heun")


def _flow(schedule, steps, prediction, clip, spacing, step, name):
    if not check_schedule(schedule).is_flow:
        raise ValueError(f"schedule must be a flow schedule, got {schedule.name}")
    points = choose_points(schedule, steps, spacing)
    if prediction == "epsilon" and points[0].alpha == 0:
        # A predicted epsilon says nothing of x0 at pure noise: a thousandth of the time below it does.
        points[0] = schedule.at_ratio(999.0)
    build = Builder(schedule, prediction, clip, "flow")
    for here, there in pairwise(points):
        step(build, FRAMES["flow"], here, there)
    return build.plan(name)


def _heun_step(build: Builder, frame: Frame, here: Point, there: Point) -> None:
    if there.sigma == 0:
        _euler_step(build, frame, here, there)
        return
    stages = [Stage(there, *_line(frame, here, there, weights)) for weights in ([1.0], [0.5, 0.5])]
    build.step(here, stages)


def _midpoint_step(build: Builder, frame: Frame, here: Point, there: Point) -> None:
    if there.sigma == 0:
        _euler_step(build, frame, here, there)
        return
    middle = build.schedule.at_ratio(math.sqrt(here.ratio * there.ratio))
    build.step(
        here,
        [Stage(middle, *_line(frame, here, middle, [1.0])), Stage(there, *_line(frame, here, there, [0.0, 1.0]))],
    )


def heun(
    schedule: Schedule,
    steps: int = 18,
    *,
    prediction: str = "epsilon",
    clip: float | None = None,
    frame: str | None = None,
    spacing: Spacing = "karras",
) -> Plan:
    """Heun's method, order 2 (Karras et al. 2022, algorithm 1); two evaluations a step but the last.

    Args:
        schedule, steps, prediction, clip, frame, spacing: as for :func:`euler`.
    """
    return _run(schedule, steps, prediction, clip, frame, spacing, _heun_step, "heun")


def dpm2(
    schedule: Schedule,
    steps: int = 18,
    *,
    prediction: str = "epsilon",
    clip: float | None = None,
    frame: str | None = None,
    spacing: Spacing = "karras",
) -> Plan:
    """The midpoint method, order 2, the middle at the geometric mean of the noise levels (k-diffusion's DPM-Solver-2).

    Args:
        schedule, steps, prediction, clip, frame, spacing: as for :func:`euler`.
    """
    return _run(schedule, steps, prediction, clip, frame, spacing, _midpoint_step, "dpm2")


def _run(schedule, steps, prediction, clip, frame, spacing, step, name):
    chosen = choose_frame(schedule, frame)
    points = choose_points(schedule, steps, spacing)
    build = Builder(schedule, prediction, clip, chosen.u)
    for here, there in pairwise(points):
        step(build, chosen, here, there)
    return build.plan(name)


def dpm2_ancestral(
    schedule: Schedule,
    steps: int = 18,
    *,
    prediction: str = "epsilon",
    eta: float = 1.0,
    noise_scale: float = 1.0,
    clip: float | None = None,
    spacing: Spacing = "karras",
) -> Plan:
    """``dpm2`` to less noise than wanted, the rest put back as new noise (k-diffusion).

    Args:
        schedule, steps, prediction, clip, spacing: as for :func:`euler`.
        eta, noise_scale: as for :func:`pyfold.diffusion.euler_ancestral`.
    """
    check_noise_scale(noise_scale)
    build = Builder(schedule, prediction, clip, "epsilon")
    frame = FRAMES["noise"]
    check_eta(eta)
    for here, there in pairwise(choose_points(schedule, steps, spacing)):
        down, up = ancestral_split(here, there, eta)
        if down == 0:
            _euler_step(build, frame, here, there)
            continue
        middle = schedule.at_ratio(math.sqrt(here.ratio * down))
        # In the scale of `there`, only as far as `down`.
        of_x, slope = there.alpha / here.alpha, there.alpha * (down - here.ratio)
        noise = [(there.alpha * up * noise_scale, 1)]
        build.step(here, [Stage(middle, *_line(frame, here, middle, [1.0])), Stage(there, of_x, [0.0, slope], noise)])
    return build.plan("dpm2_ancestral")


def edm_stochastic(
    schedule: Schedule,
    steps: int = 18,
    *,
    prediction: str = "epsilon",
    churn: float = 40.0,
    churn_min: float = 0.05,
    churn_max: float = 50.0,
    noise_scale: float = 1.003,
    method: str = "heun",
    clip: float | None = None,
    spacing: Spacing = "karras",
) -> Plan:
    """Heun's method with noise put in before every step (Karras et al. 2022, algorithm 2).

    Noise that a step wants before its model is added at the end of the step before, in the same pass.

    Args:
        schedule, steps, prediction, clip, spacing: as for :func:`euler`.
        churn: S_churn; the noise grows by ``min(churn / steps, sqrt(2) - 1)`` of itself, where it is in
            [churn_min, churn_max].
        noise_scale: S_noise.
        method: "heun", "euler" or "dpm2".
    """
    check_noise_scale(noise_scale)
    methods = {"heun": _heun_step, "euler": _euler_step, "dpm2": _midpoint_step}
    if method not in methods:
        raise ValueError(f"method must be 'heun', 'euler' or 'dpm2', got {method!r}")
    if not 0 <= churn < math.inf:
        raise ValueError(f"churn must be from 0, got {churn}")
    if not churn_min <= churn_max:
        raise ValueError(f"churn_min and churn_max must be churn_min <= churn_max, got {churn_min} and {churn_max}")
    build = Builder(schedule, prediction, clip, "epsilon")
    points = choose_points(schedule, steps, spacing)
    gamma = min(churn / (len(points) - 1), math.sqrt(2) - 1)

    def churned(point: Point) -> tuple[Point, float]:
        if not (gamma and point.sigma and churn_min <= point.ratio <= churn_max):
            return point, 0.0
        up = schedule.at_ratio(point.ratio * (1 + gamma))
        return up, noise_scale * math.sqrt(up.ratio**2 - point.ratio**2)

    here, first = churned(points[0])
    start = (here.alpha / points[0].alpha, first * here.alpha) if first else None
    for there in points[1:]:
        methods[method](build, FRAMES["noise"], here, there)
        here, noise = churned(there)
        build.rescale(here.alpha / there.alpha)
        build.rows[-1] |= {"d1": noise * here.alpha, "n1": len(build.rows) - 1}
    return build.plan("edm_stochastic", start=points[0], churn=start)
