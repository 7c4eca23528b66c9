"""Memory order, and batches under vmap, of folds and their bits."""

from __future__ import annotations

from typing import Any

import torch

from pyfold.ops._tensors import accumulation


def first(result: Any) -> torch.Tensor:
    """The fold, of what an op returns that may have saved bits too."""
    y: torch.Tensor = result[0] if isinstance(result, tuple) else result
    return y


def channel_sum(value: torch.Tensor, dim: int, like: tuple[torch.dtype, torch.Size]) -> torch.Tensor:
    """The gradient of a bias: the sum over all dimensions but dim, in the accumulation type."""
    others = [d for d in range(value.dim()) if d != dim]
    value = value.to(accumulation(value.dtype))
    return (value.sum(others) if others else value).to(like[0]).reshape(like[1])


def in_order_of(value: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """value with the memory order that the bits were packed in."""
    if value.stride() == strides:
        return value
    order = sorted(range(value.dim()), key=lambda d: -strides[d])
    return value.permute(order).contiguous().permute([order.index(d) for d in range(value.dim())])


# --- vmap: the batch becomes the outermost dimension, and each of its entries a group of bits of its own.


def batch_first(value: torch.Tensor, dim: int | None, size: int) -> torch.Tensor:
    value = value.unsqueeze(0).expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    return value.contiguous()


def bits_first(bits: torch.Tensor | None, dim: int | None, size: int) -> torch.Tensor | None:
    if bits is None:
        return None
    bits = batch_first(bits, dim, size)
    return bits.reshape(bits.shape[0] * bits.shape[1], bits.shape[2])


def split_batch(value: torch.Tensor, size: int) -> torch.Tensor:
    return value.reshape(size, value.shape[0] // size, *value.shape[1:])


def one_of_batch(value: torch.Tensor, dim: int | None, i: int) -> torch.Tensor:
    return value if dim is None else value.select(dim, i).contiguous()


def unbatched(in_dims: tuple[int | None, ...], names: tuple[str, ...]) -> None:
    for name, dim in zip(names, in_dims, strict=True):
        if dim is not None:
            raise ValueError(f"under vmap the {name} of a fold must not be batched")


def bit_bytes(numel: Any, width: int, planes: int, groups: int = 1) -> Any:
    """Bytes of the bits of each group of a tensor of numel values, units of so many."""
    return planes * ((numel // width // groups + 7) // 8)
