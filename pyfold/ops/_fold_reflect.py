"""The folds of one reflection each: abs, maxmin and householder, whose angle learns inside the kernel."""

from __future__ import annotations

from typing import Any

import torch

from pyfold.ops._autograd import Differentiable, functorch_active
from pyfold.ops._call import SHAPES
from pyfold.ops._fold_memory import (
    batch_first,
    bit_bytes,
    bits_first,
    channel_sum,
    in_order_of,
    one_of_batch,
    split_batch,
    unbatched,
)

#: Values folded together.
COMPONENTS = {"abs": 1, "maxmin": 2, "householder": 2}

# fold_backward and fold_rotate are linear maps and fold_angle_grad is bilinear, so these rules are closed under
# differentiation and give gradients of any order. What is saved: the bits, and the output where the angle learns.
# Operands of a fold: x, bias, angle, dim, pairing, groups, kind, gain, clamp, save_bits.


def _fold_save(ctx: Any, args: Any, output: Any) -> None:
    _x, bias, angle, *units, kind, gain, _clamp, _save_bits = args
    y, bits, clamped = output
    ctx.fixed = units, (kind, gain)
    ctx.strides = y.stride()
    ctx.bias_like = None if bias is None else (bias.dtype, bias.shape)
    learns = angle is not None and (angle.requires_grad or functorch_active())
    ctx.save_for_backward(bits, clamped, angle, y if learns else None)


def _fold_backward(ctx: Any, grad: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 10
    bits, clamped, angle, y = ctx.saved_tensors
    units, kind_and_gain = ctx.fixed
    grad = in_order_of(grad, ctx.strides)
    needs = ctx.needs_input_grad
    to_x = to_bias = to_angle = None
    if needs[0] or needs[1]:
        to_x = reflect_backward(grad, bits, clamped, angle, *units, *kind_and_gain, False)
        if needs[1]:
            to_bias = channel_sum(to_x, units[0], ctx.bias_like)
    if needs[2]:
        to_angle = _angle_grad(grad, y, bits, *units).to(angle.dtype).reshape(angle.shape)
    return to_x, to_bias, to_angle, *[None] * 7


def _fold_vmap(
    info: Any, in_dims: Any, x: Any, bias: Any, angle: Any, dim: int, pairing: str, groups: int, *options: Any
) -> Any:
    unbatched(in_dims[1:3], ("bias", "angle"))
    size = info.batch_size
    # With its bits, also where a parameter needs a gradient, of which the fast path gives the fold alone.
    y, bits, clamped = reflect.function(
        batch_first(x, in_dims[0], size), bias, angle, dim + 1, pairing, groups * size, *options
    )
    return (y, split_batch(bits, size), split_batch(clamped, size)), (0, 0, 0)


# Operands: grad, bits, clamped, angle, dim, pairing, groups, kind, gain, transpose.


def _backward_save(ctx: Any, args: Any, output: Any) -> None:
    _grad, bits, clamped, angle, *units, kind, gain, transpose = args
    ctx.fixed = units, (kind, gain), transpose
    ctx.strides = output.stride()
    learns = angle is not None and (angle.requires_grad or functorch_active())
    ctx.save_for_backward(bits, clamped, angle, output if learns else None)


def _backward_backward(ctx: Any, cotangent: torch.Tensor) -> tuple[Any, ...]:
    bits, clamped, angle, output = ctx.saved_tensors
    units, kind_and_gain, transpose = ctx.fixed
    cotangent = in_order_of(cotangent, ctx.strides)
    to_grad = to_angle = None
    if ctx.needs_input_grad[0]:
        to_grad = reflect_backward(cotangent, bits, clamped, angle, *units, *kind_and_gain, not transpose)
    if ctx.needs_input_grad[3]:
        # fold() never combines a learned angle with clamp, so gain is all that the diagonal part holds.
        to_angle = _angle_grad(cotangent, output, bits, *units).to(angle.dtype).reshape(angle.shape)
    return to_grad, None, None, to_angle, *[None] * 6


def _backward_vmap(
    info: Any, in_dims: Any, grad: Any, bits: Any, clamped: Any, angle: Any, dim: int, pairing: str, groups: int, *options: Any
) -> Any:
    unbatched(in_dims[3:4], ("angle",))
    size = info.batch_size
    grad = batch_first(grad, in_dims[0], size)
    bits, clamped = bits_first(bits, in_dims[1], size), bits_first(clamped, in_dims[2], size)
    return reflect_backward(grad, bits, clamped, angle, dim + 1, pairing, groups * size, *options), 0


# Operands: grad, output, bits, dim, pairing, groups.


def _angle_grad_save(ctx: Any, args: Any, output: Any) -> None:
    grad, value, bits, *ctx.units = args
    ctx.save_for_backward(grad, value, bits)


def _angle_grad_backward(ctx: Any, weight: torch.Tensor) -> tuple[Any, ...]:
    grad, value, bits = ctx.saved_tensors
    to_grad = _rotate(value, bits, weight, *ctx.units) if ctx.needs_input_grad[0] else None
    to_value = _rotate(grad, bits, -weight, *ctx.units) if ctx.needs_input_grad[1] else None
    return to_grad, to_value, *[None] * 4


def _angle_grad_vmap(info: Any, in_dims: Any, grad: Any, output: Any, bits: Any, *units: Any) -> Any:
    # One sum for each entry of the batch.
    tensors = grad, output, bits
    sums = [
        _angle_grad(*(one_of_batch(v, d, i) for v, d in zip(tensors, in_dims[:3], strict=True)), *units)
        for i in range(info.batch_size)
    ]
    return torch.stack(sums), 0


# Operands: value, bits, weight, dim, pairing, groups.


def _rotate_save(ctx: Any, args: Any, output: Any) -> None:
    value, bits, weight, *ctx.units = args
    ctx.save_for_backward(value, bits, weight)
    ctx.strides = value.stride()


def _rotate_backward(ctx: Any, cotangent: torch.Tensor) -> tuple[Any, ...]:
    value, bits, weight = ctx.saved_tensors
    cotangent = in_order_of(cotangent, ctx.strides)
    to_value = _rotate(cotangent, bits, -weight, *ctx.units) if ctx.needs_input_grad[0] else None
    to_weight = None
    if ctx.needs_input_grad[2]:
        to_weight = _angle_grad(cotangent, value, bits, *ctx.units).to(weight.dtype)
    return to_value, None, to_weight, *[None] * 3


def _rotate_vmap(info: Any, in_dims: Any, value: Any, bits: Any, weight: Any, dim: int, pairing: str, groups: int) -> Any:
    size = info.batch_size
    if in_dims[2] is not None:
        tensors = value, bits, weight
        each = [
            _rotate(*(one_of_batch(v, d, i) for v, d in zip(tensors, in_dims[:3], strict=True)), dim, pairing, groups)
            for i in range(size)
        ]
        return torch.stack(each), 0
    value, bits = batch_first(value, in_dims[0], size), bits_first(bits, in_dims[1], size)
    return _rotate(value, bits, weight, dim + 1, pairing, groups * size), 0


reflect = Differentiable("fold", _fold_save, _fold_backward, _fold_vmap, 3)
reflect_backward = Differentiable("fold_backward", _backward_save, _backward_backward, _backward_vmap, 4)
_angle_grad = Differentiable("fold_angle_grad", _angle_grad_save, _angle_grad_backward, _angle_grad_vmap, 3)
_rotate = Differentiable("fold_rotate", _rotate_save, _rotate_backward, _rotate_vmap, 3)


# --- shape rules


def _bits(given: dict[str, Any], planes: int) -> torch.Tensor:
    x, groups = given["x"], given["groups"]
    size = bit_bytes(x.numel(), COMPONENTS[given["kind"]], planes, groups) if given["save_bits"] else 0
    return x.new_empty((groups, size), dtype=torch.uint8)  # type: ignore[no-any-return]


SHAPES["bits"] = lambda given: _bits(given, 1)
SHAPES["clamped"] = lambda given: _bits(given, COMPONENTS[given["kind"]] if given["clamp"] > 0 else 0)
