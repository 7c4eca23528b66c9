"""The ops' entries of tests/digests.py: each variant in every dtype and layout, with gradients to the second order."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from digests import Digest, Entries

import pyfold
from pyfold import ops

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(2, 12, 5, 7), (3, 24), (2, 6, 300)]
#: In inputs here and there: ties of every kind, signed zeros, what is not finite.
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 0.5, math.inf, -math.inf, math.nan]


def uniform(seed: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float64, special: bool = False) -> torch.Tensor:
    """In (-3, 3): a legacy generator of NumPy, whose numbers never change, and no function of a mathematics library."""
    values = np.random.RandomState(zlib.crc32(seed.encode())).random_sample(shape) * 6 - 3
    if special and values.size > 60:
        values.reshape(-1)[7 : 7 + len(SPECIAL)] = SPECIAL
    return torch.from_numpy(values).to(dtype)


def layouts(x: torch.Tensor) -> list[torch.Tensor]:
    found = [x]
    if x.dim() == 4:
        found.append(x.contiguous(memory_format=torch.channels_last))
    larger = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
    found.append(larger[..., ::2].copy_(x))
    return found


def orders(run: Callable[..., Any], leaves: dict[str, torch.Tensor], digests: list[Digest]) -> None:
    """Into three digests: the outputs, the gradients of the leaves, and gradients of what those depend on."""
    given = {k: v.detach().requires_grad_() for k, v in leaves.items()}
    result = run(**given)
    outputs = list(result) if isinstance(result, (list, tuple)) else [result]
    with torch.no_grad():
        again = run(**{k: v.detach() for k, v in leaves.items()})
    digests[0].add(again, *outputs)
    learnt = [y for y in outputs if y.requires_grad]
    if not learnt:
        return
    cotangents = [uniform(f"cotangent {i}", tuple(y.shape), y.dtype).requires_grad_() for i, y in enumerate(learnt)]
    first = torch.autograd.grad(learnt, list(given.values()), cotangents, create_graph=True, allow_unused=True)
    digests[1].add([g if g is None else g.contiguous() for g in first])
    again = [(i, g) for i, g in enumerate(first) if g is not None and g.requires_grad]
    if not again:
        return
    directions = [uniform(f"direction {i}", tuple(g.shape), g.dtype) for i, g in again]
    targets = [*given.values(), *cotangents]
    digests[2].add(torch.autograd.grad([g for _, g in again], targets, directions, allow_unused=True))


def in_orders(cases: Callable[[torch.dtype], Any]) -> dict[str, str]:
    digests = [Digest(), Digest(), Digest()]
    for dtype in DTYPES:
        for run, leaves in cases(dtype):
            orders(run, leaves, digests)
    return dict(zip(("forward", "backward", "second"), (d.text() for d in digests), strict=True))


# --- folds

FOLDS: dict[str, dict[str, Any]] = {
    "abs": {"kind": "abs"},
    "abs, bias, gain, clamp": {"kind": "abs", "bias": True, "gain": 1.25, "clamp": 0.9},
    "abs, offset": {"kind": "abs", "offset": -0.4},
    "leaky": {"kind": "leaky", "slope": -0.6},
    "leaky, bias, gain, clamp": {"kind": "leaky", "bias": True, "gain": 1.25, "clamp": 0.9},
    "leaky, learned": {"kind": "leaky", "learned": ("slope", 1)},
    "box": {"kind": "box", "length": 0.6},
    "box, bias": {"kind": "box", "bias": True},
    "tri": {"kind": "tri", "length": 0.4, "phase": 0.3},
    "maxmin": {"kind": "maxmin"},
    "maxmin, halves": {"kind": "maxmin", "pairing": "halves"},
    "maxmin, bias, gain, clamp": {"kind": "maxmin", "bias": True, "gain": 0.75, "clamp": 0.8},
    "groupsort": {"kind": "groupsort"},
    "groupsort 2, bias, gain, clamp": {"kind": "groupsort", "size": 2, "bias": True, "gain": 0.75, "clamp": 0.8},
    "groupsort 3": {"kind": "groupsort", "size": 3},
    "groupsort 6": {"kind": "groupsort", "size": 6},
    "sortabs 2": {"kind": "sortabs", "size": 2},
    "sortabs 3, gain": {"kind": "sortabs", "size": 3, "gain": 0.5},
    "householder": {"kind": "householder", "angle": 0.9},
    "householder, learned": {"kind": "householder", "learned": ("angle", 2)},
    "householder, learned, bias, clamp": {"kind": "householder", "learned": ("angle", 2), "bias": True, "clamp": 1.1},
    "householder, halves, bias": {"kind": "householder", "angle": -0.3, "pairing": "halves", "bias": True},
    "dihedral": {"kind": "dihedral", "m": 5, "angle": 0.7},
    "dihedral, halves, bias": {"kind": "dihedral", "pairing": "halves", "bias": True},
    "dihedral, learned": {"kind": "dihedral", "m": 4, "learned": ("angle", 2)},
    "hyperplane": {"kind": "hyperplane", "normals": 3},
    "hyperplane, learned": {"kind": "hyperplane", "learned": ("normal", 0)},
    "crelu, bias": {"kind": "crelu", "bias": True},
    "sphere": {"kind": "sphere", "radius": 4.5, "inner": 2.7},
    "ball, gain": {"kind": "ball", "radius": 3.0, "gain": 0.5},
    "soft": {"kind": "soft"},
}  # fmt: skip


def fold_cases(variant: dict[str, Any], dtype: torch.dtype):
    for shape in SHAPES:
        for dim in (1, -1):
            channels = shape[dim]
            options = {k: v for k, v in variant.items() if k not in ("kind", "bias", "learned", "normals")}
            group = {"sphere": 1, "ball": 1, "soft": 1, "crelu": 1}.get(variant["kind"], options.get("size", 2))
            if channels % group or (variant["kind"] in ("groupsort", "sortabs", "hyperplane") and channels > 30):
                continue
            leaves = {}
            if variant.get("bias"):
                leaves["bias"] = uniform("bias", (channels,), dtype)
            if "learned" in variant:
                name, per = variant["learned"]
                size = (3, channels) if per == 0 else (channels // per,)
                leaves[name] = uniform(name, size, dtype) / 3
            if "normals" in variant:
                options["normal"] = uniform("normal", (variant["normals"], channels), dtype)
                options["offset"] = uniform("offset", (variant["normals"],), dtype) / 10
            for x in layouts(uniform("x", shape, dtype, special=True)):
                yield partial(pyfold.fold, kind=variant["kind"], dim=dim, **options), {"x": x, **leaves}


UNFOLDED = {
    name: FOLDS[name]
    for name in (
        "abs", "abs, offset", "leaky", "box", "tri", "maxmin", "maxmin, halves", "groupsort 3", "sortabs 2", "householder",
        "dihedral", "hyperplane", "sphere",
    )
}  # fmt: skip


def unfolded(variant: dict[str, Any]) -> str:
    digest = Digest()
    for dtype in DTYPES:
        for run, leaves in fold_cases(variant, dtype):
            if variant["kind"] == "sphere" and leaves["x"].shape[run.keywords["dim"]] > 30:
                continue  # more than its program takes
            options = {k: v for k, v in run.keywords.items() if k != "gain"}
            y, bits = ops.fold_with_bits(**leaves, **options)
            digest.add(y, ops.unfold(y, bits, **options))
    return digest.text()


TURN = [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.6, 0.0, 0.0, 0.8], [0.8, 0.0, 0.0, -0.6]]
KALEIDOSCOPES: dict[str, dict[str, Any]] = {
    "boxes": {"folds": [("box", {"length": 0.8}), ("abs", {"offset": -0.3})], "scale": 1.5, "iterations": 3, "centre": True},
    "sorts": {"folds": ["abs", "groupsort"], "scale": -1.3, "iterations": 2},
    "pairs": {"folds": ["maxmin", ("dihedral", {"m": 3, "pairing": "halves"})], "iterations": 2},
    "turned": {"folds": ["abs", ("householder", {"angle": 0.4})], "rotation": TURN, "scale": 0.7, "iterations": 2},
    "spheres": {"folds": ["box", "sphere"], "scale": 2.0, "iterations": 2},
    "long": {"folds": ["tri", "sortabs"], "scale": 1.1, "iterations": 40},
}


def kaleidoscope_cases(variant: dict[str, Any], dtype: torch.dtype):
    for shape in ((2, 4, 5, 7), (3, 4, 90)):
        options = {**variant, **({"centre": [0.1, -0.2, 0.3, -0.4]} if variant.get("centre") else {})}
        for x in layouts(uniform("x", shape, dtype)):
            yield partial(pyfold.kaleidoscope, **options), {"x": x}


# --- noise, losses, steps

SEEDS = torch.tensor([7, -3, 2**62 + 5])
WINDOW = {"offset": [1, 2, 3], "global_shape": [9, 8, 40]}
NOISES: dict[str, dict[str, Any]] = {
    "plain": {},
    "stream and step": {"stream": 2**32 - 1, "step": 2**31 + 7},
    "window": WINDOW,
}


def noise(variant: dict[str, Any]) -> dict[str, str]:
    found = {}
    for dtype in DTYPES:
        digest = Digest()
        for shape in ([4, 5, 33], [1, 1, 1], [3, 2, 1030] if "offset" not in variant else [2, 5, 37]):
            digest.add(pyfold.randn(SEEDS, shape, dtype=dtype, **variant))
            out = torch.empty(3, *shape, dtype=dtype).to(memory_format=torch.contiguous_format).transpose(1, 3).contiguous()
            digest.add(pyfold.randn(SEEDS, shape, out=out.transpose(1, 3), **variant))
        found[str(dtype).removeprefix("torch.")] = digest.text()
    return found


TARGETS = {"epsilon": "epsilon", "x0": "x0", "v": "v", "flow": "flow", "pair": (0.3, -1.2)}
ALPHA, SIGMA = torch.tensor([0.8, 0.1, 1.0], dtype=torch.float64), torch.tensor([0.6, 0.99, 0.0], dtype=torch.float64)


def noising_cases(op: Callable[..., Any], variant: dict[str, Any], dtype: torch.dtype):
    for shape in ((3, 4, 5, 33), (3, 2, 2, 1030)):
        if "offset" in variant and shape[-1] > 40:
            continue
        for x in layouts(uniform("x0", shape, dtype)):
            if op is pyfold.add_noise:
                yield partial(op, alpha=ALPHA, sigma=SIGMA, seeds=SEEDS, **variant), {"x0": x}
            elif op is pyfold.mse_loss:
                yield partial(op, **variant), {"prediction": uniform("prediction", shape, dtype), "target": x}
            else:
                leaves = {"prediction": uniform("prediction", shape, dtype), "x0": x}
                yield partial(op, alpha=ALPHA, sigma=SIGMA, seeds=SEEDS, **variant), leaves


STEPS: dict[str, dict[str, Any]] = {
    "deterministic": {},
    "clipped": {"clip": True},
    "one noise": {"noises": 1},
    "history": {"history": 4},
    "guided": {"models": 3},
    "base": {"base": True},
    "everything": {"models": 3, "base": True, "history": 4, "noises": 3, "clip": True},
}


def step_table(models=1, base=False, history=0, noises=0, clip=False) -> torch.Tensor:
    names = ["a", "c_u", "r", "s", "p", "q", "c_x0", "t", "c_in", *(["a_base"] if base else [])]
    names += [f"b{i + 1}" for i in range(history)] + [f"d{k + 1}" for k in range(noises)] + [f"g{j + 1}" for j in range(models)]
    values = uniform("table", (5, len(names))) / 2
    rows = []
    for i in range(5):
        row = dict(zip(names, values[i].tolist(), strict=True)) | {f"n{k + 1}": 1000 * i + k for k in range(noises)}
        if i == 3:  # a row of few terms
            row = {k: v for k, v in row.items() if k in ("a", "c_x0", "q", "g1", "n1", "d1")}
        rows.append(row | ({"clip_min": -0.8, "clip_max": 0.9} if clip else {}))
    return ops.affine_table(rows, torch.device("cpu"))


def step_operands(variant: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype, low: torch.dtype):
    options: dict[str, Any] = {"table": step_table(**variant)}
    if variant.get("noises"):
        options["seeds"] = SEEDS
    leaves: dict[str, Any] = {"x": uniform("x", shape, dtype)}
    leaves |= {f"model{j}": uniform(f"model{j}", shape, low) for j in range(variant.get("models", 1))}
    leaves |= {f"history{j}": uniform(f"history{j}", shape, dtype) for j in range(variant.get("history", 0))}
    if variant.get("base"):
        leaves["base"] = uniform("base", shape, dtype)
    return options, leaves


def step_run(options: dict[str, Any], x, base=None, **named):
    models = [v for k, v in named.items() if k.startswith("model")]
    history = [v for k, v in named.items() if k.startswith("history")]
    return pyfold.affine_step(x, models, base=base, history=history, **options)


def steps(variant: dict[str, Any]) -> dict[str, str]:
    """With each index, layout and dtype; with every output in place; with gradients."""
    digests = [Digest(), Digest(), Digest()]
    kept = Digest()
    index = torch.tensor([3, 0, 4])
    for dtype, low in [*((d, d) for d in DTYPES), (torch.float32, torch.bfloat16), (torch.float32, torch.float16)]:
        for shape in ((3, 4, 5, 33), (3, 1100)):
            options, leaves = step_operands(variant, shape, dtype, low)
            for where in (index, torch.tensor([2])):
                orders(partial(step_run, {**options, "index": where}), leaves, digests)
                for last in (False, True) if len(shape) == 4 else (False,):
                    form = torch.channels_last if last else torch.contiguous_format
                    laid = {k: v.to(memory_format=form) for k, v in leaves.items()}
                    outs = {n: torch.empty_like(laid["x"]) for n in ("out", "history_out", "x0_out")}
                    outs["next_input"] = torch.empty_like(laid["model0"])
                    step_run({**options, "index": where, **outs}, **laid)
                    kept.add(*outs.values())
                    # The state and the oldest entry in place.
                    outs |= {"out": laid["x"], "history_out": laid.get("history3", outs["history_out"])}
                    step_run({**options, "index": where, **outs}, **laid)
                    kept.add(*outs.values())
            if len(shape) == 4:
                kept.add(step_run({**options, "index": index, "offset": [1, 2, 3], "global_shape": [9, 8, 40]}, **leaves))
    return {**dict(zip(("forward", "backward", "second"), (d.text() for d in digests), strict=True)), "outputs": kept.text()}


def entries() -> Entries:
    for name, variant in FOLDS.items():
        yield f"fold/{name}", partial(in_orders, partial(fold_cases, variant))
    for name, variant in UNFOLDED.items():
        yield f"unfold/{name}", partial(unfolded, variant)
    for name, variant in KALEIDOSCOPES.items():
        yield f"kaleidoscope/{name}", partial(in_orders, partial(kaleidoscope_cases, variant))
    for name, variant in NOISES.items():
        yield f"randn/{name}", partial(noise, variant)
    for name, target in {"none": None, **TARGETS}.items():
        variant = {"target": target, **({"stream": 5, "step": 9} if name == "v" else WINDOW if name == "flow" else {})}
        yield f"add_noise/{name}", partial(in_orders, partial(noising_cases, pyfold.add_noise, variant))
        if target is not None:
            variant["weight"] = None if name == "epsilon" else torch.tensor([0.37, 0.0, 1.9])
            yield f"denoising_loss/{name}", partial(in_orders, partial(noising_cases, pyfold.denoising_loss, variant))
    for weight in (None, 0.7):
        yield f"mse_loss/{weight}", partial(in_orders, partial(noising_cases, pyfold.mse_loss, {"weight": weight}))
    for name, variant in STEPS.items():
        yield f"affine_step/{name}", partial(steps, variant)
