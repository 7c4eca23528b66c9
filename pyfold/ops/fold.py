"""Folds of space as activations, remembered by a bit each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch.compiler import is_compiling

from pyfold import _C
from pyfold._torch_private import transform_depth
from pyfold.folds import FOLDS, REQUIRED, FoldKind, Program
from pyfold.folds.kind import a_pair, join_units, one_value, split_units
from pyfold.ops._autograd import Differentiable, Way, both, functorch_active, way
from pyfold.ops._checks import check_choice, check_device, check_finite, check_tensor
from pyfold.ops._declare import FLOAT_DTYPES, Op, declare
from pyfold.ops._fold_memory import bit_bytes, first
from pyfold.ops._fold_reflect import reflect, reflect_backward
from pyfold.ops._fold_sequence import apply, sequence
from pyfold.ops._tensors import accumulation, clip, is_dense, normal

PAIRINGS = ("adjacent", "halves")


# --- checks


def _check_bias(value: Any, count: int, x: torch.Tensor) -> None:
    check_tensor("bias", value)
    if tuple(value.shape) != (count,):
        raise ValueError(f"bias must have shape ({count},), got {tuple(value.shape)}")
    check_device("bias", value, "x", x)


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

    def kernel(self, gain: float, clamp: float | None) -> Kernel | None:
        """What runs the call, or None: torch's operations do."""
        if self.learns and not self.reflects:
            return None
        return _kernel(self.fold, self.rows, self.pairing, self.parameters, gain, clamp)

    def packed(self) -> torch.Tensor | None:
        """What the program reads of parameters that are tensors."""
        return self.fold.pack(accumulation(self.x.dtype), **self.parameters) if self.fold.pack is not None else None


class Kernel(NamedTuple):
    """The op that runs a fold, and the op's operands after dim; the program, of one that has one."""

    op: Differentiable
    fixed: tuple[Any, ...]
    program: Program | None = None


def _kernel(
    fold: FoldKind, rows: int, pairing: str, parameters: dict[str, Any], gain: float, clamp: float | None
) -> Kernel | None:
    """With parameters that were checked; None where no kernel serves them."""
    # The compiler looks through the memo, with a warning.
    if torch.compiler.is_compiling() or any(isinstance(value, torch.Tensor) for value in parameters.values()):
        return _made_kernel(fold, rows, pairing, parameters, gain, clamp)
    return _kernel_of_numbers(fold.name, rows, pairing, gain, clamp, **parameters)


@lru_cache(maxsize=1024)
def _kernel_of_numbers(kind: str, rows: int, pairing: str, gain: float, clamp: float | None, **numbers: Any) -> Kernel | None:
    """A program's text, kept: a function of numbers alone.

    Writing it is 30 Python calls for one value's fold, 160 for a sort of eight and 2,000 for one of 39, against one look here:
    as long as a small call and longer. Equal numbers are the same bits (check_finite), so that it does not matter which call
    wrote it.
    """
    return _made_kernel(FOLDS[kind], rows, pairing, numbers, gain, clamp)


def _made_kernel(
    fold: FoldKind, rows: int, pairing: str, parameters: dict[str, Any], gain: float, clamp: float | None
) -> Kernel | None:
    if fold.reflects(**parameters):
        return _reflection(fold.name, pairing, gain, clamp)
    program = _program(fold, rows, parameters, gain, clamp)
    return None if program is None else Kernel(sequence, (pairing, 1, *program.operands, False), program)


def _reflection(kind: str, pairing: str, gain: float, clamp: float | None) -> Kernel:
    return Kernel(reflect, (pairing, 1, kind, gain, clamp or 0.0, False))


def _program(
    fold: FoldKind, width: int, parameters: dict[str, Any], gain: float, clamp: float | None, unfoldable: bool = False
) -> Program | None:
    """None where the kernels of programs do not serve it."""
    tensors = any(isinstance(value, torch.Tensor) for value in parameters.values())
    if fold.emit is None or (tensors and fold.pack is None):
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


def check_call(x: Any, kind: Any, bias: Any, dim: Any, pairing: Any, given: dict[str, Any], widened: bool = False) -> Call:
    """widened: x is a fold's output, with twice the channels if the kind widens."""
    check_tensor("x", x)
    check_choice("kind", kind, FOLDS)
    check_choice("pairing", pairing, PAIRINGS)
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"dim must be an int, got {type(dim).__name__}")
    fold = FOLDS[kind]
    # Where every value folds for itself nothing depends on dim.
    free = fold.ready() and fold.width(channels=0, **fold.defaults()) == 1 and bias is None
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

    Example:
        >>> pyfold.fold(torch.tensor([-3.0, 3.0]), "abs").tolist()
        [3.0, 3.0]
    """
    if not is_compiling():
        done = _fast(x, kind, bias, gain, clamp, dim, pairing, parameters)
        if done is not None:
            return done
    return _checked_fold(x, kind, bias, gain, clamp, dim, pairing, parameters)


# --- the fast path


def _check_output(gain: Any, clamp: Any) -> tuple[float, float | None]:
    gain = check_finite("gain", gain)
    if clamp is not None and check_finite("clamp", clamp) <= 0:
        raise ValueError(f"clamp must be positive, got {clamp}")
    return gain, None if clamp is None else float(clamp)


#: The kinds whose units may be all channels.
_OF_CHANNELS = frozenset(name for name, kind in FOLDS.items() if kind.width not in (one_value, a_pair))


class PreparedFold:
    """:func:`fold` with options that stay, read once; a call binds the tensors.

    Args:
        x: one of the calls'; :meth:`serves` says of another whether the options mean the same for it.
        kind, gain, clamp, dim, pairing, parameters: as in :func:`fold`. Each call gives those that are tensors anew.

    Attributes:
        tensors: names of the parameters that are tensors.
        call: ``call(x, bias, *tensors)`` gives the fold, or None where it takes :func:`fold`: torch must see the call, no
            kernel serves it, its gradient flows to a parameter in a way that no kernel has, or something is wrong.

    Raises:
        TypeError, ValueError: as :func:`fold`.
    """

    __slots__ = ("_call", "_like", "_pack", "_shapes", "call", "tensors")

    def __init__(
        self, x: torch.Tensor, kind: str, gain: float, clamp: float | None, dim: int, pairing: str, parameters: dict[str, Any]
    ):
        tensors = {name: value for name, value in parameters.items() if isinstance(value, torch.Tensor)}
        numbers = {name: value for name, value in parameters.items() if name not in tensors}
        call = check_call(x, kind, None, dim, pairing, parameters)
        kernel = _kernel(call.fold, call.rows, call.pairing, call.parameters, *_check_output(gain, clamp))
        pack = None if call.fold.pack is None else partial(call.fold.pack, **numbers)
        self.tensors, self._pack, self._shapes = tuple(tensors), pack, [tensor.shape for tensor in tensors.values()]
        of_channels, from_the_end = kind in _OF_CHANNELS, dim < 0
        dim = dim + x.dim() if from_the_end else dim
        channels = x.shape[dim] if of_channels else 1
        self._like = x.dim() if from_the_end else -1, dim if of_channels else -1, channels
        self._call: Any = None
        if kernel is not None:
            operands = ..., ..., ... if tensors else None, dim, *kernel.fixed
            self._call = _C.prepare(kernel.op.raw.name, *self._like, *operands)
        #: ``call(x, bias, *tensors)``
        self.call = self._call if not tensors or (clamp is None and pack is None) else self._with_tensors
        if self._call is None:
            self.call = _serves_none

    def serves(self, x: torch.Tensor, *tensors: torch.Tensor) -> bool:
        dims, dim, channels = self._like
        return (
            (dims < 0 or x.dim() == dims)
            and (dim < 0 or (dim < x.dim() and x.shape[dim] == channels))
            and (self._pack is None or self._shapes == [tensor.shape for tensor in tensors])
        )

    def _with_tensors(self, x: torch.Tensor, bias: torch.Tensor | None, *tensors: torch.Tensor) -> torch.Tensor | None:
        if any(tensor.requires_grad for tensor in tensors):
            # No kernel has the gradient. (An angle's needs both values of a pair, and a clamp would lose one of them.)
            return None
        if self._pack is not None:
            if not self.serves(x, *tensors):
                return None
            tensors = (self._pack(accumulation(x.dtype), **dict(zip(self.tensors, tensors, strict=True))),)
        return self._call(x, bias, *tensors)  # type: ignore[no-any-return]


def _serves_none(*_: Any) -> None:
    """What no kernel serves."""


def _fast(
    x: Any, kind: Any, bias: Any, gain: Any, clamp: Any, dim: Any, pairing: Any, parameters: dict[str, Any]
) -> torch.Tensor | None:
    """A fold of numbers, or of one tensor that its op takes, past the dispatcher; None where torch must see it, or it is
    neither."""
    try:
        fold = FOLDS[kind]
        if dim < 0:
            dim += x.dim()
        channels = x.shape[dim] if kind in _OF_CHANNELS else 1
        values, angle = fold.default_values, None
        if parameters and any(isinstance(value, torch.Tensor) for value in parameters.values()):
            values, angle = parameters, parameters.get("angle")
            if angle is None or parameters.keys() != fold.parameters.keys() or not fold.reflects(**parameters):
                return None
            if clamp is not None and angle.requires_grad:
                return None
        elif parameters:
            values = _check_parameters(fold, kind, parameters, channels, channels)
        if not fold.paired and pairing != "adjacent":
            check_choice("pairing", pairing, PAIRINGS)
            pairing = "adjacent"
        rows = fold.width(channels=channels, **values)
        if type(gain) is not float or gain != 1 or clamp is not None:
            gain, clamp = _check_output(gain, clamp)
        if angle is None:
            kernel = _kernel_of_numbers(kind, rows or 1, pairing, gain, clamp, **values)
        else:
            kernel = _reflection(kind, pairing, gain, clamp)
        done: torch.Tensor | None = None if kernel is None else kernel.op.entry(x, bias, angle, dim, *kernel.fixed)
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError):
        check_call(x, kind, bias, dim, pairing, parameters)
        _check_output(gain, clamp)
        raise
    return done


# --- every other call


def _checked_fold(
    x: Any, kind: Any, bias: Any, gain: Any, clamp: Any, dim: Any, pairing: Any, parameters: dict[str, Any]
) -> torch.Tensor:
    call = check_call(x, kind, bias, dim, pairing, parameters)
    gain, clamp = _check_output(gain, clamp)
    kernel = call.kernel(gain, clamp)
    differentiable = kernel is None or kernel.program is None or kernel.program.differentiable
    chosen = way((x, bias, *call.parameters.values()), differentiable=differentiable)
    if kernel is None or chosen is Way.COMPOSED:
        return _composed(call, bias, gain, clamp)
    if kernel.program is not None:
        return first(kernel.op(call.x, bias, call.packed(), call.dim, *kernel.fixed))
    angle = call.parameters.get("angle")
    if clamp is not None and angle is not None and angle.requires_grad:
        # The derivative in the angle needs both values of a pair, and a clamp would lose one of them.
        return clip(fold(x, kind, bias=bias, gain=gain, dim=dim, pairing=pairing, angle=angle), clamp)
    return first(kernel.op(call.x, bias, angle, call.dim, *kernel.fixed))


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
            made = sequence(call.x, None, call.packed(), *units, *program.operands, True)
            y, bits = both(made)
    return y, bits


def unfold(
    y: torch.Tensor, bits: torch.Tensor, kind: str, *, dim: int = 1, pairing: str = "adjacent", **parameters: Any
) -> torch.Tensor:
    """The inverse of a fold: x from its output and its bits, as :func:`fold_with_bits` returns them.

    Args:
        y: a fold's output without bias, gain and clamp.
        bits: uint8, the fold's bits.
        kind, dim, pairing, parameters: as given to :func:`fold_with_bits`.

    Returns:
        x, shaped like y.

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
            x = apply(call.x, bits, call.packed(), *units, "inverse", *program.operands)
    return x  # type: ignore[no-any-return]


def _unfoldable(call: Call) -> Program:
    if not call.fold.unfolds(**call.parameters):
        raise ValueError(f"{call.kind} with {call.parameters} loses its input; it cannot be unfolded")
    with torch.no_grad():
        # What learns does not matter here, as no gradient flows.
        fixed = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in call.parameters.items()}
        call = replace(call, parameters=fixed)
        program = None if call.learns else _program(call.fold, call.rows, fixed, 1.0, None, unfoldable=True)
    if program is None:
        raise ValueError(f"the kernels do not take {call.kind} of {call.rows} channels, and only they remember bits")
    return program


# --- the same in torch's operations


def fold_reference(
    x: torch.Tensor, kind: str, *, bias: torch.Tensor | None = None, gain: float = 1.0, clamp: float | None = None,
    dim: int = 1, pairing: str = "adjacent", **parameters: Any,
) -> torch.Tensor:  # fmt: skip
    call = check_call(x, kind, bias, dim, pairing, parameters)
    dim, z = call.dim, x
    if bias is not None:
        z = x + bias.reshape([-1 if d == dim else 1 for d in range(x.dim())])
    # Widened parameters: rounding them is not what is compared.
    values = {k: v.to(x.dtype) if isinstance(v, torch.Tensor) else v for k, v in call.parameters.items()}
    parts = call.fold.reference(split_units(z, call.rows, dim, call.pairing), **values)
    y = gain * join_units(parts, dim, "halves" if call.fold.widens else call.pairing, x.dim())
    return y if clamp is None else clip(y, clamp)


def _composed(call: Call, bias: torch.Tensor | None, gain: float, clamp: float | None) -> torch.Tensor:
    acc = accumulation(call.x.dtype)
    options: dict[str, Any] = {"gain": gain, "clamp": clamp, "dim": call.dim, "pairing": call.pairing, **call.parameters}
    y = fold_reference(call.x.to(acc), call.kind, bias=None if bias is None else bias.to(acc), **options).to(call.x.dtype)
    if call.x.is_contiguous():
        return y.contiguous()
    if transform_depth() > 0:  # vmap does not say whether channels are last
        return y
    last = y.dim() == 4 and call.x.is_contiguous(memory_format=torch.channels_last)
    return y.contiguous(memory_format=torch.channels_last) if last else y


# --- declaration


def _sample(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, generator: torch.Generator, *, kind: str,
    bias: bool = False, learned: bool = False, **variant: Any,
) -> dict[str, Any] | None:  # fmt: skip
    fold = FOLDS[kind]
    dim = variant.get("dim", 1)
    if not -len(shape) <= dim < len(shape):
        if bias or learned or not fold.ready() or fold.width(channels=0, **fold.defaults()) != 1 or fold.paired:
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


def tie_distance(
    x: torch.Tensor, kind: str, *, bias: torch.Tensor | None = None, gain: float = 1.0, clamp: float | None = None,
    dim: int = 1, pairing: str = "adjacent", **parameters: Any,
) -> torch.Tensor:  # fmt: skip
    call = check_call(x, kind, bias, dim, pairing, parameters)
    z = x if bias is None else x + bias.reshape([-1 if d == call.dim else 1 for d in range(x.dim())])
    distance = call.fold.ties(split_units(z, call.rows, call.dim, call.pairing), **call.parameters).abs().flatten()
    if clamp is None:
        return distance
    y = fold_reference(x, kind, bias=bias, gain=gain, dim=dim, pairing=pairing, **parameters)
    return torch.cat([distance, (y.abs() - clamp).abs().flatten()])


def _saved_bytes(
    x: torch.Tensor, kind: str, *, bias: torch.Tensor | None = None, gain: float = 1.0, clamp: float | None = None,
    dim: int = 1, pairing: str = "adjacent", **parameters: Any,
) -> int | None:  # fmt: skip
    call = check_call(x, kind, bias, dim, pairing, parameters)
    if not call.reflects:
        kernel = call.kernel(gain, clamp)
        program = None if kernel is None else kernel.program
        if program is None or not program.differentiable:
            return None
        packed = call.packed()
        extra = 0 if packed is None else packed.numel() * packed.element_size()
        return int(bit_bytes(x.numel(), call.rows, program.planes)) + extra
    angle: torch.Tensor | None = call.parameters.get("angle")
    if clamp is not None and angle is not None and angle.requires_grad:
        return None
    total = int(bit_bytes(x.numel(), call.rows, 1 if clamp is None else 1 + call.rows))
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
