"""Folds of space as activations, remembered by a bit each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.compiler import is_compiling

from pyfold._torch_private import transform_depth
from pyfold.folds import FOLDS, REQUIRED, FoldKind, Program
from pyfold.folds.kind import a_pair, join_units, one_value, split_units
from pyfold.ops._autograd import Differentiable, Way, functorch_active, needs_gradient, way
from pyfold.ops._checks import check_choice, check_device, check_finite, check_tensor
from pyfold.ops._declare import FLOAT_DTYPES, Op, declare
from pyfold.ops._fold_memory import bit_bytes, first
from pyfold.ops._fold_reflect import reflect, reflect_backward
from pyfold.ops._fold_sequence import apply, sequence
from pyfold.ops._tensors import accumulation, is_dense, normal

PAIRINGS = ("adjacent", "halves")


# --- checks


def _check_bias(value: Any, count: int, x: torch.Tensor) -> torch.Tensor:
    check_tensor("bias", value)
    if tuple(value.shape) != (count,):
        raise ValueError(f"bias must have shape ({count},), got {tuple(value.shape)}")
    check_device("bias", value, "x", x)
    return value


@dataclass(frozen=True)
class Call:
    """A checked call: x dense, dim from 0, every parameter given; pairing is "adjacent" where no pairs are folded."""

    x: torch.Tensor
    kind: str
    fold: FoldKind
    dim: int
    pairing: str
    parameters: dict[str, Any]
    rows: int

    @property
    def learns(self) -> bool:
        """Whether a parameter's gradient may be asked for."""
        return any(isinstance(v, torch.Tensor) and (v.requires_grad or functorch_active()) for v in self.parameters.values())

    @property
    def reflects(self) -> bool:
        """Whether the kernels of one reflection serve it."""
        return self.fold.reflects(**self.parameters)

    @property
    def has_tensors(self) -> bool:
        return any(isinstance(v, torch.Tensor) for v in self.parameters.values())

    def program(self, gain: float = 1.0, clamp: float | None = None, unfoldable: bool = False) -> Program | None:
        """The call for the kernels of programs, or None where they do not serve it."""
        if (self.has_tensors and not self.fold.program_of_tensors) or self.learns:
            return None
        return _program(self.fold, self.rows, self.parameters, gain, clamp, unfoldable)


def _program(
    fold: FoldKind, width: int, parameters: dict[str, Any], gain: float, clamp: float | None, unfoldable: bool = False
) -> Program | None:
    """The program of a fold, or None where the kernels of programs do not serve it."""
    if fold.emit is None:
        return None
    program = Program(width, unfoldable)
    if program.fits:
        fold.emit(program, range(width), **parameters)
    if gain != 1:
        program.affine(gain)
    if clamp is not None:
        program.clamp(clamp)
    return program if program.fits else None


def _check_name(fold: FoldKind, kind: str, name: str) -> None:
    if name not in fold.parameters:
        raise ValueError(f"{name} is not a parameter of {kind}, whose parameters are: {', '.join(fold.parameters) or 'none'}")


def _check_parameters(
    fold: FoldKind, kind: str, given: dict[str, Any], channels: int, units: int, x: torch.Tensor | None = None
) -> dict[str, Any]:
    for name in given:
        _check_name(fold, kind, name)
    parameters = {}
    for name, parameter in fold.parameters.items():
        value = given.get(name, parameter.default)
        if value is REQUIRED or (value is None and parameter.default is not None):
            raise ValueError(f"{name} is needed by {kind}: {parameter.allowed}")
        value = parameter.check(name, value, channels, units)
        if isinstance(value, torch.Tensor) and x is not None:
            check_device(name, value, "x", x)
        parameters[name] = value
    fold.check(parameters)
    return parameters


def check_call(x, kind, bias, dim, pairing, given, widened: bool = False) -> Call:
    """widened: x is a fold's output, with twice the channels if the kind widens."""
    check_tensor("x", x)
    check_choice("kind", kind, FOLDS)
    check_choice("pairing", pairing, PAIRINGS)
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"dim must be an int, got {type(dim).__name__}")
    fold = FOLDS[kind]
    # Where every value folds for itself nothing depends on dim.
    free = fold.ready and fold.width(channels=0, **fold.defaults()) == 1 and bias is None
    if free and not any(isinstance(v, torch.Tensor) for v in given.values()) and not -x.dim() <= dim < x.dim():
        dim = 0
    elif not -x.dim() <= dim < x.dim():
        raise ValueError(f"dim must be in [{-x.dim()}, {x.dim()}), got {dim} for x of shape {tuple(x.shape)}")
    dim = dim % x.dim() if x.dim() else 0
    channels = x.shape[dim] if x.dim() else 1
    if widened and fold.widens:
        if channels % 2:
            raise ValueError(f"y must have an even number of channels for {kind}, got {channels} in dim {dim}")
        channels //= 2
    if fold.paired and channels % 2:
        raise ValueError(f"x must have an even number of channels for {kind}, got {channels} in dim {dim}")
    parameters = _check_parameters(fold, kind, given, channels, channels // 2 if fold.paired else channels, x)
    rows = fold.width(channels=channels, **parameters)
    if rows > 1 and channels % rows:
        raise ValueError(f"size must divide the channels, {channels} in dim {dim}, got {rows}")
    if bias is not None:
        _check_bias(bias, channels, x)
    pairing = pairing if fold.paired else "adjacent"
    return Call(x if is_dense(x) else x.contiguous(), kind, fold, dim, pairing, parameters, max(rows, 1))


# --- the public ops


def fold(
    x: torch.Tensor,
    kind: str,
    *,
    bias: torch.Tensor | None = None,
    gain: float = 1.0,
    clamp: float | None = None,
    dim: int = 1,
    pairing: str = "adjacent",
    **parameters: Any,
) -> torch.Tensor:
    """Folds space: ``y = clip(gain F(x + bias), -clamp, clamp)``, in one pass, remembering bits instead of values.

    ``F`` reflects its argument at hyperplanes where it lies beyond them, ``F(z) = z - 2 m <n, z> n`` with
    ``m = 1[<n, z> > 0]``; ``kind`` says at which:

    - ``"abs"`` (offset=0): ``c + |z - c|``, each value for itself.
    - ``"leaky"`` (slope=0.2): ``max(z, 0) + a min(z, 0)``; 1 is the identity, 0 ReLU, -1 abs. A tensor slope learns.
    - ``"box"`` (length=1): ``2 clamp(z, -L, L) - z``. ``"tri"`` (length=1, phase=0): the same over and over.
    - ``"maxmin"``: ``(min, max)`` of a pair of channels (Anil, Lucas and Grosse 2019, GroupSort2).
    - ``"groupsort"`` (size=None): each group of channels ascending; ``"sortabs"`` (size=None): their absolute values.
    - ``"householder"`` (angle): a pair ``(a, b)`` is reflected to ``(a cos t + b sin t, a sin t - b cos t)`` where
      ``a sin(t/2) > b cos(t/2)`` (Singla, Singla and Feizi 2022).
    - ``"dihedral"`` (m=3, angle=0): a pair is folded into the wedge between the angles t and t + pi / m.
    - ``"hyperplane"`` (normal, offset=0): ``z - 2 max(0, <n, z> - b) n`` for one or several hyperplanes, in sequence.
    - ``"crelu"``: ``(max(z, 0), max(-z, 0))``, twice the channels.
    - ``"sphere"`` (radius=1, inner=0.5), ``"ball"`` (radius=1): inversions in a sphere; ``"soft"`` (epsilon=0.1):
      ``sqrt(z^2 + e^2)``.

    ``pyfold.ops.FOLDS`` and docs/folds.md give for each the rule, its source, its ties, what it remembers, and what it
    preserves. At a tie a fold is the identity, so the Jacobian of those that keep lengths is orthogonal at every input; NaN
    counts as a tie.

    Args:
        x: float32, float64, bfloat16 or float16, any strides; a dense memory order (channels_last) is kept.
        kind: a name of ``pyfold.ops.FOLDS``.
        bias: one value for each channel, added in the accumulation type.
        gain: a constant factor on the output. 1 keeps the second moment of normal input under an isometry.
        clamp: a bound on the output, or None.
        dim: the channel dimension.
        pairing: of kinds that fold pairs: ``"adjacent"`` pairs channels (0, 1), (2, 3), ...; ``"halves"`` pairs (0, C/2),
            (1, C/2 + 1), ...; other kinds do the same for both.
        parameters: those of the kind.

    Returns:
        Like ``x``, with twice the channels for crelu. Differentiable any number of times in ``x``, ``bias`` and the
        parameters that are tensors. Kernels run for numbers (and for a tensor ``angle`` of householder, and tensors of
        hyperplane that do not learn); with other tensors, for sphere, ball and soft where a gradient is needed, and for
        sorts of more than 39 and hyperplanes of more than 192 channels, torch's own operations do, and remember more.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device, shape or range.
    """
    if not is_compiling():
        done = _fast(x, kind, bias, gain, clamp, dim, pairing, parameters)
        if done is not None:
            return done
    return _checked_fold(x, kind, bias, gain, clamp, dim, pairing, parameters)


# --- the fast path: what does not depend on tensors is prepared, once for each set of numbers


@dataclass(frozen=True)
class Prepared:
    """A fold but for its tensors and its dim: the op that runs it, and that op's operands after dim."""

    op: Differentiable
    fixed: tuple[Any, ...]
    differentiable: bool  # by this op


@lru_cache(maxsize=1024, typed=True)
def prepare_fold(
    kind: str, gain: float, clamp: float | None, pairing: str, channels: int, tensors: tuple[str, ...], **numbers: Any
) -> Prepared | None:
    """The fold of units among so many channels, with numbers for parameters but for the tensors named; None: not by kernels."""
    check_choice("kind", kind, FOLDS)
    check_choice("pairing", pairing, PAIRINGS)
    gain, clamp = _check_output(gain, clamp)
    fold = FOLDS[kind]
    for name in tensors:
        _check_name(fold, kind, name)
    if tensors:
        placeholders = {name: torch.empty(0) for name in tensors}
        if not fold.reflects(**{**fold.defaults(), **numbers, **placeholders}) or tensors != ("angle",):
            return None
    else:
        numbers = _check_parameters(fold, kind, numbers, channels, channels)
    pairing = pairing if fold.paired else "adjacent"
    if tensors or fold.reflects(**numbers):
        return Prepared(reflect, (pairing, 1, kind, gain, clamp or 0.0, False), True)
    width = fold.width(channels=channels, **numbers)
    program = None if width < 1 else _program(fold, width, numbers, gain, clamp)
    if program is None:
        return None
    return Prepared(sequence, (pairing, 1, *program_operands(program), False), program.differentiable)


def program_operands(program: Program) -> tuple[Any, ...]:
    """program, constants, width."""
    return tuple(program.instructions), tuple(program.constants), program.input_width


def _check_output(gain: Any, clamp: Any) -> tuple[float, float | None]:
    gain = check_finite("gain", gain)
    if clamp is not None and check_finite("clamp", clamp) <= 0:
        raise ValueError(f"clamp must be positive, got {clamp}")
    return gain, None if clamp is None else float(clamp)


#: The kinds whose units may be all channels.
_OF_CHANNELS = frozenset(name for name, kind in FOLDS.items() if kind.width not in (one_value, a_pair))


def _fast(
    x: Any, kind: Any, bias: Any, gain: Any, clamp: Any, dim: Any, pairing: Any, parameters: dict[str, Any]
) -> torch.Tensor | None:
    """A fold past the dispatcher; None where torch must see it, or no kernel serves it."""
    names: tuple[str, ...] = ()
    third = None
    numbers = parameters
    for name, value in parameters.items():
        if isinstance(value, torch.Tensor):
            names, third = (*names, name), value
    try:
        if names:
            numbers = {name: value for name, value in parameters.items() if name not in names}
        if dim < 0:
            dim += x.dim()
        channels = x.shape[dim] if kind in _OF_CHANNELS else 1
        prepared = prepare_fold(kind, gain, clamp, pairing, channels, names, **numbers)
        if prepared is None or not (prepared.differentiable or not needs_gradient((x, bias))):
            return None
        if third is not None and clamp is not None and third.requires_grad:
            return None
        done = prepared.op.entry(x, bias, third, dim, *prepared.fixed)
    except (TypeError, ValueError, AttributeError, IndexError):
        check_call(x, kind, bias, dim, pairing, parameters)
        raise
    return done  # type: ignore[no-any-return]


# --- every other call


def _checked_fold(
    x: Any, kind: Any, bias: Any, gain: Any, clamp: Any, dim: Any, pairing: Any, parameters: dict[str, Any]
) -> torch.Tensor:
    call = check_call(x, kind, bias, dim, pairing, parameters)
    gain, clamp = _check_output(gain, clamp)
    chosen = way((x, bias, *call.parameters.values()))
    if chosen is Way.COMPOSED:
        return _composed(call, bias, gain, clamp)
    angle = call.parameters.get("angle")
    if call.reflects:
        if clamp is not None and angle is not None and angle.requires_grad:
            # The derivative in the angle needs both values of a pair, and a clamp would lose one of them.
            return fold(x, kind, bias=bias, gain=gain, dim=dim, pairing=pairing, angle=angle).clamp(-clamp, clamp)
        return first(reflect(call.x, bias, angle, call.dim, call.pairing, 1, kind, gain, clamp or 0.0, False))
    program = call.program(gain, clamp)
    if program is None or (not program.differentiable and (functorch_active() or needs_gradient((x, bias)))):
        return _composed(call, bias, gain, clamp)
    return first(
        sequence(call.x, bias, packed_parameters(program, call.x), call.dim, call.pairing, 1, *program_operands(program), False)
    )


def packed_parameters(program: Program, like: torch.Tensor) -> torch.Tensor | None:
    """A program's tensors, which do not learn, as the kernels take and backward keeps them."""
    parameters = program.packed_parameters()
    return None if parameters is None else parameters.detach().to(accumulation(like.dtype))


def fold_with_bits(
    x: torch.Tensor, kind: str, *, dim: int = 1, pairing: str = "adjacent", **parameters: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """A fold and what :func:`unfold` needs to undo it.

    Args:
        x, kind, dim, pairing, parameters: as in :func:`fold`. No gradient flows.

    Returns:
        ``(y, bits)``: the fold, and uint8 bits: those of the fold, with box 2 a value, with tri 32.

    Raises:
        TypeError, ValueError: as in :func:`fold`; also for a fold that loses its input (soft, leaky with slope 0), for tensors
            in place of numbers (but for householder and hyperplane), and for more channels than the kernels take.
    """
    call = check_call(x, kind, None, dim, pairing, parameters)
    units = call.dim, call.pairing, 1
    with torch.no_grad():
        if call.reflects:
            angle = call.parameters.get("angle")
            y, bits, _ = reflect(call.x, None, angle, *units, kind, 1.0, 0.0, True)
        else:
            program = _unfoldable(call)
            y, bits = sequence(call.x, None, packed_parameters(program, call.x), *units, *program_operands(program), True)
    return y, bits


def unfold(
    y: torch.Tensor, bits: torch.Tensor, kind: str, *, dim: int = 1, pairing: str = "adjacent", **parameters: Any
) -> torch.Tensor:
    """The inverse of a fold: x from its output and its bits, as :func:`fold_with_bits` returns them.

    Args:
        y: a fold's output without bias, gain and clamp.
        bits: uint8, the fold's bits.
        kind, dim, pairing, parameters: as given to :func:`fold_with_bits`.

    Raises:
        TypeError, ValueError: as in :func:`fold_with_bits`.
    """
    call = check_call(y, kind, None, dim, pairing, parameters, widened=True)
    check_tensor("bits", bits, (torch.uint8,))
    check_device("bits", bits, "y", y)
    program = None if call.reflects else _unfoldable(call)
    values = y.numel() // 2 if call.fold.widens else y.numel()
    expected = bit_bytes(values, call.rows, 1 if program is None else program.planes)
    if bits.numel() != expected:
        raise ValueError(f"bits must hold {expected} bytes for y of shape {tuple(y.shape)}, got {bits.numel()}")
    bits = bits.reshape(1, -1).contiguous()
    units = call.dim, call.pairing, 1
    with torch.no_grad():
        if program is None:
            x = reflect_backward(call.x, bits, None, call.parameters.get("angle"), *units, kind, 1.0, False)
        else:
            x = apply(call.x, bits, packed_parameters(program, call.x), *units, "inverse", *program_operands(program))
    return x  # type: ignore[no-any-return]


def _unfoldable(call: Call) -> Program:
    if not call.fold.unfolds(**call.parameters):
        raise ValueError(f"{call.kind} with {call.parameters} loses its input; it cannot be unfolded")
    with torch.no_grad():
        # What learns does not matter here, as no gradient flows.
        fixed = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in call.parameters.items()}
        call = Call(call.x, call.kind, call.fold, call.dim, call.pairing, fixed, call.rows)
        program = call.program(unfoldable=True)
    if program is None:
        raise ValueError(f"the kernels do not take {call.kind} of {call.rows} channels, and only they remember bits")
    return program


# --- the same in torch's operations


def fold_reference(x, kind, *, bias=None, gain=1.0, clamp=None, dim=1, pairing="adjacent", **parameters):
    call = check_call(x, kind, bias, dim, pairing, parameters)
    dim, z = call.dim, x
    if bias is not None:
        z = x + bias.reshape([-1 if d == dim else 1 for d in range(x.dim())])
    # Widened parameters: rounding them is not what is compared.
    values = {k: v.to(x.dtype) if isinstance(v, torch.Tensor) else v for k, v in call.parameters.items()}
    parts = call.fold.reference(split_units(z, call.rows, dim, call.pairing), **values)
    y = gain * join_units(parts, dim, "halves" if call.fold.widens else call.pairing, x.dim())
    return y if clamp is None else y.clamp(-clamp, clamp)


def _composed(call: Call, bias, gain, clamp):
    acc = accumulation(call.x.dtype)
    widened = call.x.to(acc), None if bias is None else bias.to(acc)
    options = {"gain": gain, "clamp": clamp, "dim": call.dim, "pairing": call.pairing}
    y = fold_reference(widened[0], call.kind, bias=widened[1], **options, **call.parameters).to(call.x.dtype)
    if transform_depth() > 0:
        return y
    if call.x.is_contiguous():
        return y.contiguous()
    last = y.dim() == 4 and call.x.is_contiguous(memory_format=torch.channels_last)
    return y.contiguous(memory_format=torch.channels_last) if last else y


# --- declaration


def _sample(shape, dtype, device, generator, *, kind, bias=False, learned=False, **variant):
    fold = FOLDS[kind]
    dim = variant.get("dim", 1)
    if not -len(shape) <= dim < len(shape):
        if bias or learned or not fold.ready or fold.width(channels=0, **fold.defaults()) != 1 or fold.paired:
            return None
        channels = 1
    else:
        channels = shape[dim]
    size = variant.get("size")
    if (fold.paired and channels % 2) or (size is not None and channels % size):
        return None
    sample = {"x": normal(shape, dtype, device, generator), "kind": kind, **variant}
    if bias:
        sample["bias"] = normal([channels], dtype, device, generator)
    drawn = fold.sample(channels, lambda shape: normal(shape, dtype, device, generator), learned)
    return None if drawn is None else {**sample, **drawn}


def tie_distance(x, kind, *, bias=None, gain=1.0, clamp=None, dim=1, pairing="adjacent", **parameters):
    call = check_call(x, kind, bias, dim, pairing, parameters)
    z = x if bias is None else x + bias.reshape([-1 if d == call.dim else 1 for d in range(x.dim())])
    distance = call.fold.ties(split_units(z, call.rows, call.dim, call.pairing), **call.parameters).abs().flatten()
    if clamp is None:
        return distance
    y = fold_reference(x, kind, bias=bias, gain=gain, dim=dim, pairing=pairing, **parameters)
    return torch.cat([distance, (y.abs() - clamp).abs().flatten()])


def _saved_bytes(x, kind, *, bias=None, gain=1.0, clamp=None, dim=1, pairing="adjacent", **parameters):
    call = check_call(x, kind, bias, dim, pairing, parameters)
    if not call.reflects:
        program = call.program(gain, clamp)
        if program is None or not program.differentiable:
            return None
        packed = program.packed_parameters()
        extra = 0 if packed is None else packed.numel() * (8 if x.dtype == torch.float64 else 4)
        return bit_bytes(x.numel(), call.rows, program.planes) + extra
    angle = call.parameters.get("angle")
    if clamp is not None and angle is not None and angle.requires_grad:
        return None
    total = bit_bytes(x.numel(), call.rows, 1 if clamp is None else 1 + call.rows)
    if angle is not None:
        total += angle.numel() * angle.element_size()
        if angle.requires_grad:
            total += x.numel() * x.element_size()
    return total


_RULE = "y = clip(gain F(x + bias), -clamp, clamp), F(z) = z - 2 [<n, z> > 0] <n, z> n"

declare(
    Op(
        name="fold",
        public=fold,
        reference=fold_reference,
        sample=_sample,
        tensors=("x",),
        raw=("fold", "fold_backward", "fold_angle_grad", "fold_rotate", "fold_sequence", "fold_sequence_apply"),
        rule=_RULE,
        variants={name: {"kind": kind.name, **variant} for kind in FOLDS.values() for name, variant in kind.variants.items()},
        differentiable=("x", "bias", "angle"),
        tie_distance=tie_distance,
        saved_bytes=_saved_bytes,
        batched=False,
        dtypes=FLOAT_DTYPES,
    )
)

declare(
    Op(
        name="fold, in torch operations",
        public=fold,
        reference=fold_reference,
        sample=_sample,
        tensors=("x",),
        raw=(),
        rule=_RULE,
        variants={
            name: {"kind": kind.name, **variant} for kind in FOLDS.values() for name, variant in kind.composed_variants.items()
        },
        differentiable=("x", "slope", "angle"),
        tie_distance=tie_distance,
        batched=False,
        dtypes=FLOAT_DTYPES,
    )
)
