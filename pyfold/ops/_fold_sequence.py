"""Programs of folds as differentiable ops.

Given its bits a program is affine, so its gradient is the program in reverse and transposed ("adjoint"), the gradient of that
the program in order ("tangent"), and so on: two linear maps, closed under differentiation, that remember bits alone.
"""

from __future__ import annotations

import torch
from torch.compiler import is_compiling

from pyfold import _C
from pyfold.folds.program import CODES
from pyfold.ops._autograd import Differentiable
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


def _resized(x: torch.Tensor, dim: int, channels: int) -> torch.Tensor:
    """A new tensor with the dtype, device and memory order of x and another number of channels."""
    if channels == x.shape[dim]:
        return torch.empty_like(x)
    shape = list(x.shape)
    shape[dim] = channels
    if x.is_contiguous():
        return x.new_empty(shape)
    order = sorted(range(x.dim()), key=lambda d: -x.stride(d))
    return x.new_empty([shape[d] for d in order]).permute([order.index(d) for d in range(x.dim())])


def widens(program: tuple[int, ...]) -> bool:
    return len(program) > 0 and program[0] == CODES["Crelu"]


def bit_bytes(numel: int, rows: int, planes: int, groups: int = 1) -> int:
    """Bytes of the bits of each group of a tensor of numel values, units of rows."""
    return planes * ((numel // rows // groups + 7) // 8)


# x, bias, parameters, then what describes the program:
#   program, constants, rows, planes, dim, pairing, groups, remember


def _sequence_forward(x, bias, parameters, program, constants, rows, planes, dim, pairing, groups, remember):
    bias = in_accumulation(bias, x)
    if not is_compiling():
        done = _C.fold_sequence(x, bias, parameters, program, constants, rows, planes, dim, pairing, groups, remember)
        if done is not None:
            return done
    channels = x.shape[dim] if x.dim() else 1
    out = _resized(x, dim, 2 * channels) if widens(program) else torch.empty_like(x)
    bits = None
    if remember:
        bits = x.new_empty((groups, bit_bytes(x.numel(), rows, planes, groups)), dtype=torch.uint8)
    torch.ops.pyfold.fold_sequence(x, bias, parameters, program, constants, rows, dim, pairing, groups, out, bits)
    return out, bits


def _sequence_save(ctx, args, output):
    x, bias, parameters, *ctx.rest, _remember = args
    out, bits = output
    if bits is None:  # traced where no gradient is asked for
        return
    ctx.mark_non_differentiable(bits)
    ctx.set_materialize_grads(False)
    ctx.strides = out.stride()
    ctx.bias_like = None if bias is None else (bias.dtype, bias.shape)
    ctx.save_for_backward(bits, parameters)


def _sequence_backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 11
    bits, parameters = ctx.saved_tensors
    dim = ctx.rest[4]
    to_x = apply(in_order_of(grad, ctx.strides), bits, parameters, *ctx.rest, "adjoint")
    to_bias = None
    if ctx.needs_input_grad[1]:
        dtype, shape = ctx.bias_like
        to_bias = channel_sum(to_x, dim).to(dtype).reshape(shape)
    return to_x, to_bias, *[None] * 9


def _apply_forward(value, bits, parameters, program, constants, rows, planes, dim, pairing, groups, direction):
    if not is_compiling():
        done = _C.fold_sequence_apply(
            value, bits, parameters, program, constants, rows, planes, dim, pairing, groups, direction
        )
        if done is not None:
            return done
        if torch._C._functorch.is_legacy_batchedtensor(value):
            rest = program, constants, rows, planes, dim, pairing, groups, direction
            return torch.ops.pyfold_slices.fold_sequence_apply(value, bits, parameters, *rest)
    out = torch.empty_like(value)
    if widens(program):
        channels = value.shape[dim]
        out = _resized(value, dim, 2 * channels if direction == "tangent" else channels // 2)
    torch.ops.pyfold.fold_sequence_apply(
        value, bits, parameters, program, constants, rows, dim, pairing, groups, direction, out
    )
    return out


# Where autograd runs backward for a batch of gradients (is_grads_batched), it takes slices of what an op is given, but only
# for ops that return what they make.
_library = torch.library.Library("pyfold_slices", "FRAGMENT")
_library.define(
    "fold_sequence_apply(Tensor value, Tensor bits, Tensor? parameters, int[] program, float[] constants, int rows, "
    "int planes, int dim, str pairing, int groups, str direction) -> Tensor"
)


@torch.library.impl(_library, "fold_sequence_apply", "CompositeExplicitAutograd")
def _applied(value, bits, parameters, program, constants, *rest):
    return _apply_forward(value, bits, parameters, tuple(program), tuple(constants), *rest)


def _apply_save(ctx, args, output):
    _value, bits, parameters, *ctx.rest, ctx.direction = args
    ctx.strides = output.stride()
    ctx.save_for_backward(bits, parameters)


def _apply_backward(ctx, cotangent):
    bits, parameters = ctx.saved_tensors
    direction = {"adjoint": "tangent", "tangent": "adjoint"}[ctx.direction]
    return apply(in_order_of(cotangent, ctx.strides), bits, parameters, *ctx.rest, direction), *[None] * 10


def _sequence_vmap(info, in_dims, x, bias, parameters, program, constants, rows, planes, dim, pairing, groups, remember):
    unbatched(in_dims[1:3], ("bias", "parameters"))
    size = info.batch_size
    x = batch_first(x, in_dims[0], size)
    out, bits = sequence(x, bias, parameters, program, constants, rows, planes, dim + 1, pairing, groups * size, remember)
    return (out, None if bits is None else split_batch(bits, size)), (0, None if bits is None else 0)


def _apply_vmap(info, in_dims, value, bits, parameters, program, constants, rows, planes, dim, pairing, groups, direction):
    unbatched(in_dims[2:3], ("parameters",))
    size = info.batch_size
    value, bits = batch_first(value, in_dims[0], size), bits_first(bits, in_dims[1], size)
    return apply(value, bits, parameters, program, constants, rows, planes, dim + 1, pairing, groups * size, direction), 0


sequence = Differentiable("FoldSequence", _sequence_forward, _sequence_save, _sequence_backward, _sequence_vmap, tensors=3)
apply = Differentiable("FoldSequenceApply", _apply_forward, _apply_save, _apply_backward, _apply_vmap, tensors=3)


#: How a call that was checked before runs without and with a gradient, where it is not plain.
WAYS = sequence.forward, recorded("FoldSequenceRecorded", _sequence_backward)


@torch.library.register_fake("pyfold::fold_sequence")
def _(x, bias, parameters, program, constants, rows, dim, pairing, groups, out, bits):
    return None


@torch.library.register_fake("pyfold::fold_sequence_apply")
def _(value, bits, parameters, program, constants, rows, dim, pairing, groups, direction, out):
    return None
