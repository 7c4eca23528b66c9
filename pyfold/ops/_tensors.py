"""What the families of ops share."""

from __future__ import annotations

import torch
from torch.autograd.graph import increment_version
from torch.compiler import is_compiling


def _accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _per_sample(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[B] against [B, ...]."""
    return value.reshape(-1, *[1] * (like.dim() - 1))


def _rows(table, index, samples):
    if index is not None:
        table = table[index.reshape(-1)]
    return table.expand(samples, -1)


def _output_dtype(name, dtype, out, x0):
    if dtype is None:
        dtype = out.dtype if out is not None else x0.dtype
    allowed = (x0.dtype, torch.bfloat16, torch.float16) if x0.dtype == torch.float32 else (x0.dtype,)
    if dtype not in allowed:
        raise TypeError(f"{name} must be {' or '.join(map(str, allowed))} for {x0.dtype} input, got {dtype}")
    return dtype


def _normal(shape, dtype, device, generator):
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device=device, dtype=dtype)


def wrote(*outputs: torch.Tensor | None) -> None:
    """Tells autograd that tensors of the caller's hold new values, so that it refuses a gradient that needs the old ones."""
    if is_compiling():
        return
    for output in outputs:
        if output is not None and not output.is_inference():
            increment_version(output)
