"""Programs of folds as differentiable ops.

Given its bits a program is affine, so its gradient is the program in reverse and transposed ("adjoint"), the gradient of that
the program in order ("tangent"), and so on: two linear maps, closed under differentiation, that save bits alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pyfold import _C
from pyfold.folds.program import differentiable
from pyfold.ops._autograd import Differentiable, both
from pyfold.ops._call import SHAPES
from pyfold.ops._fold_memory import batch_first, bit_bytes, bits_first, channel_sum, in_order_of, split_batch, unbatched

_PLANES = dict(_C.FOLD_OPS.values())  # of each instruction's code, for units of one value
_CLAMP, _CRELU = _C.FOLD_OPS["Clamp"][0], _C.FOLD_OPS["Crelu"][0]


def widens(program: Sequence[int]) -> bool:
    return len(program) > 0 and program[0] == _CRELU


def planes_of(program: Sequence[int], width: int) -> int:
    """The planes of bits that a program fills."""
    width = 2 if widens(program) else width
    codes_and_planes = zip(program[0::5], program[4::5], strict=True)
    return max((plane + _PLANES[code] * (width if code == _CLAMP else 1) for code, plane in codes_and_planes), default=0)


# Operands: x, bias, parameters, dim, pairing, groups, program, constants, width, save_bits.


def _sequence_save(ctx: Any, args: Any, output: Any) -> None:
    _x, bias, parameters, *units_and_program, _save_bits = args
    y, bits = output
    ctx.units, ctx.program = units_and_program[:3], units_and_program[3:]
    ctx.strides = y.stride()
    ctx.bias_like = None if bias is None else (bias.dtype, bias.shape)
    ctx.save_for_backward(bits, parameters)


def _sequence_backward(ctx: Any, grad: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 10
    bits, parameters = ctx.saved_tensors
    to_x = apply(in_order_of(grad, ctx.strides), bits, parameters, *ctx.units, "adjoint", *ctx.program)
    to_bias = channel_sum(to_x, ctx.units[0], ctx.bias_like) if ctx.needs_input_grad[1] else None
    return to_x, to_bias, *[None] * 8


def _sequence_vmap(
    info: Any, in_dims: Any, x: Any, bias: Any, parameters: Any, dim: int, pairing: str, groups: int, *options: Any
) -> Any:
    unbatched(in_dims[1:3], ("bias", "parameters"))
    size = info.batch_size
    made = sequence.function(batch_first(x, in_dims[0], size), bias, parameters, dim + 1, pairing, groups * size, *options)
    y, bits = both(made)
    return (y, split_batch(bits, size)), (0, 0)


# Operands: value, bits, parameters, dim, pairing, groups, direction, program, constants, width.


def _apply_save(ctx: Any, args: Any, output: Any) -> None:
    _value, bits, parameters, *ctx.units, ctx.direction, program, constants, width = args
    ctx.program = program, constants, width
    ctx.strides = output.stride()
    ctx.save_for_backward(bits, parameters)


def _apply_backward(ctx: Any, cotangent: torch.Tensor) -> tuple[Any, ...]:
    bits, parameters = ctx.saved_tensors
    direction = {"adjoint": "tangent", "tangent": "adjoint"}[ctx.direction]
    cotangent = in_order_of(cotangent, ctx.strides)
    return apply(cotangent, bits, parameters, *ctx.units, direction, *ctx.program), *[None] * 9


def _apply_vmap(
    info: Any, in_dims: Any, value: Any, bits: Any, parameters: Any, dim: int, pairing: str, groups: int, *options: Any
) -> Any:
    unbatched(in_dims[2:3], ("parameters",))
    size = info.batch_size
    value, bits = batch_first(value, in_dims[0], size), bits_first(bits, in_dims[1], size)
    return apply(value, bits, parameters, dim + 1, pairing, groups * size, *options), 0


sequence = Differentiable(
    "fold_sequence", _sequence_save, _sequence_backward, _sequence_vmap, 2, differentiable=lambda *args: differentiable(args[6])
)
apply = Differentiable("fold_sequence_apply", _apply_save, _apply_backward, _apply_vmap, 1)


# --- shape rules


def _resized(given: dict[str, Any]) -> torch.Tensor:
    """A new tensor with the dtype, device and memory order of the operand; crelu changes the number of channels."""
    x = given["x"] if "x" in given else given["value"]
    if not widens(given["program"]):
        return torch.empty_like(x)
    dim, shape = given["dim"], list(x.shape)
    narrows = given.get("direction", "tangent") != "tangent"
    shape[dim] = shape[dim] // 2 if narrows else shape[dim] * 2
    if x.is_contiguous():
        return x.new_empty(shape)  # type: ignore[no-any-return]
    order = sorted(range(x.dim()), key=lambda d: -x.stride(d))
    made: torch.Tensor = x.new_empty([shape[d] for d in order])
    return made.permute([order.index(d) for d in range(x.dim())])


def _program_bits(given: dict[str, Any]) -> torch.Tensor:
    x, groups, width = given["x"], given["groups"], given["width"]
    planes = planes_of(given["program"], width) if given["save_bits"] else 0
    made: torch.Tensor = x.new_empty((groups, bit_bytes(x.numel(), width, planes, groups)), dtype=torch.uint8)
    return made


SHAPES["sequence"] = _resized
SHAPES["program_bits"] = _program_bits
