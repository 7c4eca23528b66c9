"""What the CUDA kernels execute, counted by the simulated GPU: PTX instructions an element and how memory is reached.

    PYFOLD_GPU_TEST=build/gpu_test python tests/gpu/workloads.py    # one JSON object

PTX is what nvcc hands to the assembler of each architecture; tools/machine_code.py takes the counts of its lines on to
machine code."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import torch
from compared import OnDevice
from simulator import counted, module_text, report

import pyfold
from pyfold import ops

SHAPE, ODD = (2, 4, 64, 64), (2, 3, 63, 63)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Run = Callable[[], Any]


def operand(dtype: torch.dtype, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def steps(dtype: torch.dtype) -> dict[str, Run]:
    """The state is float32; the output of the model has the dtype."""
    x, model, out = operand(torch.float32), operand(dtype), torch.empty(SHAPE)
    odd = operand(torch.float32, ODD), operand(dtype, ODD), torch.empty(ODD)
    last = model.contiguous(memory_format=torch.channels_last)
    ddim = ops.affine_table([{"c_x0": 0.9, "c_u": 0.3, "p": 1.1, "q": -0.4, "s": 1.0}])
    ddpm = ops.affine_table([{"a": 0.4, "c_x0": 0.9, "d1": 0.3, "p": 1.1, "q": -0.4, "clip_min": -1.0, "clip_max": 1.0}])
    seeds = torch.arange(2)
    return {
        "DDIM step": lambda: pyfold.affine_step(x, model, ddim, out=out),
        "DDPM step": lambda: pyfold.affine_step(x, model, ddpm, seeds=seeds, out=out),
        "DDIM step, channels_last model": lambda: pyfold.affine_step(x, last, ddim, out=out),
        "DDIM step, samples of 3x63x63": lambda: pyfold.affine_step(odd[0], odd[1], ddim, out=odd[2]),
        "randn": lambda: pyfold.randn(seeds, SHAPE[1:], dtype=dtype),
        "add_noise": lambda: pyfold.add_noise(model, 0.8, 0.6, seeds),
        "loss": lambda: pyfold.denoising_loss(model, model.clone(), 0.8, 0.6, seeds),
    }


def folds(dtype: torch.dtype) -> dict[str, Run]:
    maps, rows = operand(dtype, (2, 8, 32, 64)), operand(dtype, (128, 256))
    units = {"maps": (maps, 1), "rows": (rows, 1)}
    raw = torch.ops.pyfold
    runs: dict[str, Run] = {}
    for kind in ("abs", "maxmin", "householder"):
        for name, (x, dim) in units.items():
            lines = x.shape[dim] // (1 if kind == "abs" else 2)
            angle = torch.linspace(0.1, 1.3, lines) if kind == "householder" else None
            of = dim, "adjacent", 1
            bits = raw.fold(x, None, angle, *of, kind, 1.0, 0.0, True)[1]
            runs[f"{kind}, {name}"] = lambda x=x, a=angle, of=of, k=kind: raw.fold(x, None, a, *of, k, 1.0, 0.0, True)
            runs[f"{kind} backward, {name}"] = lambda x=x, a=angle, of=of, k=kind, b=bits: raw.fold_backward(
                x, b, None, a, *of, k, 1.0, False
            )
            if angle is not None:
                runs[f"angle gradient, {name}"] = lambda x=x, of=of, b=bits: raw.fold_angle_grad(x, x, b, *of)
    for kind, options in (("groupsort", {"size": 8}), ("box", {})):
        runs[f"{kind}, rows"] = lambda k=kind, o=options: ops.fold_with_bits(rows, k, **o)
    return runs


def executed(run: Run) -> list[dict[str, Any]]:
    """The kernels that were launched, as the simulated GPU reports them."""
    with torch.no_grad(), OnDevice():
        with counted(sectors=True):
            run()
        return [kernel for kernel in report() if kernel["launches"]]


def summary(kernels: list[dict[str, Any]], elements: int) -> dict[str, float]:
    found = {"PTX an element": round(sum(k["instructions"] for k in kernels) / elements, 2)}
    for way in ("loads", "stores"):
        requests, sectors = (sum(k[way][what] for k in kernels) for what in ("requests", "sectors"))
        found[f"{way}: sectors an element"] = round(sectors / elements, 4)
        found[f"{way}: sectors a request"] = round(sectors / requests, 3) if requests else 0.0
        found[f"{way}: widest"] = max(k[way]["widest"] for k in kernels)
    return found


#: What tools/machine_code.py reads of a kernel.
OF_KERNEL = ("symbol", "threads", "block threads", "block shared", "lines", "loads", "stores")


def main() -> None:
    counts: dict[str, dict[str, Any]] = {}
    profile: dict[str, dict[str, Any]] = {}
    texts: list[str] = []
    modules: dict[str, int] = {}
    for name, dtype in DTYPES.items():
        for workload, run in (steps(dtype) | folds(dtype)).items():
            elements = math.prod(ODD if "63x63" in workload else SHAPE)
            kernels = executed(run)
            counts.setdefault(workload, {})[name] = summary(kernels, elements)
            of_kernels = [{what: kernel[what] for what in OF_KERNEL} for kernel in kernels]
            profile.setdefault(workload, {})[name] = {"elements": elements, "kernels": of_kernels}
            for symbol in {kernel["symbol"] for kernel in kernels} - set(modules):
                text = module_text(symbol)
                if text not in texts:
                    texts.append(text)
                modules[symbol] = texts.index(text)
    print(json.dumps({"counts": counts, "profile": profile, "texts": texts, "modules": modules}))


if __name__ == "__main__":
    main()
