"""Folds of space as activations, remembered by one bit each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pyfold.ops._autograd import Differentiable, functorch_active
from pyfold.ops._checks import check_choice, check_device, check_finite, check_tensor
from pyfold.ops._declare import FLOAT_DTYPES, Op, declare
from pyfold.ops.diffusion import _accumulation, _normal

PAIRINGS = ("adjacent", "halves")


@dataclass(frozen=True)
class FoldKind:
    """What is true of one kind of fold.

    Attributes:
        components: values folded together: 1, or a pair of channels.
        rule: the formula, with its source.
        has_angle: takes a learned angle for each pair.
        reference: ``reference(a, b, angle) -> (values, bit)`` in plain torch operations; b is None for one component.
        bits_per_element: what backward remembers.
        lipschitz: the Lipschitz constant; every kind here also preserves gradient norm and volume.
        tie: where the bit is decided; there the fold is the identity.
    """

    components: int
    rule: str
    reference: Callable[..., Any]
    tie: Callable[..., torch.Tensor]
    has_angle: bool = False
    lipschitz: float = 1.0

    @property
    def bits_per_element(self) -> float:
        return 1 / self.components


def _reference_abs(a, b, angle):
    m = a < 0
    return (torch.where(m, -a, a),), m


def _reference_maxmin(a, b, angle):
    m = a > b
    return (torch.where(m, b, a), torch.where(m, a, b)), m


def _reference_householder(a, b, angle):
    side = a * torch.sin(angle / 2) - b * torch.cos(angle / 2)
    m = side > 0
    folded = a * torch.cos(angle) + b * torch.sin(angle), a * torch.sin(angle) - b * torch.cos(angle)
    return (torch.where(m, folded[0], a), torch.where(m, folded[1], b)), m


#: The kinds of fold. A new one is an entry here, a header in csrc/folds, and its name in the two dispatches.
FOLDS: dict[str, FoldKind] = {
    "abs": FoldKind(1, "|x|", _reference_abs, lambda a, b, angle: a),
    "maxmin": FoldKind(2, "(min, max) of a pair; Anil, Lucas and Grosse 2019", _reference_maxmin, lambda a, b, t: a - b),
    "householder": FoldKind(
        2,
        "reflect a pair at the line of a learned angle where it lies beyond; Singla, Singla and Feizi 2022, eq. 9",
        _reference_householder,
        lambda a, b, angle: a * torch.sin(angle / 2) - b * torch.cos(angle / 2),
        has_angle=True,
    ),
}


# --- gradients. fold_backward and fold_rotate are linear maps and fold_angle_grad is bilinear, so these rules are closed
# under differentiation and give gradients of any order. What is remembered: the bits, and the output where the angle learns.


def _channel_sum(value: torch.Tensor, dim: int) -> torch.Tensor:
    others = [d for d in range(value.dim()) if d != dim]
    value = value.to(_accumulation(value.dtype))
    return value.sum(others) if others else value


def _like_layout(value: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """value with the memory order that the bits were packed in."""
    if value.stride() == strides:
        return value
    return torch.empty_strided(value.shape, strides, dtype=value.dtype, device=value.device).copy_(value)


def _fold_forward(x, bias, angle, kind, dim, pairing, gain, clamp, groups):
    acc = _accumulation(x.dtype)
    bias = None if bias is None else bias.to(acc).contiguous()
    angle = None if angle is None else angle.to(acc).contiguous()
    return torch.ops.pyfold.fold(x, bias, angle, kind, dim, pairing, gain, clamp, groups)


def _fold_save(ctx, args, output):
    x, bias, angle, *ctx.rest = args
    y, bits, clamped = output
    ctx.mark_non_differentiable(bits, clamped)
    ctx.set_materialize_grads(False)
    ctx.strides = y.stride()
    ctx.bias_like = None if bias is None else (bias.dtype, bias.shape)
    learns = angle is not None and angle.requires_grad
    ctx.save_for_backward(bits, clamped, angle, y if learns or (angle is not None and functorch_active()) else None)


def _fold_backward(ctx, grad, *_):
    if grad is None:
        return (None,) * 9
    bits, clamped, angle, y = ctx.saved_tensors
    kind, dim, pairing, gain, _clamp, groups = ctx.rest
    grad = _like_layout(grad, ctx.strides)
    to_x = to_bias = to_angle = None
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        to_x = _backward(grad, bits, clamped, angle, kind, dim, pairing, gain, groups, False)
        if ctx.needs_input_grad[1]:
            dtype, shape = ctx.bias_like
            to_bias = _channel_sum(to_x, dim).to(dtype).reshape(shape)
    if ctx.needs_input_grad[2]:
        to_angle = _angle_grad(grad, y, bits, dim, pairing, groups).to(angle.dtype).reshape(angle.shape)
    return to_x, to_bias, to_angle, *[None] * 6


def _backward_forward(grad, bits, clamped, angle, kind, dim, pairing, gain, groups, transpose):
    angle = None if angle is None else angle.to(_accumulation(grad.dtype)).contiguous()
    return torch.ops.pyfold.fold_backward(grad, bits, clamped, angle, kind, dim, pairing, gain, groups, transpose)


def _backward_save(ctx, args, output):
    grad, bits, clamped, angle, *ctx.rest = args
    ctx.strides = output.stride()
    learns = angle is not None and (angle.requires_grad or functorch_active())
    ctx.save_for_backward(bits, clamped, angle, output if learns else None)


def _backward_backward(ctx, cotangent):
    bits, clamped, angle, output = ctx.saved_tensors
    kind, dim, pairing, gain, groups, transpose = ctx.rest
    cotangent = _like_layout(cotangent, ctx.strides)
    to_grad = to_angle = None
    if ctx.needs_input_grad[0]:
        to_grad = _backward(cotangent, bits, clamped, angle, kind, dim, pairing, gain, groups, not transpose)
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
    weight = weight.to(_accumulation(value.dtype)).contiguous()
    return torch.ops.pyfold.fold_rotate(value, bits, weight, dim, pairing, groups)


def _rotate_save(ctx, args, output):
    value, bits, weight, *ctx.rest = args
    ctx.save_for_backward(value, bits, weight)
    ctx.strides = value.stride()


def _rotate_backward(ctx, cotangent):
    value, bits, weight = ctx.saved_tensors
    cotangent = _like_layout(cotangent, ctx.strides)
    to_value = _rotate(cotangent, bits, -weight, *ctx.rest) if ctx.needs_input_grad[0] else None
    to_weight = None
    if ctx.needs_input_grad[2]:
        to_weight = _angle_grad(cotangent, value, bits, *ctx.rest).to(weight.dtype)
    return to_value, None, to_weight, *[None] * 3


# --- vmap: the batch becomes the outermost dimension, and each of its entries a group of bits of its own.


def _batch_first(value, dim, size):
    value = value.unsqueeze(0).expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    return value.contiguous()


def _bits_first(bits, dim, size):
    bits = _batch_first(bits, dim, size)
    return bits.reshape(bits.shape[0] * bits.shape[1], bits.shape[2])


def _no_batched_parameters(in_dims, names):
    for name, dim in zip(names, in_dims, strict=True):
        if dim is not None:
            raise ValueError(f"under vmap the {name} of a fold must not be batched")


def _split(value, size):
    return value.reshape(size, value.shape[0] // size, *value.shape[1:])


def _fold_vmap(info, in_dims, x, bias, angle, kind, dim, pairing, gain, clamp, groups):
    _no_batched_parameters(in_dims[1:3], ("bias", "angle"))
    x = _batch_first(x, in_dims[0], info.batch_size)
    groups *= info.batch_size
    y, bits, clamped = _fold(x, bias, angle, kind, dim + 1, pairing, gain, clamp, groups)
    return (y, _split(bits, info.batch_size), _split(clamped, info.batch_size)), (0, 0, 0)


def _backward_vmap(info, in_dims, grad, bits, clamped, angle, kind, dim, pairing, gain, groups, transpose):
    _no_batched_parameters(in_dims[3:4], ("angle",))
    size = info.batch_size
    grad = _batch_first(grad, in_dims[0], size)
    bits, clamped = _bits_first(bits, in_dims[1], size), _bits_first(clamped, in_dims[2], size)
    return _backward(grad, bits, clamped, angle, kind, dim + 1, pairing, gain, groups * size, transpose), 0


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
    value, bits = _batch_first(value, in_dims[0], size), _bits_first(bits, in_dims[1], size)
    return _rotate(value, bits, weight, dim + 1, pairing, groups * size), 0


def _fold_composed(x, bias, angle, kind, dim, pairing, gain, clamp, groups):
    widened = [None if v is None else v.to(_accumulation(x.dtype)) for v in (x, bias, angle)]
    options = {"gain": gain, "clamp": clamp or None, "dim": dim, "pairing": pairing}
    y = _reference(widened[0], kind, bias=widened[1], angle=widened[2], **options)
    return y.to(x.dtype), None, None


_fold = Differentiable("Fold", _fold_forward, _fold_save, _fold_backward, _fold_vmap, _fold_composed)
_backward = Differentiable("FoldBackward", _backward_forward, _backward_save, _backward_backward, _backward_vmap)
_angle_grad = Differentiable("FoldAngleGrad", _angle_grad_forward, _angle_grad_save, _angle_grad_backward, _angle_grad_vmap)
_rotate = Differentiable("FoldRotate", _rotate_forward, _rotate_save, _rotate_backward, _rotate_vmap)


# --- the public op


def _is_dense(x: torch.Tensor) -> bool:
    """Whether x fills a stretch of memory without gaps or overlap, in any order of its dimensions."""
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return True
    expected = 1
    for stride, size in sorted((x.stride(d), x.shape[d]) for d in range(x.dim()) if x.shape[d] != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _check_parameter(name: str, value: Any, count: int, x: torch.Tensor) -> torch.Tensor:
    check_tensor(name, value)
    if tuple(value.shape) != (count,):
        raise ValueError(f"{name} must have shape ({count},), got {tuple(value.shape)}")
    check_device(name, value, "x", x)
    return value


def _prepare(x, kind, bias, gain, clamp, dim, angle, pairing):
    check_tensor("x", x)
    check_choice("kind", kind, FOLDS)
    check_choice("pairing", pairing, PAIRINGS)
    gain = check_finite("gain", gain)
    if clamp is not None and check_finite("clamp", clamp) <= 0:
        raise ValueError(f"clamp must be positive, got {clamp}")
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"dim must be an int, got {type(dim).__name__}")
    fold = FOLDS[kind]
    elementwise = fold.components == 1 and bias is None
    if elementwise and not -x.dim() <= dim < x.dim():
        dim = 0  # nothing depends on it
    if not (elementwise and x.dim() == 0) and not -x.dim() <= dim < x.dim():
        raise ValueError(f"dim must be in [{-x.dim()}, {x.dim()}), got {dim} for x of shape {tuple(x.shape)}")
    dim = dim % x.dim() if x.dim() else 0
    channels = x.shape[dim] if x.dim() else 1
    if channels % fold.components:
        raise ValueError(f"x must have an even number of channels for {kind}, got {channels} in dim {dim}")
    if bias is not None:
        _check_parameter("bias", bias, channels, x)
    if fold.has_angle:
        if angle is None:
            raise ValueError(f"angle is needed by {kind}: one value for each of the {channels // 2} pairs")
        _check_parameter("angle", angle, channels // 2, x)
    elif angle is not None:
        raise ValueError(f"angle is not a parameter of {kind}; it belongs to householder")
    if not _is_dense(x):
        x = x.contiguous()
    return x, gain, dim


def fold(
    x: torch.Tensor,
    kind: str,
    *,
    bias: torch.Tensor | None = None,
    gain: float = 1.0,
    clamp: float | None = None,
    dim: int = 1,
    angle: torch.Tensor | None = None,
    pairing: str = "adjacent",
) -> torch.Tensor:
    """Folds space: ``y = clip(gain F(x + bias), -clamp, clamp)``, in one pass, remembering one bit for each fold.

    ``F`` reflects its argument at a hyperplane where it lies beyond it, ``F(z) = z - 2 m <n, z> n`` with
    ``m = 1[<n, z> > 0]``:

    - ``"abs"``: ``|z|``, each value for itself.
    - ``"maxmin"``: ``(min, max)`` of a pair of channels (Anil, Lucas and Grosse 2019, GroupSort2).
    - ``"householder"``: a pair ``(a, b)`` is reflected to ``(a cos t + b sin t, a sin t - b cos t)`` where
      ``a sin(t/2) > b cos(t/2)`` (Singla, Singla and Feizi 2022), ``t = angle`` of the pair.

    At a tie the fold is the identity, so its Jacobian is orthogonal at every input; NaN counts as a tie. Without clamp
    every kind is 1-Lipschitz, preserves gradient norm and volume, and is undone by :func:`unfold`.

    Args:
        x: float32, float64, bfloat16 or float16, any strides; a dense memory order (channels_last) is kept.
        kind: a name of ``pyfold.ops.FOLDS``.
        bias: one value for each channel, added in the accumulation type.
        gain: a constant factor on the output. 1 keeps the second moment of normal input.
        clamp: a bound on the output, or None.
        dim: the channel dimension.
        angle: radians, one for each pair; ``"householder"`` only.
        pairing: ``"adjacent"`` pairs channels (0, 1), (2, 3), ...; ``"halves"`` pairs (0, C/2), (1, C/2 + 1), ...

    Returns:
        Like ``x``. Differentiable any number of times in ``x``, ``bias`` and ``angle``. Backward keeps the bits (an eighth
        of a byte for each value or pair), another one for each value with clamp, and the output where ``angle`` learns.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device, shape or range.
    """
    x, gain, dim = _prepare(x, kind, bias, gain, clamp, dim, angle, pairing)
    if clamp is not None and angle is not None and angle.requires_grad:
        # The derivative in the angle needs both values of a pair, and a clamp would lose one of them.
        y = _fold(x, bias, angle, kind, dim, pairing, gain, 0.0, 1)[0]
        return y.clamp(-clamp, clamp)
    return _fold(x, bias, angle, kind, dim, pairing, gain, 0.0 if clamp is None else float(clamp), 1)[0]


def unfold(
    y: torch.Tensor,
    bits: torch.Tensor,
    kind: str,
    *,
    dim: int = 1,
    angle: torch.Tensor | None = None,
    pairing: str = "adjacent",
) -> torch.Tensor:
    """The inverse of a fold: x from its output and its bits, as ``torch.ops.pyfold.fold`` returns them.

    Args:
        y: a fold's output without bias, gain and clamp.
        bits: uint8, the fold's bits.
        kind, dim, angle, pairing: as given to :func:`fold`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device, shape or range.
    """
    y, gain, dim = _prepare(y, kind, None, 1.0, None, dim, angle, pairing)
    check_tensor("bits", bits, (torch.uint8,))
    units = y.numel() // FOLDS[kind].components
    if bits.numel() != (units + 7) // 8:
        raise ValueError(f"bits must hold {(units + 7) // 8} bytes for y of shape {tuple(y.shape)}, got {bits.numel()}")
    none = torch.empty(1, 0, dtype=torch.uint8, device=y.device)
    return _backward(y, bits.reshape(1, -1).contiguous(), none, angle, kind, dim, pairing, gain, 1, False)


# --- shape rules


def _bit_bytes(x, kind, groups):
    units = x.numel() // FOLDS[kind].components
    return (units // groups + 7) // 8


@torch.library.register_fake("pyfold::fold")
def _(x, bias, angle, kind, dim, pairing, gain, clamp, groups):
    size = _bit_bytes(x, kind, groups)
    planes = FOLDS[kind].components if clamp > 0 else 0
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


# --- declaration


def _parts(z, kind, dim, pairing):
    """The components of the units, [..., lines] with the channels last."""
    z = z.movedim(dim, -1) if z.dim() else z
    if FOLDS[kind].components == 1:
        return z, None
    return z.chunk(2, -1) if pairing == "halves" else (z[..., 0::2], z[..., 1::2])


def _reference(x, kind, *, bias=None, gain=1.0, clamp=None, dim=1, angle=None, pairing="adjacent"):
    dim = dim if -x.dim() <= dim < x.dim() else 0
    z = x if bias is None else x + bias.reshape([-1 if d == dim % x.dim() else 1 for d in range(x.dim())])
    values, _ = FOLDS[kind].reference(*_parts(z, kind, dim, pairing), angle)
    if len(values) == 1:
        y = values[0]
    elif pairing == "halves":
        y = torch.cat(values, -1)
    else:
        y = torch.stack(values, -1).flatten(-2)
    y = gain * (y.movedim(-1, dim) if y.dim() else y)
    return y if clamp is None else y.clamp(-clamp, clamp)


def _sample(shape, dtype, device, generator, *, kind, bias=False, **variant):
    dim = variant.get("dim", 1)
    if len(shape) == 0 and (FOLDS[kind].components == 2 or bias):
        return None
    if not -len(shape) <= dim < len(shape):
        if kind != "abs" or bias:
            return None
        channels = 1
    else:
        channels = shape[dim]
    if channels % FOLDS[kind].components:
        return None
    sample = {"x": _normal(shape, dtype, device, generator), "kind": kind, **variant}
    if bias:
        sample["bias"] = _normal([channels], dtype, device, generator)
    if FOLDS[kind].has_angle:
        sample["angle"] = math.pi * _normal([channels // 2], dtype, device, generator)
    return sample


def _tie_distance(x, kind, *, bias=None, gain=1.0, clamp=None, dim=1, angle=None, pairing="adjacent"):
    dim = dim if -x.dim() <= dim < x.dim() else 0
    z = x if bias is None else x + bias.reshape([-1 if d == dim % x.dim() else 1 for d in range(x.dim())])
    distance = FOLDS[kind].tie(*_parts(z, kind, dim, pairing), angle).abs().flatten()
    if clamp is None:
        return distance
    y = _reference(x, kind, bias=bias, gain=gain, dim=dim, angle=angle, pairing=pairing)
    return torch.cat([distance, (y.abs() - clamp).abs().flatten()])


def _saved_bytes(x, kind, *, clamp=None, angle=None, **_):
    size = _bit_bytes(x, kind, 1)
    if clamp is not None and angle is not None and angle.requires_grad:
        return None
    total = size * (1 + (FOLDS[kind].components if clamp is not None else 0))
    if angle is not None:
        total += angle.numel() * angle.element_size()
        if angle.requires_grad:
            total += x.numel() * x.element_size()
    return total


declare(
    Op(
        name="fold",
        public=fold,
        reference=_reference,
        sample=_sample,
        tensors=("x",),
        raw=("fold", "fold_backward", "fold_angle_grad", "fold_rotate"),
        rule="y = clip(gain F(x + bias), -clamp, clamp), F(z) = z - 2 [<n, z> > 0] <n, z> n",
        variants={
            "abs": {"kind": "abs"},
            "abs, bias, gain, clamp": {"kind": "abs", "bias": True, "gain": 1.25, "clamp": 0.9},
            "maxmin": {"kind": "maxmin"},
            "maxmin, halves, last dim": {"kind": "maxmin", "pairing": "halves", "dim": -1},
            "maxmin, bias, gain, clamp": {"kind": "maxmin", "bias": True, "gain": 0.75, "clamp": 0.8},
            "householder": {"kind": "householder"},
            "householder, halves, bias, gain": {
                "kind": "householder",
                "pairing": "halves",
                "bias": True,
                "gain": 1.5,
            },
        },
        differentiable=("x", "bias", "angle"),
        tie_distance=_tie_distance,
        saved_bytes=_saved_bytes,
        batched=False,
        dtypes=FLOAT_DTYPES,
    )
)
