"""Public calls for tests/fuzz.py: ops, modules, samplers, losses, schedules and spacings, some of the arguments spoilt."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any

import torch
from fuzz_pool import FLOATS, Case, Guards, Pool

import pyfold
from pyfold import diffusion, nn, ops
from pyfold.diffusion import DENSITIES, PREDICTIONS, SAMPLERS, SCHEDULES, SPACINGS, WEIGHTINGS

Arguments = dict[str, Any]
#: Words of errors about what an argument is made of, where no parameter has that name.
PARTS = {
    "kind", "angle", "slope", "offset", "normal", "length", "phase", "size", "m", "radius", "inner", "epsilon", "models",
    "history", "coefficient", "row", "schedule", "spacing", "prediction", "bits", "window",
}  # fmt: skip


def float_or(pool: Pool, value: Any, p: float = 0.5) -> Any:
    return value if pool.chance(p) else None


# --- ops


def randn(pool: Pool) -> Arguments:
    shape = pool.shape(0, 5)
    count = pool.rng.choice([0, 1, 2, 3])
    given: Arguments = {"seeds": pool.seeds(count), "shape": shape, "stream": pool.counter(), "step": pool.counter()}
    if pool.chance(0.4):
        given["out"] = pool.tensor((count, *shape), writable=True)
    else:
        given["dtype"] = pool.dtype()
    if pool.chance(0.3):
        given |= pool.window(shape)
    return given


def levels(pool: Pool, count: int) -> Any:
    return pool.number() if pool.chance(0.4) else torch.rand(count, dtype=pool.rng.choice([torch.float32, torch.float64]))


def target(pool: Pool, count: int) -> Any:
    return pool.rng.choice(["epsilon", "x0", "v", "flow", (pool.number(), levels(pool, count))])


def add_noise(pool: Pool) -> Arguments:
    shape = pool.shape(1, 5)
    x0 = pool.tensor(shape)
    given: Arguments = {
        "x0": x0,
        "alpha": levels(pool, shape[0]),
        "sigma": levels(pool, shape[0]),
        "seeds": pool.seeds(shape[0]),
    }
    given |= {"stream": pool.counter(), "step": pool.counter()}
    if pool.chance(0.5):
        given["target"] = target(pool, shape[0])
    if pool.chance(0.3):
        given["out"] = x0 if pool.chance(0.3) else pool.tensor(shape, x0.dtype, writable=True)
    elif pool.chance(0.3):
        given["dtype"] = pool.dtype()
    if pool.chance(0.3):
        given |= pool.window(shape[1:])
    return given


def denoising_loss(pool: Pool) -> Arguments:
    shape = pool.shape(1, 5)
    x0 = pool.tensor(shape)
    given: Arguments = {
        "prediction": pool.tensor(shape, x0.dtype if pool.chance(0.8) else None),
        "x0": x0,
        "alpha": levels(pool, shape[0]),
        "sigma": levels(pool, shape[0]),
        "seeds": pool.seeds(shape[0]),
        "target": target(pool, shape[0]),
        "weight": float_or(pool, levels(pool, shape[0])),
        "step": pool.counter(),
    }
    if pool.chance(0.2):
        given |= pool.window(shape[1:])
    return given


def mse_loss(pool: Pool) -> Arguments:
    shape = pool.shape(1, 5)
    aim = pool.tensor(shape)
    prediction = pool.tensor(shape, aim.dtype if pool.chance(0.8) else None)
    return {"prediction": prediction, "target": aim, "weight": float_or(pool, levels(pool, shape[0]))}


def coefficients(pool: Pool) -> dict[str, float]:
    names = pool.rng.sample(ops.AFFINE_STEP_COLUMNS, pool.rng.randint(0, 25))
    row = {name: pool.number() for name in names if not name.startswith(("n", "clip"))}
    row |= {name: pool.counter() for name in names if name in ("n1", "n2", "n3")}
    return row | ({"clip_min": -1.0, "clip_max": 0.5} if pool.chance(0.3) else {})


def affine_table(pool: Pool) -> Arguments:
    return {"rows": [coefficients(pool) for _ in range(pool.rng.randint(0, 4))]}


def affine_step(pool: Pool) -> Arguments:
    shape = pool.shape(1, 5)
    x = pool.tensor(shape)
    rows = pool.rng.choice([1, shape[0], shape[0], 5])
    low = x.dtype if x.dtype == torch.float64 or pool.chance(0.6) else pool.rng.choice([torch.bfloat16, torch.float16])
    models = [pool.tensor(shape, low) for _ in range(pool.rng.choice([1, 1, 2, 3]))]
    history = [pool.tensor(shape, x.dtype) for _ in range(pool.rng.choice([0, 0, 1, 4]))]
    given: Arguments = {
        "x": x,
        "models": models[0] if len(models) == 1 and pool.chance(0.5) else models,
        "table": ops.affine_table([coefficients(pool) for _ in range(rows)]),
        "history": history,
        "stream": pool.counter(),
    }
    if pool.chance(0.6):
        # A row outside of the table makes NaN.
        given["index"] = torch.tensor([pool.rng.randint(-1, rows) for _ in range(pool.rng.choice([1, shape[0]]))])
    if pool.chance(0.3):
        given["base"] = pool.like(x)
    if pool.chance(0.5):
        given["seeds"] = pool.seeds(shape[0])
    for name in ("out", "history_out", "x0_out", "next_input"):
        if pool.chance(0.3):
            given[name] = pool.tensor(shape, low if name == "next_input" else x.dtype, writable=True)
    if pool.chance(0.2):
        given["out"] = x
    if history and pool.chance(0.2):
        given["history_out"] = history[-1]
    if pool.chance(0.2):
        given |= pool.window(shape[1:])
    return given


def fold_parameters(pool: Pool, kind: str, channels: int) -> Arguments:
    rng = pool.rng
    wide = rng.choice(FLOATS)
    given: Arguments = {}
    choices: dict[str, Callable[[], Arguments]] = {
        "abs": lambda: {"offset": pool.number()},
        "leaky": lambda: {"slope": rng.choice([-1.0, 0.3, torch.tensor(0.2), torch.rand(channels)])},
        "box": lambda: {"length": rng.choice([0.5, 1e-30, 1e30])},
        "tri": lambda: {"length": rng.choice([0.5, 1e-30, 1e30]), "phase": pool.number()},
        "groupsort": lambda: {"size": rng.choice([None, 1, 2, 3, 4, 8, channels])},
        "sortabs": lambda: {"size": rng.choice([None, 1, 2, 3, 4, 8, channels])},
        "householder": lambda: {"angle": rng.choice([pool.number(), pool.tensor((channels // 2,), wide), torch.tensor(0.3)])},
        "dihedral": lambda: {"m": rng.choice([1, 2, 3, 7, 1000]), "angle": rng.choice([0.4, torch.rand(channels // 2)])},
        "hyperplane": lambda: {
            "normal": pool.tensor(rng.choice([(channels,), (3, channels), (1, channels)]), wide),
            "offset": rng.choice([0.0, 0.5, torch.rand(3), torch.tensor(0.1)]),
        },
        "sphere": lambda: {"radius": rng.choice([1.0, 3.0]), "inner": rng.choice([0.5, 1.0, 1e-8])},
        "ball": lambda: {"radius": rng.choice([1.0, 1e-8])},
        "soft": lambda: {"epsilon": rng.choice([0.1, 1e-8])},
    }
    if kind in choices and (kind in ("householder", "hyperplane") or pool.chance(0.6)):
        given = choices[kind]()
    return given


def fold(pool: Pool) -> Arguments:
    x = pool.tensor(pool.shape(0, 5))
    dim = pool.rng.randrange(-x.dim(), x.dim()) if x.dim() else 0
    channels = x.shape[dim] if x.dim() else 1
    kind = pool.rng.choice(list(ops.FOLDS))
    given: Arguments = {"x": x, "kind": kind, "dim": dim, **fold_parameters(pool, kind, channels)}
    given["pairing"] = pool.rng.choice(["adjacent", "halves"])
    if pool.chance(0.3):
        given["bias"] = pool.tensor((channels,), x.dtype if pool.chance(0.7) else None)
    if pool.chance(0.3):
        given["gain"] = pool.number()
    if pool.chance(0.3):
        given["clamp"] = pool.rng.choice([0.5, 1e-8, 1e30])
    return given


def fold_with_bits(pool: Pool) -> Arguments:
    return {k: v for k, v in fold(pool).items() if k not in ("bias", "gain", "clamp")}


def unfold_of(pool: Pool, given: Arguments) -> None:
    y, bits = ops.fold_with_bits(**given)
    back = {k: v for k, v in given.items() if k != "x"}
    if pool.chance(0.3):
        name = pool.rng.choice(["y", "bits", *back])
        if name == "y":
            y = pool.hostile(y)
        elif name == "bits":
            bits = pool.hostile(bits)
        else:
            back[name] = pool.hostile(back[name])
    ops.unfold(y, bits, **back)


def kaleidoscope(pool: Pool) -> Arguments:
    x = pool.tensor(pool.shape(1, 4))
    dim = pool.rng.randrange(-x.dim(), x.dim())
    channels, folds = x.shape[dim], []
    for _ in range(pool.rng.randint(0, 4)):
        kind = pool.rng.choice([k for k in ops.FOLDS if k != "crelu"])
        folds.append(kind if pool.chance(0.4) else (kind, fold_parameters(pool, kind, channels)))
    given: Arguments = {"x": x, "folds": folds, "dim": dim, "iterations": pool.rng.choice([1, 1, 2, 5, 30])}
    if pool.chance(0.6):
        given["scale"] = pool.number()
    if pool.chance(0.3):
        given["centre"] = [pool.number() for _ in range(channels)]
    if pool.chance(0.3) and channels:
        given["rotation"] = torch.linalg.qr(torch.randn(channels, channels, generator=pool.generator).double())[0].tolist()
    return given


# --- modules, samplers, losses


def module(pool: Pool) -> Arguments:
    kind = pool.rng.choice(list(ops.FOLDS))
    return {
        "kind": kind, "channels": float_or(pool, 6), "bias": pool.chance(0.3), "gain": pool.number(), "dim": 1,
        "clamp": float_or(pool, 0.5, 0.3), "pairing": pool.rng.choice(["adjacent", "halves"]),
        "learn": pool.rng.choice([(), ("angle",), ("slope",), ("normal", "offset")]),
    }  # fmt: skip


def module_run(pool: Pool, given: Arguments) -> None:
    made = nn.Fold(**given)
    try:
        x = pool.tensor((2, 6, 5)).detach().requires_grad_()
        torch.autograd.grad(made(x).sum(), x)
    except (ValueError, TypeError) as error:
        raise type(error)(f"kind: {error}") from error


def schedule_of(pool: Pool) -> Any:
    return SCHEDULES[pool.rng.choice(list(SCHEDULES))]()


def sampler(pool: Pool) -> Arguments:
    name = pool.rng.choice(list(SAMPLERS))
    choices: Arguments = {
        "schedule": schedule_of(pool),
        "steps": pool.rng.choice([1, 2, 3, 5, 12]),
        "prediction": pool.rng.choice(list(PREDICTIONS)),
        "clip": pool.rng.choice([None, 1.0, 0.3]),
        "spacing": pool.rng.choice([*SPACINGS, "karras", "trailing"]),
        "eta": pool.rng.choice([0.0, 0.3, 1.0]),
        "noise_scale": pool.rng.choice([0.9, 1.0, 1.1]),
        "order": pool.rng.choice([1, 2, 3, 4]),
        "solver": pool.rng.choice(["midpoint", "heun", "exact"]),
        "frame": pool.rng.choice([None, "noise", "flow"]),
        "final_order": pool.rng.choice([None, 1, 2]),
        "brownian": pool.chance(0.5),
        "stochastic": pool.chance(0.5),
        "churn": pool.rng.choice([0.0, 5.0, 40.0]),
        "variance": pool.rng.choice(["fixed_small", "fixed_large", "learned", "learned_range"]),
        "interpolated": pool.rng.choice(["x0", "epsilon"]),
    }
    has = inspect.signature(SAMPLERS[name]).parameters
    kept = {k: v for k, v in choices.items() if k in has and (k in ("schedule", "steps") or pool.chance(0.5))}
    return {"sampler": name, **kept}


def sampler_run(pool: Pool, given: Arguments) -> None:
    name = given.pop("sampler")
    plan = SAMPLERS[name](**given)
    run(pool, plan)


def run(pool: Pool, plan: diffusion.Plan) -> None:
    """A run of a plan with every option, the arguments good."""
    dtype = pool.rng.choice([torch.float32, torch.float64, torch.bfloat16, torch.float16])
    channels = 2 if plan.learned else 1

    def model(x: torch.Tensor, t: torch.Tensor) -> Any:
        output = torch.cat([0.5 * x] * channels, 1)
        return (output, -output) if guided else output

    guided = not plan.learned and pool.chance(0.3)
    if guided:
        plan = diffusion.guided(plan, 3.0)
    options: Arguments = {"dtype": dtype}
    shape, count = (2, 5), pool.rng.choice([1, 3])
    if pool.chance(0.2):
        options |= {"x": torch.zeros(count, *shape), "region": [slice(0, 1), slice(1, 4)]}
    if pool.chance(0.2):
        options["noise"] = lambda n: torch.ones(count, *shape)
    if pool.chance(0.2):
        options["callback"] = lambda stage, x: None
    if guided and pool.chance(0.3):
        options["adapt"] = (pool.rng.choice([diffusion.rescale(), diffusion.renorm(), diffusion.dynamic_threshold()]),)
    diffusion.sample(model, plan, shape, pool.seeds(count), **options)


def sample(pool: Pool) -> Arguments:
    plan = diffusion.dpmpp_multistep(diffusion.vp_linear(), 3, eta=1.0)
    given: Arguments = {
        "model": lambda x, t: 0.5 * x,
        "plan": plan,
        "shape": (2, 5),
        "seeds": pool.seeds(3),
        "dtype": torch.float32,
    }
    if pool.chance(0.4):
        given["x"] = pool.tensor((3, 2, 5), torch.float32)
    if pool.chance(0.3):
        given["region"] = [slice(0, 1), slice(1, 4)]
    if pool.chance(0.2):
        given["adapt"] = (diffusion.rescale(0.3),)
    return given


def training(pool: Pool) -> Arguments:
    return {
        "schedule": schedule_of(pool), "prediction": pool.rng.choice(list(PREDICTIONS)),
        "weighting": pool.rng.choice(list(WEIGHTINGS)), "density": pool.rng.choice(list(DENSITIES)),
        "offset_noise": pool.rng.choice([0.0, 0.1]), "input_perturbation": pool.rng.choice([0.0, 0.1]),
        "keep_target": pool.chance(0.5),
    }  # fmt: skip


def training_run(pool: Pool, given: Arguments) -> None:
    loss = diffusion.TrainingLoss(**given)
    x0, seeds = pool.tensor((3, 2, 5), torch.float32), torch.arange(3)
    if pool.chance(0.2):
        x0, seeds = pool.rng.choice([(pool.hostile(x0), seeds), (x0, pool.hostile(seeds))])
    noised = loss.noise(x0, seeds)
    prediction = torch.zeros_like(x0, requires_grad=True)
    torch.autograd.grad(loss(prediction, noised).sum(), prediction)


def points(pool: Pool) -> Arguments:
    name = pool.rng.choice(list(SPACINGS))
    has = inspect.signature(SPACINGS[name]).parameters
    choices = {"rho": 3.0, "sigma_min": 0.1, "sigma_max": 9.0, "final": pool.rng.choice(["zero", "sigma_min"])}
    optional = {k: v for k, v in choices.items() if k in has and pool.chance(0.3)}
    return {"spacing": name, "schedule": schedule_of(pool), "steps": pool.rng.choice([1, 2, 10]), **optional}


def schedule(pool: Pool) -> Arguments:
    name = pool.rng.choice(list(SCHEDULES))
    has = inspect.signature(SCHEDULES[name]).parameters
    defaults = {k: p.default for k, p in has.items()}
    return {
        "schedule": name,
        **{k: (v if not isinstance(v, float) or pool.chance(0.5) else v * 1.1) for k, v in defaults.items()},
    }


def path(pool: Pool) -> Arguments:
    return {"seeds": torch.arange(2), "shape": pool.shape(0, 3), "low": 0.1, "high": 5.0}


def path_run(pool: Pool, given: Arguments) -> None:
    made = diffusion.BrownianPath(**given)
    for at in (0.1, 5.0, pool.rng.uniform(0.1, 5.0)):
        made(at)


# --- one case


def differentiated(pool: Pool, call: Callable[..., Any], given: Arguments) -> None:
    """The call, with gradients to the second order where an input may have one."""
    leaves = []

    def leaf(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and pool.chance(0.7):
            leaves.append(value.detach().requires_grad_())
            return leaves[-1]
        return value

    outputs = ("out", "history_out", "next_input", "x0_out")
    asks = pool.chance(0.5) and not any(name in given for name in outputs)
    if asks:
        given = {k: [leaf(v) for v in value] if type(value) is list else leaf(value) for k, value in given.items()}
    result = call(**given)
    results = [r for r in (result if isinstance(result, tuple) else (result,)) if isinstance(r, torch.Tensor)]
    results = [r for r in results if r.requires_grad]
    if not asks or not results:
        return
    first = torch.autograd.grad(results, leaves, [torch.ones_like(r) for r in results], create_graph=True, allow_unused=True)
    again = [g for g in first if g is not None and g.requires_grad]
    if again:
        torch.autograd.grad(again, leaves, [torch.ones_like(g) for g in again], allow_unused=True)


#: (how often, what makes the arguments, what is called with them, or how to run it)
OPS: list[tuple[int, Callable[[Pool], Arguments], Callable[..., Any]]] = [
    (3, randn, pyfold.randn),
    (3, add_noise, pyfold.add_noise),
    (2, denoising_loss, pyfold.denoising_loss),
    (1, mse_loss, pyfold.mse_loss),
    (1, affine_table, ops.affine_table),
    (5, affine_step, pyfold.affine_step),
    (6, fold, pyfold.fold),
    (3, kaleidoscope, pyfold.kaleidoscope),
    (1, sample, diffusion.sample),
]
RUNS: list[tuple[int, Callable[[Pool], Arguments], Callable[[Pool, Arguments], Any], Callable[..., Any] | None]] = [
    (3, fold_with_bits, unfold_of, ops.fold_with_bits),
    (1, module, module_run, nn.Fold),
    (3, sampler, sampler_run, None),
    (1, training, training_run, diffusion.TrainingLoss),
    (1, points, lambda pool, given: SPACINGS[given.pop("spacing")](**given), None),
    (1, schedule, lambda pool, given: SCHEDULES[given.pop("schedule")](**given), None),
    (1, path, path_run, diffusion.BrownianPath),
]


def make(rng: random.Random) -> Case:
    guards = Guards()
    pool = Pool(rng, guards)
    of_ops, of_runs = sum(n for n, *_ in OPS), sum(n for n, *_ in RUNS)
    picked = rng.random() * (of_ops + of_runs) < of_ops
    if picked:
        _, build, function = rng.choices(OPS, [n for n, *_ in OPS])[0]
        given = build(pool)
        call: Callable[[], Any] = lambda: differentiated(pool, function, given)  # noqa: E731
        named = set(inspect.signature(function).parameters)
    else:
        _, build, how, of = rng.choices(RUNS, [n for n, *_ in RUNS])[0]
        given = build(pool)
        call = lambda: how(pool, given)  # noqa: E731
        named = set(inspect.signature(of).parameters) if of else set()
        if "sampler" in given:
            named |= set(inspect.signature(SAMPLERS[given["sampler"]]).parameters)
    names = {n for n in {*given, *named, *PARTS} if n not in ("parameters", "options")}
    spoilt_by: list[str] = []
    if pool.chance(0.5):
        fixed = ("sampler", "spacing") if build is not sampler else ("sampler",)
        spoilt = [n for n in given if n not in fixed and not (build is schedule and n == "schedule")]
        for name in rng.sample(spoilt, min(len(spoilt), rng.choice([1, 1, 2]))):
            given[name] = pool.hostile(given[name])
            spoilt_by.append(f"{name}={str(given[name])[:60]!r}")
    label = f"{given.get('sampler', build.__name__)}({', '.join(spoilt_by)})"
    return Case(call, names | {"seeds", "x0", "x", "y", "t"}, label, guards=guards)
