"""Memory order, batches under vmap, and recorded calls, of folds and their bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.compiler import is_compiling

from pyfold import _C
from pyfold.ops._autograd import plain_apply
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


# --- calls that were checked before, with a gradient


def recorded(name: str, whole_backward: Callable[..., Any]) -> Callable[..., Any]:
    """Such calls of one reflection, or of a program: (x, bias, angle or parameters, plan) -> y.

    C++ runs forward and, where it is plain, the gradient of x; ``whole_backward`` is that of the op.
    """

    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        to_x = None if is_compiling() else _C.recorded_gradient(ctx, grad)
        if to_x is not None:
            return to_x, None, None, None
        plan, ctx.strides, bias_dtype = ctx.call
        *ctx.rest, _remember = plan[2]
        ctx.bias_like = bias_dtype, (-1,)
        return *whole_backward(ctx, grad)[:3], None

    methods = {"forward": staticmethod(_C.record_fold), "backward": staticmethod(backward)}
    return plain_apply(type(name, (torch.autograd.Function,), methods))
