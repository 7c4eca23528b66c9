"""What the frozen bits (vectors.json) are computed from: each section as the file holds it.

Each entry says what it is given and which bits must come out, as hexadecimal words (float32 as 8 digits, float64 as C writes
it), so that another implementation of docs/noise.md and docs/bits.md can be held to the same file. Inputs are noise, or what
the file itself gives; models halve their input.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch

import pyfold
from pyfold import diffusion, ops
from pyfold.diffusion import SAMPLERS

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(x: torch.Tensor) -> list[str]:
    """The elements in logical order, each as its bits."""
    size = x.element_size()
    words = x.detach().contiguous().view(-1).view(_WORDS[size]).tolist()
    return [f"{w % (1 << 8 * size):0{2 * size}X}" for w in words]


def digest(x: torch.Tensor) -> str:
    """SHA-256 of the elements' bits in logical order, little endian."""
    return hashlib.sha256(x.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


# --- noise

#: seeds, shape, and the rest of randn's arguments.
NOISES: list[dict[str, Any]] = [
    {"seeds": [0], "shape": [4]},
    {"seeds": [1, -1, 2**63 - 1, -(2**63)], "shape": [3]},
    {"seeds": [7], "shape": [5], "stream": 1, "step": 2**32 - 1},
    {"seeds": [7], "shape": [5], "stream": 2**32 - 1, "step": 3},
    {"seeds": [3], "shape": [2, 3], "offset": [1, 2], "global_shape": [4, 9]},
    {"seeds": [3], "shape": [2, 2], "offset": [2**33, 1], "global_shape": [2**40, 3]},
]
#: So many that a constant of the transform which is off by one unit in its last place shows.
LONG: dict[str, Any] = {"seeds": [5, -6, 7], "shape": [1 << 21], "stream": 2, "step": 11}


def noise() -> dict[str, Any]:
    found: dict[str, Any] = {
        name: [{**case, "bits": bits(pyfold.randn(dtype=dtype, **case))} for case in NOISES] for name, dtype in DTYPES.items()
    }
    found["long"] = {**LONG, "sha256": {name: digest(pyfold.randn(dtype=dtype, **LONG)) for name, dtype in DTYPES.items()}}
    return found


def noising() -> dict[str, Any]:
    """x_t and targets of x0 = randn([1, 2], [3]), noised from seeds [3, 4] at alpha 0.8 and sigma 0.6, and losses."""
    x0, prediction = pyfold.randn([1, 2], [3]), pyfold.randn([5, 6], [3])
    given = {"alpha": 0.8, "sigma": 0.6, "seeds": [3, 4], "stream": 2, "step": 5}
    found: dict[str, Any] = {"given": given}
    for target in ("epsilon", "x0", "v", "flow"):
        x_t, aim = pyfold.add_noise(x0, target=target, **given)  # type: ignore[arg-type]
        loss = pyfold.denoising_loss(prediction, x0, target=target, weight=0.7, **given)  # type: ignore[arg-type]
        found[target] = {"x_t": bits(x_t), "target": bits(aim), "loss": bits(loss)}
    return found


# --- training times and Brownian paths


def times() -> dict[str, list[str]]:
    """Of the seeds 0 to 5."""
    schedules = {"vp_linear": diffusion.vp_linear(), "flow": diffusion.flow(), "edm": diffusion.edm(), "vp": diffusion.vp()}
    seeds = torch.arange(6)
    found = {}
    for name, schedule in schedules.items():
        for density in diffusion.DENSITIES:
            loss = diffusion.TrainingLoss(schedule, density=density)
            found[f"{density} on {name}"] = [float(t).hex() for t in loss.times(seeds)]
    loss = diffusion.TrainingLoss(diffusion.flow())
    found["uniform on flow, strata (2, 12)"] = [float(t).hex() for t in loss.times(seeds, strata=(2, 12))]
    return found


def brownian() -> dict[str, Any]:
    """W(t) from 0.1 to 10 of the seeds 1 and 2, at these times."""
    found: dict[str, Any] = {}
    for name in ("float32", "float64"):
        path = diffusion.BrownianPath(torch.tensor([1, 2]), [2], 0.1, 10.0, dtype=DTYPES[name])
        found[name] = {at: bits(path(at)) for at in (0.1, 0.3, 1.0, 5.05, 9.99, 10.0)}
    return {name: {str(at): values for at, values in of.items()} for name, of in found.items()}


# --- samplers

#: Where each sampler runs; the others on vp_linear. Options beyond the defaults.
SCHEDULE_OF = {"edm_stochastic": "edm", "annealed_langevin": "ve"}
OPTIONS: dict[str, dict[str, Any]] = {
    "dpmpp_multistep": {"order": 3, "eta": 1.0},
    "ddim": {"eta": 0.5},
    "unipc": {"order": 3},
    "consistency": {"prediction": "x0"},
}
STEPS = 4
RUN_SEEDS, RUN_SHAPE = [0, 1], [3]


def plan_of(sampler: str) -> diffusion.Plan:
    schedule = "flow" if sampler.startswith("flow_") else SCHEDULE_OF.get(sampler, "vp_linear")
    return SAMPLERS[sampler](diffusion.SCHEDULES[schedule](), STEPS, **OPTIONS.get(sampler, {}))


def overwrites(plan: diffusion.Plan) -> list[int]:
    """The stages whose u takes the place of the newest earlier one."""
    return sorted(getattr(plan, "overwrites", None) or getattr(plan, "replaces", None) or ())


def as_json(plan: diffusion.Plan) -> dict[str, Any]:
    """A plan's coefficients: those that are not 0 of each row."""
    table, columns = plan.on("cpu")[0][: len(plan.rows)], ops.AFFINE_STEP_COLUMNS
    rows = [{c: float(v).hex() for c, v in zip(columns, row.tolist(), strict=True) if v} for row in table]
    churn = plan.start_churn
    more = {} if churn is None else {"start_draw": plan.draws[-1]}
    return {
        "rows": rows,
        "times": [float(t).hex() for t in plan.times],
        "history": plan.history,
        "overwrites": overwrites(plan),
        "start_std": float(plan.start_std).hex(),
        "start_scale": float(plan.start_scale).hex(),
        "start_churn": None if churn is None else [float(c).hex() for c in churn],
        **more,
    }


def halves(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.5 * x


def end(sampler: str) -> list[str]:
    return bits(diffusion.sample(halves, plan_of(sampler), RUN_SHAPE, RUN_SEEDS))


def plans() -> dict[str, Any]:
    return {
        sampler: {**as_json(plan_of(sampler)), "end": end(sampler)} for sampler, made in SAMPLERS.items() if not made.alias_of
    }


def deciding() -> dict[str, Any]:
    """Ends of runs that look at their values on the way: steps of an adaptive size, and a threshold of each sample."""
    vp = diffusion.vp_linear()
    plan = diffusion.guided(diffusion.ddim(vp, STEPS, clip=None), 3.0)
    adapt = (diffusion.dynamic_threshold(0.7, least=0.1),)
    both = lambda x, t: (0.5 * x, 0.25 * x)  # noqa: E731
    return {
        "dpm_adaptive": bits(diffusion.dpm_adaptive(halves, vp, RUN_SHAPE, RUN_SEEDS)),
        "dynamic_threshold": bits(diffusion.sample(both, plan, [5], RUN_SEEDS, adapt=adapt)),
    }


# --- folds

FOLDS: dict[str, dict[str, Any]] = {
    "abs": {"offset": 0.25},
    "leaky": {"slope": 0.2},
    "box": {"length": 0.5},
    "tri": {"length": 0.5, "phase": 0.25},
    "maxmin": {},
    "groupsort": {"size": 3},
    "sortabs": {"size": 3},
    "householder": {"angle": 0.75},
    "dihedral": {"m": 3, "angle": 0.25},
    "hyperplane": {"normal": [1.0, 2.0, -1.0, 0.5, 0.0, 1.0], "offset": 0.25},
    "crelu": {},
    "sphere": {"radius": 2.0, "inner": 1.0},
    "ball": {"radius": 1.0},
    "soft": {"epsilon": 0.125},
}


def folds() -> dict[str, Any]:
    """Of x = randn([9], [6]): y, and dx for a gradient randn([10], ...) of y."""
    found: dict[str, Any] = {}
    for kind, parameters in FOLDS.items():
        given: dict[str, Any] = {k: torch.tensor(v) if isinstance(v, list) else v for k, v in parameters.items()}
        x = pyfold.randn([9], [6]).requires_grad_()
        y = pyfold.fold(x, kind, **given)
        gradient = torch.autograd.grad(y, x, pyfold.randn([10], y.shape[1:]))[0]
        found[kind] = {"parameters": parameters, "y": bits(y), "dx": bits(gradient)}
    return found


SECTIONS = {
    "noise": noise,
    "noising": noising,
    "times": times,
    "brownian": brownian,
    "plans": plans,
    "deciding": deciding,
    "folds": folds,
}
