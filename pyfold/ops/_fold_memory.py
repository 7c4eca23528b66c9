"""Memory order, and batches under vmap, of folds and their bits."""

from __future__ import annotations

import torch

from pyfold.ops._tensors import _accumulation


def in_accumulation(values: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    """Parameters as the kernels for a tensor take them."""
    return None if values is None else values.to(_accumulation(like.dtype)).contiguous()


def channel_sum(value: torch.Tensor, dim: int) -> torch.Tensor:
    """The sum over all dimensions but dim, in the accumulation type."""
    others = [d for d in range(value.dim()) if d != dim]
    value = value.to(_accumulation(value.dtype))
    return value.sum(others) if others else value


def in_order_of(value: torch.Tensor, strides: tuple[int, ...] | None) -> torch.Tensor:
    """value with the memory order that the bits were packed in; None: that of a contiguous tensor."""
    if strides is None:
        return value.contiguous()
    if value.stride() == strides:
        return value
    return torch.empty_strided(value.shape, strides, dtype=value.dtype, device=value.device).copy_(value)


# --- vmap: the batch becomes the outermost dimension, and each of its entries a group of bits of its own.


def batch_first(value: torch.Tensor, dim: int | None, size: int) -> torch.Tensor:
    value = value.unsqueeze(0).expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    return value.contiguous()


def bits_first(bits: torch.Tensor, dim: int | None, size: int) -> torch.Tensor:
    bits = batch_first(bits, dim, size)
    return bits.reshape(bits.shape[0] * bits.shape[1], bits.shape[2])


def split_batch(value: torch.Tensor, size: int) -> torch.Tensor:
    return value.reshape(size, value.shape[0] // size, *value.shape[1:])


def unbatched(in_dims: tuple, names: tuple[str, ...]) -> None:
    for name, dim in zip(names, in_dims, strict=True):
        if dim is not None:
            raise ValueError(f"under vmap the {name} of a fold must not be batched")
