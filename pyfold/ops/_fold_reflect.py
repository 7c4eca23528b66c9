"""The three folds of one reflection each: abs, maxmin and householder, whose angle learns inside the kernel."""

from __future__ import annotations

import torch
from torch.compiler import is_compiling

from pyfold import _C
from pyfold.ops._autograd import Differentiable, functorch_active
from pyfold.ops._fold_memory import (
    batch_first,
    bits_first,
    channel_sum,
    in_accumulation,
    in_order_of,
    recorded,
    split_batch,
    unbatched,
)
from pyfold.ops._tensors import _accumulation

#: Values folded together.
COMPONENTS = {"abs": 1, "maxmin": 2, "householder": 2}

# fold_backward and fold_rotate are linear maps and fold_angle_grad is bilinear, so these rules are closed under
# differentiation and give gradients of any order. What is remembered: the bits, and the output where the angle learns.


def _fold_forward(x, bias, angle, kind, dim, pairing, gain, clamp, groups, remember=True):
    bias, angle = in_accumulation(bias, x), in_accumulation(angle, x)
    if not is_compiling():
        done = _C.fold_forward(x, bias, angle, kind, dim, pairing, gain, clamp, groups, remember)
        if done is not None:
            return done
    return torch.ops.pyfold.fold(x, bias, angle, kind, dim, pairing, gain, clamp, groups, remember)


def _fold_save(ctx, args, output):
    x, bias, angle, *ctx.rest, _remember = args
    y, bits, clamped = output
    ctx.mark_non_differentiable(bits, clamped)
    ctx.set_materialize_grads(False)
    ctx.strides = y.stride()
    ctx.bias_like = None if bias is None else (bias.dtype, bias.shape)
    learns = angle is not None and angle.requires_grad
    ctx.save_for_backward(bits, clamped, angle, y if learns or (angle is not None and functorch_active()) else None)


def _fold_backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 10
    bits, clamped, angle, y = ctx.saved_tensors
    kind, dim, pairing, gain, _clamp, groups = ctx.rest
    grad = in_order_of(grad, ctx.strides)
    to_x = to_bias = to_angle = None
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        to_x = reflect_backward(grad, bits, clamped, angle, kind, dim, pairing, gain, groups, False)
        if ctx.needs_input_grad[1]:
            dtype, shape = ctx.bias_like
            to_bias = channel_sum(to_x, dim).to(dtype).reshape(shape)
    if ctx.needs_input_grad[2]:
        to_angle = _angle_grad(grad, y, bits, dim, pairing, groups).to(angle.dtype).reshape(angle.shape)
    return to_x, to_bias, to_angle, *[None] * 7


def _backward_forward(grad, bits, clamped, angle, kind, dim, pairing, gain, groups, transpose):
    angle = in_accumulation(angle, grad)
    if not is_compiling():
        done = _C.fold_backward(grad, bits, clamped, angle, kind, dim, pairing, gain, groups, transpose)
        if done is not None:
            return done
    return torch.ops.pyfold.fold_backward(grad, bits, clamped, angle, kind, dim, pairing, gain, groups, transpose)


def _backward_save(ctx, args, output):
    grad, bits, clamped, angle, *ctx.rest = args
    ctx.strides = output.stride()
    learns = angle is not None and (angle.requires_grad or functorch_active())
    ctx.save_for_backward(bits, clamped, angle, output if learns else None)


def _backward_backward(ctx, cotangent):
    bits, clamped, angle, output = ctx.saved_tensors
    kind, dim, pairing, gain, groups, transpose = ctx.rest
    cotangent = in_order_of(cotangent, ctx.strides)
    to_grad = to_angle = None
    if ctx.needs_input_grad[0]:
        to_grad = reflect_backward(cotangent, bits, clamped, angle, kind, dim, pairing, gain, groups, not transpose)
    if ctx.needs_input_grad[3]:
        # fold() never combines a learned angle with clamp, so gain is all that the diagonal part holds.
        to_angle = _angle_grad(cotangent, output, bits, dim, pairing, groups).to(angle.dtype).reshape(angle.shape)
    return to_grad, None, None, to_angle, *[None] * 6


def _angle_grad_forward(grad, output, bits, dim, pairing, groups):
    return torch.ops.pyfold.fold_angle_grad(grad, output, bits, dim, pairing, groups)


def _angle_grad_save(ctx, args, output):
    grad, value, bits, *ctx.rest = args
    ctx.save_for_backward(grad, value, bits)


def _angle_grad_backward(ctx, weight):
    grad, value, bits = ctx.saved_tensors
    to_grad = _rotate(value, bits, weight, *ctx.rest) if ctx.needs_input_grad[0] else None
    to_value = _rotate(grad, bits, -weight, *ctx.rest) if ctx.needs_input_grad[1] else None
    return to_grad, to_value, *[None] * 4


def _rotate_forward(value, bits, weight, dim, pairing, groups):
    weight = in_accumulation(weight, value)
    return torch.ops.pyfold.fold_rotate(value, bits, weight, dim, pairing, groups)


def _rotate_save(ctx, args, output):
    value, bits, weight, *ctx.rest = args
    ctx.save_for_backward(value, bits, weight)
    ctx.strides = value.stride()


def _rotate_backward(ctx, cotangent):
    value, bits, weight = ctx.saved_tensors
    cotangent = in_order_of(cotangent, ctx.strides)
    to_value = _rotate(cotangent, bits, -weight, *ctx.rest) if ctx.needs_input_grad[0] else None
    to_weight = None
    if ctx.needs_input_grad[2]:
        to_weight = _angle_grad(cotangent, value, bits, *ctx.rest).to(weight.dtype)
    return to_value, None, to_weight, *[None] * 3


def _fold_vmap(info, in_dims, x, bias, angle, kind, dim, pairing, gain, clamp, groups, remember):
    unbatched(in_dims[1:3], ("bias", "angle"))
    x = batch_first(x, in_dims[0], info.batch_size)
    groups *= info.batch_size
    y, bits, clamped = reflect(x, bias, angle, kind, dim + 1, pairing, gain, clamp, groups, remember)
    return (y, split_batch(bits, info.batch_size), split_batch(clamped, info.batch_size)), (0, 0, 0)


def _backward_vmap(info, in_dims, grad, bits, clamped, angle, kind, dim, pairing, gain, groups, transpose):
    unbatched(in_dims[3:4], ("angle",))
    size = info.batch_size
    grad = batch_first(grad, in_dims[0], size)
    bits, clamped = bits_first(bits, in_dims[1], size), bits_first(clamped, in_dims[2], size)
    return reflect_backward(grad, bits, clamped, angle, kind, dim + 1, pairing, gain, groups * size, transpose), 0


def _angle_grad_vmap(info, in_dims, grad, output, bits, dim, pairing, groups):
    # One sum for each entry of the batch.
    pick = lambda value, d, i: value if d is None else value.select(d, i)  # noqa: E731
    sums = [
        _angle_grad(
            *(pick(v, d, i).contiguous() for v, d in zip((grad, output, bits), in_dims[:3], strict=True)),
            dim, pairing, groups,
        )
        for i in range(info.batch_size)
    ]  # fmt: skip
    return torch.stack(sums), 0


def _rotate_vmap(info, in_dims, value, bits, weight, dim, pairing, groups):
    size = info.batch_size
    if in_dims[2] is not None:
        pick = lambda v, d, i: v if d is None else v.select(d, i)  # noqa: E731
        rows = [
            _rotate(pick(value, in_dims[0], i).contiguous(), pick(bits, in_dims[1], i).contiguous(),
                    weight.select(in_dims[2], i), dim, pairing, groups)
            for i in range(size)
        ]  # fmt: skip
        return torch.stack(rows), 0
    value, bits = batch_first(value, in_dims[0], size), bits_first(bits, in_dims[1], size)
    return _rotate(value, bits, weight, dim + 1, pairing, groups * size), 0


reflect = Differentiable("Fold", _fold_forward, _fold_save, _fold_backward, _fold_vmap, tensors=3)
reflect_backward = Differentiable(
    "FoldBackward", _backward_forward, _backward_save, _backward_backward, _backward_vmap, tensors=4
)
_angle_grad = Differentiable(
    "FoldAngleGrad", _angle_grad_forward, _angle_grad_save, _angle_grad_backward, _angle_grad_vmap, tensors=3
)
_rotate = Differentiable("FoldRotate", _rotate_forward, _rotate_save, _rotate_backward, _rotate_vmap, tensors=3)


#: How a call that was checked before runs without and with a gradient, where it is not plain.
WAYS = reflect.forward, recorded("FoldRecorded", _fold_backward)


# --- shape rules


def bit_bytes(x, kind, groups):
    units = x.numel() // COMPONENTS[kind]
    return (units // groups + 7) // 8


@torch.library.register_fake("pyfold::fold")
def _(x, bias, angle, kind, dim, pairing, gain, clamp, groups, remember):
    size = bit_bytes(x, kind, groups) if remember else 0
    planes = COMPONENTS[kind] if clamp > 0 else 0
    bits = x.new_empty((groups, size), dtype=torch.uint8)
    return torch.empty_like(x), bits, x.new_empty((groups, planes * size), dtype=torch.uint8)


@torch.library.register_fake("pyfold::fold_backward")
def _(grad, bits, clamped, angle, kind, dim, pairing, gain, groups, transpose):
    return torch.empty_like(grad)


@torch.library.register_fake("pyfold::fold_rotate")
def _(value, bits, weight, dim, pairing, groups):
    return torch.empty_like(value)


@torch.library.register_fake("pyfold::fold_angle_grad")
def _(grad, output, bits, dim, pairing, groups):
    return grad.new_empty((grad.shape[dim] // 2,), dtype=_accumulation(grad.dtype))
