"""Which points of a schedule a sampler visits: a decreasing list of :class:`Point`, the last one where it ends.

A spacing is a function ``(schedule, steps) -> points`` of ``steps + 1`` points. Samplers take the name of one, a function
(``functools.partial`` sets its options), or points; a slice of points starts in the middle, as image-to-image does.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from pyfold.diffusion.schedule import MOST_STEPS, NEARLY_PURE, Point, Schedule, check_number, check_schedule, check_steps

Points = Sequence[Point]
FINAL = ("zero", "sigma_min")


def _end(schedule: Schedule, points: list[Point], final: str) -> list[Point]:
    if not isinstance(final, str) or final not in FINAL:
        raise ValueError(f"final must be 'zero' or 'sigma_min', got {final!r}")
    points.append(schedule.clean() if final == "zero" else schedule.at(schedule.t_min))
    return check_points(points)


def check_points(points: Points, way: str = "falls") -> list[Point]:
    """At least two, finite, and less noisy one after another; noisier too where the way "turns", or alike where it "rests"."""
    points = list(points)
    if len(points) < 2:
        raise ValueError(f"spacing must have at least 2 points, got {len(points)}")
    for i, point in enumerate(points):
        if not isinstance(point, Point):
            raise TypeError(f"spacing must be of pyfold.diffusion.Point, got {type(point).__name__} at {i}")
        if not (math.isfinite(point.alpha) and math.isfinite(point.sigma) and point.alpha >= 0 and point.sigma >= 0):
            raise ValueError(f"spacing must have finite alpha and sigma from 0, got {point} at {i}")
        before = points[i - 1].ratio if i else math.inf
        if i and not (point.ratio < before or way == "rests" or (way == "turns" and point.ratio > before)):
            must = "decrease in noise" if way == "falls" else "not repeat a point"
            raise ValueError(f"spacing must {must}, got sigma / alpha {point.ratio:g} at {i} after {before:g}")
    return points


def at_times(schedule: Schedule, times: Iterable[float], final: str = "zero") -> list[Point]:
    """Times of your own, decreasing, and then the end: "zero" noise, or the schedule's least ("sigma_min")."""
    return _end(schedule, schedule.at_times(times), final)


def at_ratios(schedule: Schedule, ratios: Iterable[float], final: str = "zero") -> list[Point]:
    """Noise-to-signal ratios of your own (k-diffusion's sigmas without the last 0), decreasing, and then the end."""
    return _end(schedule, schedule.at_ratios(ratios), final)


def at_sigmas(schedule: Schedule, sigmas: Iterable[float], final: str = "zero") -> list[Point]:
    """Noise levels sigma of a flow schedule, decreasing in (0, 1], and then the end."""
    sigmas = [float(s) for s in sigmas]
    if not all(0 <= s <= 1 for s in sigmas):
        raise ValueError(f"sigmas must be in [0, 1], got {sigmas}")
    return at_ratios(schedule, [s / (1 - s) if s < 1 else math.inf for s in sigmas], final)


Spacing = Callable[..., list[Point]]
#: Every spacing by its name.
SPACINGS: dict[str, Spacing] = {}


def _spacing(function: Spacing) -> Spacing:
    """Puts a spacing into SPACINGS, with the checks that all share: each argument's type, by its name."""
    parameters = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*given: Any, **named: Any) -> list[Point]:
        arguments = {**dict(zip(parameters, given, strict=False)), **named}
        if "schedule" in arguments and "steps" in arguments:
            schedule = check_schedule(arguments["schedule"])
            check_steps(arguments["steps"], schedule.steps or MOST_STEPS)
        for name, value in arguments.items():
            if name in parameters and name not in ("schedule", "steps", "final") and value is not None:
                check_number(name, value)
        return function(*given, **named)

    SPACINGS[function.__name__] = checked
    return checked


# --- spacings of the times


def _discrete(schedule: Schedule, spacing: str) -> int:
    if not schedule.steps:
        raise ValueError(f"spacing {spacing!r} needs a schedule with discrete times, got schedule {schedule.name}")
    return schedule.steps


@_spacing
def leading(schedule: Schedule, steps: int, offset: int = 0, final: str = "zero") -> list[Point]:
    """0, n, 2 n, ... with ``n = schedule.steps // steps``, plus ``offset`` (Ho et al. 2020; Song, Meng and Ermon 2021)."""
    stride = _discrete(schedule, "leading") // steps
    return at_times(schedule, np.arange(steps - 1, -1, -1) * stride + offset, final)


@_spacing
def linspace(schedule: Schedule, steps: int, final: str = "zero") -> list[Point]:
    """Equal distances from the last training time to the first, both visited."""
    last, first = (schedule.steps - 1, 0) if schedule.steps else (schedule.t_max, schedule.t_min)
    return at_times(schedule, np.linspace(last, first, steps), final)


@_spacing
def trailing(schedule: Schedule, steps: int, final: str = "zero") -> list[Point]:
    """Equal distances, the last training time visited and the first not (Lin et al. 2024, table 2)."""
    if not schedule.steps:
        return sgm_uniform(schedule, steps, final)
    times = np.round(schedule.steps - np.arange(steps) * (schedule.steps / steps)) - 1
    return at_times(schedule, times, final)


@_spacing
def simple(schedule: Schedule, steps: int, final: str = "zero") -> list[Point]:
    """Every so many entries of the table, downwards from the last, as ComfyUI's "simple"."""
    count = _discrete(schedule, "simple")
    return at_times(schedule, [count - 1 - int(i * (count / steps)) for i in range(steps)], final)


@_spacing
def sgm_uniform(schedule: Schedule, steps: int, final: str = "zero") -> list[Point]:
    """Equal distances from the last time to the first, which is left out: generative-models' spacing, and a flow's."""
    last, first = (schedule.steps - 1, 0) if schedule.steps else (schedule.t_max, schedule.t_min)
    return at_times(schedule, np.linspace(last, first, steps + 1)[:-1], final)


# --- spacings of the noise: of sigma for a flow, else of sigma / alpha


def span(schedule: Schedule, low: float | None, high: float | None) -> tuple[float, float]:
    """Least and greatest noise, by default the schedule's; ``NEARLY_PURE`` where that is infinite."""
    check_schedule(schedule)
    # A flow's least noise is none; diffusers' thousandth of its time stands for it.
    first, last = (0, schedule.steps - 1) if schedule.steps else (schedule.t_min or 1e-3, schedule.t_max)
    ends = schedule.at(first), schedule.at(last)
    default_low, default_high = (p.sigma if schedule.is_flow else p.ratio if p.alpha else NEARLY_PURE for p in ends)
    low, high = default_low if low is None else low, default_high if high is None else high
    if schedule.is_flow and 1 < high < math.inf:
        raise ValueError(f"sigma_max must be at most 1 on a flow schedule, got {high}")
    return _rising(schedule, low, high)


def _rising(schedule: Schedule, low: float, high: float) -> tuple[float, float]:
    if not 0 < low < high < math.inf:
        asked = f"got {low} and {high} on schedule {schedule.name}"
        raise ValueError(f"sigma_min and sigma_max must be finite and 0 < sigma_min < sigma_max, {asked}")
    return float(low), float(high)


def ratio_span(schedule: Schedule, low: float | None, high: float | None) -> tuple[float, float]:
    """Least and greatest sigma / alpha, by default the schedule's, of a flow too."""
    if schedule.is_flow:
        least = schedule.t_min or 1e-3
        return _rising(schedule, schedule.at(least).ratio if low is None else low, NEARLY_PURE if high is None else high)
    return span(schedule, low, high)


def _at_levels(schedule: Schedule, levels: np.ndarray, final: str) -> list[Point]:
    return (at_sigmas if schedule.is_flow else at_ratios)(schedule, levels, final)


@_spacing
def karras(
    schedule: Schedule,
    steps: int,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    final: str = "zero",
) -> list[Point]:
    """``(max^(1/rho) + u (min^(1/rho) - max^(1/rho)))^rho`` for u in [0, 1] (Karras et al. 2022, eq. 5)."""
    low, high = span(schedule, sigma_min, sigma_max)
    if not 0 < rho < math.inf:
        raise ValueError(f"rho must be positive, got {rho}")
    u = np.linspace(0, 1, steps)
    return _at_levels(schedule, (high ** (1 / rho) + u * (low ** (1 / rho) - high ** (1 / rho))) ** rho, final)


@_spacing
def polyexponential(
    schedule: Schedule,
    steps: int,
    rho: float = 1.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    final: str = "zero",
) -> list[Point]:
    """``min (max / min)^(u^rho)`` for u from 1 to 0, as k-diffusion has it."""
    low, high = span(schedule, sigma_min, sigma_max)
    if not 0 < rho < math.inf:
        raise ValueError(f"rho must be positive, got {rho}")
    return _at_levels(schedule, low * (high / low) ** (np.linspace(1, 0, steps) ** rho), final)


@_spacing
def exponential(
    schedule: Schedule, steps: int, sigma_min: float | None = None, sigma_max: float | None = None, final: str = "zero"
) -> list[Point]:
    """A geometric sequence: uniform in lambda (Lu et al. 2022, section 3.4)."""
    return polyexponential(schedule, steps, 1.0, sigma_min, sigma_max, final)


@_spacing
def vp_uniform(
    schedule: Schedule, steps: int, beta_d: float = 19.9, beta_min: float = 0.1, t_min: float = 1e-3, final: str = "zero"
) -> list[Point]:
    """``sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)`` for t from 1 to t_min (Karras et al. 2022, table 1, VP)."""
    t = np.linspace(1, t_min, steps)
    return at_ratios(schedule, np.sqrt(np.expm1(beta_d * t**2 / 2 + beta_min * t)), final)


@_spacing
def laplace(
    schedule: Schedule,
    steps: int,
    mu: float = 0.0,
    width: float = 0.5,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    final: str = "zero",
) -> list[Point]:
    """Quantiles of a Laplace density of log sigma, limited to the span (Hang et al. 2024)."""
    low, high = span(schedule, sigma_min, sigma_max)
    u = 0.5 - np.linspace(0, 1, steps)
    levels = np.exp(mu - width * np.sign(u) * np.log(1 - 2 * np.abs(u) + 1e-5))
    return _at_levels(schedule, np.clip(levels, low, high), final)


@_spacing
def kl_optimal(
    schedule: Schedule, steps: int, sigma_min: float | None = None, sigma_max: float | None = None, final: str = "zero"
) -> list[Point]:
    """``tan(u arctan min + (1 - u) arctan max)`` for u from 0 to 1 (Sabour et al. 2024, theorem 3.1)."""
    low, high = span(schedule, sigma_min, sigma_max)
    u = np.linspace(0, 1, steps)
    return _at_levels(schedule, np.tan(u * math.atan(low) + (1 - u) * math.atan(high)), final)


@_spacing
def angles(schedule: Schedule, steps: int, sigma_max: float | None = None, final: str = "zero") -> list[Point]:
    """``tan((1 - k / steps) arctan max)`` for k from 0: equal steps of the angle arctan(sigma / alpha), the last one to none.

    :func:`kl_optimal` without its point at the least noise, for samplers of few steps; TrigFlow's time (Lu and Song 2025).
    ``sigma_max`` is of sigma / alpha, of a flow too.
    """
    _, high = ratio_span(schedule, None, sigma_max)
    return at_ratios(schedule, [high, *np.tan(math.atan(high) * (1 - np.arange(1, steps) / steps))], final)


def _beta_cdf(x: np.ndarray, a: float, b: float) -> np.ndarray:
    """The regularised incomplete beta function by its continued fraction (Abramowitz and Stegun 26.5.8)."""
    flip = x > (a + 1) / (a + b + 2)
    beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    x, p, q = np.where(flip, 1 - x, x), np.where(flip, b, a), np.where(flip, a, b)
    fraction = np.zeros_like(x)
    for m in range(60, -1, -1):
        odd = -(p + m) * (a + b + m) * x / ((p + 2 * m) * (p + 2 * m + 1))
        even = m * (q - m) * x / ((p + 2 * m - 1) * (p + 2 * m)) if m else np.ones_like(x)
        fraction = even / (1 + odd / (1 + fraction))
    with np.errstate(divide="ignore"):
        tail: np.ndarray = np.exp(p * np.log(x) + q * np.log1p(-x) - beta) / p * fraction
    return np.where(flip, 1 - tail, tail)


def beta_quantiles(u: np.ndarray, a: float, b: float) -> np.ndarray:
    """Quantiles u of the beta distribution, by halving."""
    low, high = np.zeros_like(u), np.ones_like(u)
    for _ in range(60):
        middle = (low + high) / 2
        below = _beta_cdf(middle, a, b) < u
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(u <= 0, 0.0, np.where(u >= 1, 1.0, (low + high) / 2))


@_spacing
def beta(
    schedule: Schedule,
    steps: int,
    a: float = 0.6,
    b: float = 0.6,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    final: str = "zero",
) -> list[Point]:
    """``min + (max - min) q`` at the quantiles q of a Beta(a, b) density (Lee et al. 2024), as diffusers has it."""
    low, high = span(schedule, sigma_min, sigma_max)
    for name, value in (("a", a), ("b", b)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, got {value}")
    return _at_levels(schedule, low + (high - low) * beta_quantiles(1 - np.linspace(0, 1, steps), a, b), final)


def stretch(points: Points, terminal: float) -> list[Point]:
    """A flow's points stretched so that the last step starts at the noise level ``terminal`` (LTX-Video's shift_terminal)."""
    if not 0 < terminal < 1:
        raise ValueError(f"terminal must be in (0, 1), got {terminal}")
    if points[-2].alpha == 0:  # one step, from pure noise: nothing to stretch
        return check_points(points)
    scale = (1 - terminal) / points[-2].alpha
    stretched = [Point(p.t, p.alpha * scale, 1 - p.alpha * scale) for p in points[:-1]]
    return check_points([*stretched, points[-1]])


def choose_points(
    schedule: Schedule, steps: int, spacing: str | Callable[..., list[Point]] | Points, way: str = "falls"
) -> list[Point]:
    """The points of a sampler's ``steps`` and ``spacing`` arguments; those given as they are may go any ``way`` it takes."""
    check_schedule(schedule)
    if isinstance(spacing, torch.Tensor) or (not isinstance(spacing, (str, Iterable)) and not callable(spacing)):
        raise TypeError(f"spacing must be a name, a function or points, got {type(spacing).__name__}")
    if not (isinstance(spacing, str) or callable(spacing)):
        return check_points(spacing, way)
    check_steps(steps, schedule.steps or MOST_STEPS)
    if isinstance(spacing, str):
        if spacing not in SPACINGS:
            raise ValueError(f"spacing must be one of {', '.join(map(repr, SPACINGS))}, got {spacing!r}")
        spacing = SPACINGS[spacing]
    return check_points(spacing(schedule, steps))
