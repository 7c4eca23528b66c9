"""The samplers' entries of tests/digests.py: coefficients of every plan, and the ends of runs under a model that halves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from digests import Digest, Entries

from pyfold import diffusion
from pyfold.diffusion import SAMPLERS, SCHEDULES

#: Aliases run what their samplers do.
NAMES = [name for name, sampler in SAMPLERS.items() if not sampler.alias_of]

STEPS = 6
SEEDS = torch.tensor([3, -1, 2**61 + 4])
SHAPE = (4, 33)
#: Options of samplers, each an entry of its own: these on discrete times and on sigmas, the flow_* ones on a flow.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "ddpm": [{"variance": v} for v in ("fixed_large", "learned_range", "learned")] + [{"clip": None}],
    "ddim": [{"eta": 1.0}, {"eta": 0.5, "clip": None}, {"use_clipped": True, "eta": 0.2}],
    "flow_ancestral": [{"eta": 0.4, "noise_scale": 1.1}],
    "flow_sde": [{"noise_level": 0.3}],
    "euler": [{"frame": "flow"}, {"clip": 0.7}],
    "euler_ancestral": [{"eta": 0.4, "noise_scale": 1.1}],
    "heun": [{"frame": "flow"}, {"clip": 0.7}],
    "edm_stochastic": [{"churn": 9.0, "churn_max": 8.0}, {"method": "euler"}, {"method": "dpm2"}],
    "dpm2": [{"frame": "flow"}],
    "dpm2_ancestral": [{"eta": 0.4, "noise_scale": 1.1}],
    "flow_dpm2_ancestral": [{"eta": 0.4, "noise_scale": 1.1}],
    "dpm_singlestep": [{"order": 1}, {"order": 3}],
    "dpmpp_singlestep": [{"order": 1}, {"order": 3}],
    "dpm_fast": [{"eta": 0.6, "noise_scale": 1.1}],
    "dpm_multistep": [{"order": 3}, {"order": 3, "solver": "exact"}, {"stochastic": True}, {"order": 1}, {"solver": "heun"}],
    "dpmpp_multistep": [
        {"order": 3},
        {"order": 3, "solver": "exact"},
        {"eta": 1.0},
        {"eta": 0.7, "order": 3, "noise_scale": 0.9},
        {"order": 1, "eta": 1.0},
        {"solver": "heun", "eta": 0.5},
        {"final_order": 1, "clip": 0.7},
    ],
    "dpmpp_2s_ancestral": [{"eta": 0.4, "noise_scale": 1.1}],
    "dpmpp_sde": [{"brownian": False}, {"eta": 0.4, "r": 0.3}],
    "res_multistep": [{"eta": 1.0}],
    "lms": [{"order": 2}, {"frame": "flow"}],
    "deis": [{"order": 2}, {"final_order": 1}],
    "ipndm": [{"order": 2}],
    "plms": [{"start": "runge_kutta"}],
    "gradient_estimation": [{"gamma": 1.5}],
    "unipc": [{"order": 3}, {"variant": "bh1"}, {"interpolated": "epsilon", "final_order": None}, {"clip": 0.7}],
    "sa_solver": [
        {"tau": 0.0, "predictor_order": 3, "corrector_order": 3, "final_order": None},
        {"interpolated": "epsilon"},
        {"adjusted": False, "predictor_order": 1},
    ],
    "sa_solver_pece": [{"tau": 0.0, "predictor_order": 4, "corrector_order": 4}, {"interpolated": "epsilon"}],
    "er_sde": [{"order": 1}, {"order": 2, "noise_scale": 0.8}],
    "seeds_2": [{"order": 3}, {"eta": 0.5}],
    "annealed_langevin": [{"predictor": True, "correctors": 2}],
    "lcm": [{"time_scaling": 3.0}],
    "tcd": [{"eta": 0.8}],
}


def label(options: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in options.items())


def projection(plan: diffusion.Plan) -> str:
    """Number of entries, their sum with random weights after asinh, and which of them are 0 or infinite.

    asinh lets an error of 1e-12, absolute for small entries and relative for great ones, count the same in each.
    """
    values = np.concatenate(
        [plan.on("cpu")[0].numpy().ravel(), np.asarray(plan.times, float), [plan.start_std, plan.start_scale]]
    )
    weights = np.random.RandomState(len(values)).uniform(0.5, 1.0, len(values))
    weights *= np.where(np.random.RandomState(1).random_sample(len(values)) < 0.5, -1, 1)
    inside = np.isfinite(values) & (values != 0)
    codes = np.where(inside, 1, np.where(values == 0, 0, np.where(values > 0, 2, np.where(values < 0, 3, 4))))
    zeros = hashlib.sha256(codes.astype(np.uint8).tobytes()).hexdigest()[:8]
    total = float(np.sum(weights[inside] * np.arcsinh(values[inside])))
    return f"{len(values)} {total.hex()} {zeros}"


def plan_of(sampler: str, schedule: str, prediction: str | None, spacing: str | None, **options: Any) -> diffusion.Plan:
    if sampler == "ddim_inverse":
        make: Callable[..., diffusion.Plan] = diffusion.ddim_inverse
    else:
        make = SAMPLERS[sampler]
    prediction = prediction or {"flow": "flow", "edm": "F"}.get(schedule)
    given = {k: v for k, v in (("prediction", prediction), ("spacing", spacing)) if v is not None}
    return make(SCHEDULES[schedule](), STEPS, **given, **options)


#: Those that most models have; the others on the schedules that they are made for.
PREDICTIONS = ("epsilon", "x0", "v")


def predictions_of(schedule: str) -> tuple[str, ...]:
    return PREDICTIONS + {"flow": ("flow",), "ve": ("score",), "edm": ("F",), "trigflow": ("trigflow",)}.get(schedule, ())


def projections(sampler: str, schedule: str, spacing: str | None) -> dict[str, str]:
    """By prediction, those that the sampler takes."""
    found = {}
    for prediction in predictions_of(schedule):
        try:
            found[prediction] = projection(plan_of(sampler, schedule, prediction, spacing))
        except (ValueError, ArithmeticError):
            continue
    if not found:
        raise ValueError("no prediction is taken")
    return found


def schedules_of(sampler: str) -> tuple[str, ...]:
    if sampler in ("ddpm", "ddim", "lcm", "tcd"):
        return ("vp_linear",)
    return ("flow",) if sampler.startswith("flow_") else ("vp_linear", "edm", "flow")


def plans() -> Entries:
    for sampler in [*NAMES, "ddim_inverse"]:
        for schedule in SCHEDULES:
            for spacing in (None, "sgm_uniform") if sampler != "dpm_fast" else (None,):
                yield f"{sampler}/{schedule}/{spacing or 'default'}", partial(projections, sampler, schedule, spacing)
        for options in OPTIONS.get(sampler, []):
            for schedule in schedules_of(sampler):
                make = lambda s=sampler, c=schedule, o=options: projection(plan_of(s, c, None, None, **o))  # noqa: E731
                yield f"{sampler}/{schedule}/{label(options)}", make


# --- ends of runs


def halves(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.5 * x


def with_variance(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.cat([0.5 * x, 0.25 * x], 1)


def end(sampler: str, schedule: str, **options: Any) -> dict[str, str]:
    """In float32, float64 and with a model in bfloat16."""
    plan = plan_of(sampler, schedule, None, None, **options)
    model = with_variance if options.get("variance", "").startswith("learned") else halves
    return {
        str(dtype).removeprefix("torch."): Digest().add(diffusion.sample(model, plan, SHAPE, SEEDS, dtype=dtype)).text()
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
    }


def pair(x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return 0.5 * x, -0.25 * x


def ways(sampler: str) -> dict[str, str]:
    """What else a run can be asked for."""
    vp = diffusion.vp_linear()
    plan = SAMPLERS[sampler](vp, STEPS, prediction="v", clip=None)
    x = diffusion.sample(halves, plan, SHAPE, SEEDS)
    draws = [torch.from_numpy(np.random.RandomState(n).random_sample((3, *SHAPE))).float() for n in range(40)]
    seen = Digest()
    results = {
        "noise": diffusion.sample(halves, plan, SHAPE, SEEDS, noise=lambda n: draws[n]),
        "region": diffusion.sample(halves, plan, SHAPE, SEEDS, x=x, region=[slice(1, 3), slice(5, 30)]),
        "guided": diffusion.sample(pair, diffusion.guided(plan, 3.0), SHAPE, SEEDS),
        "CFG++": diffusion.sample(pair, diffusion.guided_plus_plus(plan, 0.6), SHAPE, SEEDS),
        "energy": diffusion.sample(pair, diffusion.guided_by_energy(plan, vp, "v", 0.3), SHAPE, SEEDS),
        "callback": diffusion.sample(halves, plan, SHAPE, SEEDS, callback=lambda i, state: seen.add(i, state) and None),
        "channels_last": diffusion.sample(halves, plan, (2, 3, 5), SEEDS, x=_last(3, 2, 3, 5)),
    }
    return {name: Digest().add(value).text() for name, value in results.items()} | {"callbacks": seen.text()}


def _last(*shape: int) -> torch.Tensor:
    values = torch.from_numpy(np.random.RandomState(5).random_sample(shape)).float()
    return values.contiguous(memory_format=torch.channels_last)


def adaptive(**options: Any) -> str:
    return Digest().add(diffusion.dpm_adaptive(halves, diffusion.vp_linear(), SHAPE, SEEDS, **options)).text()


def ends() -> Entries:
    for sampler in NAMES:
        for options in ({}, *OPTIONS.get(sampler, [])):
            for schedule in schedules_of(sampler):
                yield f"{sampler}/{schedule}/{label(options) or 'default'}", partial(end, sampler, schedule, **options)
    for sampler in ("ddim", "dpmpp_multistep", "euler_ancestral", "res_multistep", "er_sde"):
        yield f"sample/{sampler}", partial(ways, sampler)
    for options in ({}, {"order": 2}, {"eta": 0.7, "noise_scale": 1.1}, {"rtol": 0.01, "integral": 0.7, "proportional": 0.2}):
        yield f"dpm_adaptive/{label(options) or 'default'}", partial(adaptive, **options)
