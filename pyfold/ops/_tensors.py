"""What the families of ops share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.autograd.graph import increment_version
from torch.compiler import is_compiling


def accumulation(dtype: torch.dtype) -> torch.dtype:
    """What values of a floating dtype are computed and summed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def per_sample(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[B] against [B, ...]."""
    return value.reshape(-1, *[1] * (like.dim() - 1))


def sample_rows(table: torch.Tensor, index: torch.Tensor | None, samples: int) -> torch.Tensor:
    """Each sample's row of a table; NaN where the table has no such row, as in the kernels."""
    if index is not None:
        index = index.reshape(-1)
        inside = (index >= 0) & (index < table.shape[0])
        table = torch.where(inside.unsqueeze(1), table[index.clamp(0, table.shape[0] - 1)], float("nan"))
    return table.expand(samples, -1)


def clip(x: torch.Tensor, bound: float) -> torch.Tensor:
    """To ±bound as the kernels: the gradient passes at the bound itself, which torch's own clamp lets it do until 2.14."""
    return torch.where(x.detach().abs() <= bound, x, x.detach().clamp(-bound, bound))


def is_dense(x: torch.Tensor) -> bool:
    """Whether x fills a stretch of memory without gaps or overlap, in any order of its dimensions."""
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return True
    expected = 1
    for stride, size in sorted((x.stride(d), x.shape[d]) for d in range(x.dim()) if x.shape[d] != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def normal(shape: Sequence[int], dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(device=device, dtype=dtype)


def sample_seeds(samples: int, device: torch.device, generator: torch.Generator, keys: bool = False) -> torch.Tensor:
    """Seeds, or keys, for one call of an op."""
    words = torch.randint(-(2**62), 2**62, (samples, 2) if keys else (samples,), generator=generator)
    return (words.view(torch.uint64) if keys else words).to(device)


def wrote(*outputs: torch.Tensor | None) -> None:
    """Tells autograd that tensors of the caller's hold new values, so that it refuses a gradient that needs the old ones."""
    if is_compiling():
        return
    for output in outputs:
        if output is not None and not output.is_inference():
            increment_version(output)
