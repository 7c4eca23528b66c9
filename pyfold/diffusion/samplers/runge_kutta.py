"""Runge-Kutta methods on the probability flow, as tableaus: Euler, Heun, midpoint; with churn or ancestral noise.

In a frame ``x / scale = x0 + s eps`` (or ``(1 - s) x0 + s eps``) the flow is ``d(x / scale) / ds = u`` with u = eps (or
eps - x0), whatever the schedule: Karras et al. 2022, eq. 4; Lipman et al. 2023, eq. 20.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pyfold.diffusion.formulas import BASE, EPSILON, X0, Form, H, N, Step, U, X
from pyfold.diffusion.samplers._declare import FRAMES, NOISE_FRAME, Frame, Past, Steps, alias, sampler
from pyfold.diffusion.samplers.ancestral import ancestral_split, flow_split
from pyfold.diffusion.schedule import Point, Schedule


def line_coefficients(frame: Frame, here: Point, there: Point) -> tuple[Any, Any]:
    """(of the start, of the slope) in ``x' / scale' = x / scale + (s' - s) slope``."""
    scale = frame.scale(there)
    return scale / frame.scale(here), scale * (frame.s(there) - frame.s(here))


def line(frame: Frame, here: Point, there: Point, start: Form, slope: Form) -> Form:
    """Where the slope leads from the start, straight in the frame."""
    if frame is NOISE_FRAME and here.alpha == 0:
        raise ValueError("spacing must not start at pure noise (alpha 0) in the frame 'noise'; the frame 'flow' may")
    of_start, of_slope = line_coefficients(frame, here, there)
    end: Form = start * of_start + slope * of_slope
    return end


def from_pure_noise(there: Point) -> Step:
    """The first step in the frame "noise", where the line is infinitely long: its limit, DDIM's step."""
    return Step(X0 * there.alpha + EPSILON * there.sigma)


@sampler(30, source="Karras et al. 2022, section 3", keeps="frame", spacing="trailing", way="rests")
def euler(here: Point, there: Point, past: Past, *, frame: Frame = NOISE_FRAME) -> Step:
    """Euler's method, order 1; the same numbers as DDIM without clip."""
    if frame is NOISE_FRAME and here.alpha == 0:
        return from_pure_noise(there)
    return Step(line(frame, here, there, X, U))


@sampler(18, source="Karras et al. 2022, algorithm 1", keeps="frame", way="rests")
def heun(here: Point, there: Point, past: Past, *, frame: Frame = NOISE_FRAME) -> Steps:
    """Heun's method, order 2; two evaluations a step but the last."""
    if here.alpha == 0 and frame.u == "epsilon":
        return from_pure_noise(there)
    first = Step(line(frame, here, there, X, U))
    if there.sigma == 0:
        return first
    return first, Step(line(frame, here, there, BASE, (H[0] + U) * 0.5), at=there)


@sampler(18, source="k-diffusion's DPM-Solver-2", keeps="frame", way="rests", given=["middle"])
def dpm2(here: Point, there: Point, past: Past, *, frame: Frame = NOISE_FRAME, middle: Point | None = None) -> Steps:
    """The midpoint method, order 2, the middle at the geometric mean of the noise levels."""
    if here.alpha == 0 and frame.u == "epsilon":
        return from_pure_noise(there)
    if there.sigma == 0:
        return Step(line(frame, here, there, X, U))
    middle = middle or past.schedule.at_ratio(math.sqrt(here.ratio * there.ratio))
    return Step(line(frame, here, middle, X, U)), Step(line(frame, here, there, BASE, U), at=middle)


_FLOW: dict[str, Any] = {"spacing": "trailing", "prediction": "flow", "keeps": "flow", "schedules": "flow", "way": "rests"}
_FLOW_SOURCE = "Lipman et al. 2023; Liu et al. 2022"


@sampler(28, source=_FLOW_SOURCE, **_FLOW)
def flow_euler(here: Point, there: Point, past: Past) -> Step:
    """Euler's method on the flow ``dx/ds = eps - x0`` from noise to data, in equal steps of the time before its shift."""
    return euler.rule(here, there, past, frame=FRAMES["flow"])  # type: ignore[return-value]


@sampler(14, source=_FLOW_SOURCE, **_FLOW)
def flow_heun(here: Point, there: Point, past: Past) -> Steps:
    """Heun's method on the flow, order 2: the mean of the velocities at both ends; two evaluations a step but the last."""
    return heun.rule(here, there, past, frame=FRAMES["flow"])


@sampler(18, source="k-diffusion", keeps="epsilon", given=["middle", "split"])
def dpm2_ancestral(
    here: Point, there: Point, past: Past, *, eta: float = 1.0, noise_scale: float = 1.0, middle: Point | None = None,
    split: tuple[float, float] | None = None,
) -> Steps:  # fmt: skip
    """The midpoint method to less noise than wanted, the rest put back as new noise."""
    down, up = split or ancestral_split(here, there, eta)
    if here.alpha == 0:
        return Step(X0 * there.alpha + EPSILON * (there.alpha * down) + N * (there.alpha * up * noise_scale))
    if down == 0:
        return Step(line(NOISE_FRAME, here, there, X, U))
    middle = middle or past.schedule.at_ratio(math.sqrt(here.ratio * down))
    # In the scale of `there`, only as far as `down`.
    prev = BASE * (there.alpha / here.alpha) + U * (there.alpha * (down - here.ratio))
    noised = prev + N * (there.alpha * up * noise_scale)
    return Step(line(NOISE_FRAME, here, middle, X, U)), Step(noised, at=middle)


@sampler(14, source="the midpoint method; its noise as in flow_ancestral", **{**_FLOW, "way": "falls"})
def flow_dpm2_ancestral(here: Point, there: Point, past: Past, *, eta: float = 1.0, noise_scale: float = 1.0) -> Steps:
    """The midpoint method on straight lines to less noise than wanted, the middle at the geometric mean of the two sigmas;
    the rest put back as new noise."""
    frame, (down, rescale, up) = FRAMES["flow"], flow_split(here, there, eta)
    if down == 0:
        return Step(line(frame, here, there, X, U))
    sigma, aim = math.sqrt(here.sigma * down), Point(there.t, 1 - down, down)
    middle = past.schedule.at_ratio(sigma / (1 - sigma))
    noised = line(frame, here, aim, BASE, U) * rescale + N * (up * noise_scale)
    return Step(line(frame, here, middle, X, U)), Step(noised, at=middle)


def _churned(schedule: Schedule, point: Point, count: int, options: dict[str, Any]) -> tuple[Point, float]:
    """(the point at more noise, how much of it that is in the ratio)."""
    gamma = min(options["churn"] / count, math.sqrt(2) - 1)
    if not (gamma and point.sigma and point.alpha and options["churn_min"] <= point.ratio <= options["churn_max"]):
        return point, 0.0
    up = schedule.at_ratio(point.ratio * (1 + gamma))
    return up, options["noise_scale"] * math.sqrt(up.ratio**2 - point.ratio**2)


def _start(schedule: Schedule, points: Sequence[Point], options: dict[str, Any]) -> tuple[float, float] | None:
    here, noise = _churned(schedule, points[0], len(points) - 1, options)
    return (here.alpha / points[0].alpha, noise * here.alpha) if noise else None


def _check_churn(options: dict[str, Any]) -> None:
    low, high = options["churn_min"], options["churn_max"]
    if not low <= high:
        raise ValueError(f"churn_min and churn_max must be churn_min <= churn_max, got {low} and {high}")


@sampler(
    18,
    source="Karras et al. 2022, algorithm 2",
    keeps="epsilon",
    churns=_start,
    way="rests",
    check=_check_churn,
    churn=(0.0, math.inf),
    method=("heun", "euler", "dpm2"),
    texts={
        "churn": "S_churn; before a step the noise grows by ``min(churn / steps, sqrt(2) - 1)`` of itself.",
        "churn_min": "least sigma / alpha at which it does.",
        "churn_max": "greatest sigma / alpha at which it does.",
        "method": "of the step.",
    },
)
def edm_stochastic(
    here: Point,
    there: Point,
    past: Past,
    *,
    churn: float = 40.0,
    churn_min: float = 0.05,
    churn_max: float = 50.0,
    noise_scale: float = 1.003,
    method: str = "heun",
) -> Steps:
    """Heun's method with noise put in before every step.

    Noise that a step wants before its model is added at the end of the step before, in the same pass.
    """
    options = {"churn": churn, "churn_min": churn_min, "churn_max": churn_max, "noise_scale": noise_scale}
    count = len(past.points) - 1
    up_here, _ = _churned(past.schedule, here, count, options)
    # No step wants noise after the last, which may end above zero and hand over to another sampler.
    ends = len(past) + 1 == count
    up_there, noise = (there, 0.0) if ends else _churned(past.schedule, there, count, options)
    step = {"heun": heun, "euler": euler, "dpm2": dpm2}[method].rule(up_here, there, past)
    *stages, last = [step] if isinstance(step, Step) else step
    first = replace(stages[0] if stages else last, at=up_here)
    prev = last.prev * (up_there.alpha / there.alpha) + N * (noise * up_there.alpha)
    last = replace(last if stages else first, prev=prev, churns_to=up_there if noise else None)
    return (first, *stages[1:], last) if stages else last


alias("dpm_2", dpm2, "k-diffusion and ComfyUI")
alias("dpm_2_ancestral", dpm2_ancestral, "k-diffusion and ComfyUI")
