"""Exact mean and variance of what a sampler makes of Gaussian data, from the sampler's own loop and without chance.

For data N(MEAN, VARIANCE) the best prediction is affine in the state, so a sampler's result is affine in the start and in each
of its draws, and elements do not mix. One element of the state is run for the constant part (all noise 0), and one for each
source of noise (that noise 1, all else 0, and the model without its constant): the result's mean is the first, its variance
the sum of the squares of the others.

``python tests/moments.py`` prints the table of docs/moments.md; with ``--update`` it writes it there.
"""

from __future__ import annotations

import argparse
import inspect
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from pyfold import diffusion
from pyfold.diffusion import SAMPLERS, Plan, Point, Schedule

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
    if points[0].alpha == 0:
        # Nothing is known of x0 but its mean; the scheme itself has no finite step there.
        points, variance = points[1:], points[1].ratio ** 2
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
    frame = {"frame": "flow"} if points[0].alpha == 0 and order < 3 else {}
    plan = REFERENCES[order](schedule, len(points) - 1, prediction="x0", spacing=points, **frame)
    return moments(plan, schedule, points[0]).variance


# --- how they compare

#: Their law is another: new noise on x0 at each level, a particle at a temperature, or a model of mean velocities
#: (exact in any number of steps, tests/test_objectives.py).
OF_THEIR_OWN = ("lcm", "tcd", "consistency", "annealed_langevin", "flow_map")
NAMES = [name for name, sampler in SAMPLERS.items() if not sampler.alias_of]
COMPARED = [name for name in NAMES if name not in OF_THEIR_OWN]


def accepted(name: str) -> dict[str, Schedule]:
    """The schedules that a sampler takes."""
    needs = SAMPLERS[name].schedules
    made = {label: make() for label, make in SCHEDULES.items()}
    return {
        label: schedule
        for label, schedule in made.items()
        if not (needs == "flow" and not schedule.is_flow) and not (needs == "discrete" and not schedule.steps)
    }


def default_run(name: str, schedule: Schedule, calls: int) -> tuple[Plan, list[Point]]:
    """The plan of no more than so many model calls at the sampler's defaults, and the points between its steps."""
    sampler = SAMPLERS[name]
    steps = steps_for(sampler, schedule, calls)
    return sampler(schedule, steps, prediction="x0"), sampler.points(schedule, steps, prediction="x0")


def exact(point: Point) -> float:
    """The variance of the noised data."""
    return spread(point) ** 2


def variance_error(name: str, schedule: Schedule, calls: int) -> float:
    """Of the sampler at its defaults."""
    plan, points = default_run(name, schedule, calls)
    return moments(plan, schedule, points[0]).variance - exact(points[-1])


def reference_error(name: str, schedule: Schedule, calls: int) -> float:
    """Of the reference of the sampler's order, on the same points."""
    plan, points = default_run(name, schedule, calls)
    return reference_variance(ORDERS[name], plan.noisy, schedule, points) - exact(points[-1])


def error_between(name: str, steps: int, *, equal: bool = False, **options: Any) -> float:
    """Of the variance at sigma / alpha .05, from 10, in so many steps of equal ratio; ``equal``: of equal length, from 1."""
    sampler = SAMPLERS[name]
    schedule = SCHEDULES["flow" if sampler.schedules == "flow" else "vp_linear"]()
    levels = [1 - 0.95 * k / steps if equal else 10 * (0.05 / 10) ** (k / steps) for k in range(steps + 1)]
    points = [schedule.at_ratio(level) for level in levels]
    if "spacing" in inspect.signature(sampler).parameters:
        plan = sampler(schedule, steps, prediction="x0", spacing=points, **options)
    else:
        plan = sampler(schedule, steps, prediction="x0", sigma_min=0.05, sigma_max=10.0, **options)
    return moments(plan, schedule, points[0]).variance - exact(points[-1])


def ratio_frame_error(points: Sequence[Point]) -> float:
    """Of Heun's method in sigma / alpha, on levels of any schedule up to 80."""
    schedule = SCHEDULES["edm"]()
    levels = [schedule.at_ratio(min(point.ratio, 80.0)) for point in points]
    plan = diffusion.heun(schedule, len(levels) - 1, prediction="x0", spacing=levels)
    return moments(plan, schedule, levels[0]).variance - exact(levels[-1])


def order_between(name: str, few: int, many: int, **options: Any) -> float:
    """log2 of how much less the error becomes when steps double, between two numbers of them."""
    errors = [abs(error_between(name, steps, **options)) for steps in (few, many)]
    return math.log(errors[0] / errors[1]) / math.log(many / few)


#: The order in the limit of many steps, as measured; the variance of a stochastic method may have more than its paths.
ORDERS = {
    "ddpm": 1,
    "ddim": 1,
    "euler_ancestral": 1,
    "flow_ancestral": 1,
    "flow_sde": 1,
    "dpmpp_multistep": 2,
    "dpm_multistep": 2,
    "res_multistep": 2,
    "dpm_singlestep": 2,
    "dpmpp_singlestep": 2,
    "dpm_fast": 2,
    "unipc": 2,
    "sa_solver": 2,
    "sa_solver_pece": 2,
    "euler": 1,
    "heun": 2,
    "dpm2": 2,
    "flow_euler": 1,
    "flow_heun": 2,
    "dpm2_ancestral": 2,
    "flow_dpm2_ancestral": 2,
    "edm_stochastic": 2,
    "lms": 2,
    "ipndm": 2,
    "gradient_estimation": 1,
    "plms": 2,
    "deis": 2,
    "dpmpp_2s_ancestral": 2,
    "dpmpp_sde": 2,
    "er_sde": 2,
    "seeds_2": 2,
}
#: What the orders are measured with beyond the defaults: noise of its own size, which is 1.003 times that by default.
MEASURED_WITH: dict[str, dict[str, Any]] = {
    "edm_stochastic": {"noise_scale": 1.0},
    "ddpm": {"clip": None},
    "ddim": {"clip": None},
}

_FLOWS = ("flow", "flow, shift 3")
_STRAIGHT = "Gaussian data make a flow almost straight in its own frame, where the reference runs; this one runs in lambda"
_ANCESTRAL = "a step takes all its noise off and puts new noise on: twice Euler-Maruyama's constant, and more in long steps"
_TAU = "at full noise (tau 1) its predictor extrapolates over twice the step; without (tau 0) a fifth of it or less is left"
#: Where the error at 20 calls is more than twice the reference's: by sampler, on which schedules, and why.
BEYOND: dict[str, tuple[tuple[str, ...], str]] = {
    "ddpm": (("vp_linear", "vp_scaled_linear", "vp_cosine", "zero terminal SNR"), _ANCESTRAL),
    "euler_ancestral": (
        ("vp_linear", "vp_scaled_linear", "zero terminal SNR", "vp", "sub_vp", *_FLOWS),
        _ANCESTRAL + ", which on vp_scaled_linear crosses 0 near 20 calls",
    ),
    "flow_ancestral": (_FLOWS, _ANCESTRAL),
    "dpmpp_multistep": (_FLOWS, _STRAIGHT),
    "dpm_multistep": (_FLOWS, _STRAIGHT),
    "res_multistep": (("sub_vp", *_FLOWS, "trigflow"), _STRAIGHT + "; elsewhere long steps: 1.6 and 1.7 times at 40 calls"),
    "dpmpp_singlestep": (_FLOWS, _STRAIGHT),
    "unipc": (("sub_vp", "flow"), _STRAIGHT + "; on sub_vp long steps: 1.9 times at 40 calls"),
    "sa_solver": (
        ("vp_linear", "zero terminal SNR", "vp", "sub_vp", "edm", *_FLOWS, "trigflow"),
        _TAU,
    ),
    "sa_solver_pece": (("sub_vp", "edm", "flow", "trigflow"), f"{_TAU}; trigflow: {_STRAIGHT}"),
    "dpm2_ancestral": (
        ("vp_linear", "vp_scaled_linear", "vp_cosine", "zero terminal SNR", "vp", "sub_vp", "ve", "edm", *_FLOWS, "trigflow"),
        "steps reach below their end to make room for noise: 4 times the constant without",
    ),
    "flow_dpm2_ancestral": (("flow",), "steps reach below their end to make room for noise: 4.7 times the constant without"),
    "edm_stochastic": (("vp_scaled_linear", "ve", *_FLOWS), "its noise is put on top of Heun's error"),
    "lms": (_FLOWS, "its first steps are of lower order"),
    "deis": (("flow", "trigflow"), _STRAIGHT),
    "dpmpp_2s_ancestral": (_FLOWS, _STRAIGHT),
    "er_sde": (_FLOWS, _STRAIGHT),
    "seeds_2": (_FLOWS, _STRAIGHT),
}
#: Multistep methods whose first steps are of lower order, and the order that ``starter="runge_kutta"`` reaches.
STARTED: list[tuple[str, str, dict[str, Any], int]] = [
    ("lms 4", "lms", {}, 4),
    ("lms 3", "lms", {"order": 3}, 3),
    ("ipndm 4, equal steps of sigma / alpha", "ipndm", {}, 4),
    ("deis 3", "deis", {}, 3),
    ("deis 4", "deis", {"order": 4}, 4),
    ("dpm++ 3M exact", "dpmpp_multistep", {"order": 3, "solver": "exact"}, 3),
    ("dpm-solver 3M exact", "dpm_multistep", {"order": 3, "solver": "exact"}, 3),
]


def started_order(name: str, few: int, many: int, **options: Any) -> float:
    """As :func:`order_between`; of ipndm on the equal steps that its coefficients are for."""
    return order_between(name, few, many, **options, equal=name == "ipndm")


# --- the table of docs/moments.md

PAGE = Path(__file__).parents[1] / "docs" / "moments.md"
LABELS = ("vp_linear", "edm", "flow")


def _signed(value: float) -> str:
    return f"{value:+.4f}" if abs(value) < 10 else f"{value:+.3g}"


def comparison() -> list[str]:
    """The lines of the table of errors."""
    cells = [f"{label}: 10 | 20 | reference" for label in LABELS]
    lines = [f"| sampler | order | 24 to 96 | {' | '.join(cells)} |", f"|{'---|' * (3 + 3 * len(LABELS))}"]
    for name in COMPARED:
        row = [name, str(ORDERS[name]), f"{order_between(name, 24, 96, **MEASURED_WITH.get(name, {})):.2f}"]
        for label in LABELS:
            schedule = accepted(name).get(label)
            row += (
                ["", "", ""]
                if schedule is None
                else [
                    _signed(variance_error(name, schedule, 10)),
                    _signed(variance_error(name, schedule, 20)),
                    _signed(reference_error(name, schedule, 20)),
                ]
            )
        lines.append(f"| {' | '.join(row)} |")
    return lines


def beyond() -> list[str]:
    """Where the error is more than twice the reference's, how many times, and why."""
    lines = ["| sampler | times the reference's error at 20 calls | why |", "|---|---|---|"]
    for name, (labels, why) in BEYOND.items():
        schedules = accepted(name)
        ratios = {
            label: abs(variance_error(name, schedules[label], 20) / reference_error(name, schedules[label], 20))
            for label in labels
        }
        lines.append(f"| {name} | {', '.join(f'{label} {ratio:.1f}' for label, ratio in ratios.items())} | {why} |")
    return lines


def starters() -> list[str]:
    """The orders with both starters."""
    lines = ['| method | lower orders first | starter="runge_kutta" |', "|---|---|---|"]
    for label, name, options, _ in STARTED:
        found = [started_order(name, 160, 640, starter=starter, **options) for starter in ("lower_order", "runge_kutta")]
        lines.append(f"| {label} | {found[0]:.2f} | {found[1]:.2f} |")
    return lines


TABLES = {"errors": comparison, "beyond": beyond, "starters": starters}


def with_tables(text: str, names: Sequence[str] = tuple(TABLES)) -> str:
    """A page with its tables made anew."""
    for name in names:
        head, after = text.split(f"<!-- {name} -->\n", 1)
        tail = after[after.index("\n\n") :] if "\n\n" in after else "\n"
        text = f"{head}<!-- {name} -->\n" + "\n".join(TABLES[name]()) + tail
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Exact errors of every sampler, and their orders.")
    parser.add_argument("--update", action="store_true", help="write them into docs/moments.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = with_tables(PAGE.read_text())
    if arguments.update:
        with tempfile.NamedTemporaryFile("w", dir=PAGE.parent, delete=False) as file:
            file.write(text)
        os.chmod(file.name, 0o644)
        os.replace(file.name, PAGE)
    else:
        print(text)
