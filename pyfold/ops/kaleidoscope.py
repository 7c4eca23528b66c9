"""Folds, a rotation, a scale and a translation, over and over, in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from pyfold.folds import FOLDS, Program
from pyfold.folds.program import MAX_MATRIX_WIDTH
from pyfold.ops._autograd import Way, way
from pyfold.ops._checks import check_choice, check_finite, check_tensor
from pyfold.ops._declare import Op, declare
from pyfold.ops._fold_memory import first
from pyfold.ops._fold_sequence import sequence
from pyfold.ops._tensors import normal
from pyfold.ops.fold import Call, check_call, fold, fold_reference, tie_distance

#: More rounds than this never end in practice.
MAX_ITERATIONS = 2**20

Folds = Sequence[str | tuple[str, dict[str, Any]]]


def _numbers(name: str, value: Any, count: int) -> list[float]:
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise ValueError(f"{name} must be numbers or a tensor on the CPU, got one on {value.device}")
        value = value.tolist()
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != count:
        raise ValueError(f"{name} must have {count} entries, one for each channel, got {value!r}")
    return [check_finite(name, number) for number in value]


class _Turn:
    """z -> scale R z + shift, after the folds of each round."""

    def __init__(self, scale: float, centre: Any, rotation: Any, channels: int):
        self.scale = check_finite("scale", scale)
        if self.scale == 0:
            raise ValueError(f"scale must not be 0, got {scale}")
        self.shift = [(1 - self.scale) * c for c in _numbers("centre", centre, channels)] if centre is not None else None
        self.rotation = None
        if rotation is not None:
            if not isinstance(rotation, (Sequence, torch.Tensor)) or (
                isinstance(rotation, torch.Tensor) and not rotation.dim()
            ):
                raise TypeError(f"rotation must be rows of numbers, got {type(rotation).__name__}")
            if len(rotation) != channels:
                raise ValueError(f"rotation must have {channels} rows, one for each channel, got {len(rotation)}")
            self.rotation = [_numbers("rotation", row, channels) for row in rotation]
            for i, row in enumerate(self.rotation):
                for j, other in enumerate(self.rotation):
                    product = sum(a * b for a, b in zip(row, other, strict=True))
                    if abs(product - (i == j)) > 1e-6:
                        raise ValueError(f"rotation must be orthogonal; rows {i} and {j} have the product {product:.9g}")

    def __call__(self, z: torch.Tensor, dim: int) -> torch.Tensor:
        z = z.movedim(dim, -1)
        if self.rotation is not None:
            z = z @ torch.tensor(self.rotation, dtype=z.dtype, device=z.device).T
        z = self.scale * z
        if self.shift is not None:
            z = z + torch.tensor(self.shift, dtype=z.dtype, device=z.device)
        return z.movedim(-1, dim)

    def emit(self, program: Program) -> None:
        if self.rotation is not None:
            turn = [[self.scale * r for r in row] for row in self.rotation]
            back = [[r / self.scale for r in column] for column in zip(*self.rotation, strict=True)]
            program.matrix(turn, back, self.shift or [0.0] * len(turn))
        elif self.scale != 1 or self.shift is not None:
            program.affine(self.scale, self.shift)


def _rows_of(call: Call, channels: int) -> Iterator[list[int]]:
    """The channels that each unit of a fold takes."""
    units = channels // call.rows
    for unit in range(units):
        if call.pairing == "halves":
            yield [unit, unit + units]
        else:
            yield list(range(unit * call.rows, (unit + 1) * call.rows))


def _program(calls: list[Call], turn: _Turn, iterations: int, channels: int) -> Program | None:
    if any(call.fold.emit is None or call.learns or call.has_tensors for call in calls):
        return None
    if turn.rotation is not None and channels > MAX_MATRIX_WIDTH:
        return None
    program = Program(channels)
    for _ in range(iterations):
        for call in calls:
            for rows in _rows_of(call, channels):
                assert call.fold.emit is not None
                call.fold.emit(program, rows, **call.parameters)
        turn.emit(program)
        if not program.fits:
            return None
    return program


def _checked(
    x: Any, folds: Any, scale: Any, centre: Any, rotation: Any, iterations: Any, dim: Any
) -> tuple[list[Call], _Turn, int]:
    check_tensor("x", x)
    if isinstance(iterations, bool) or not isinstance(iterations, int):
        raise TypeError(f"iterations must be an int, got {type(iterations).__name__}")
    if not 1 <= iterations <= MAX_ITERATIONS:
        raise ValueError(f"iterations must be from 1 to {MAX_ITERATIONS}, got {iterations}")
    if x.dim() == 0:
        raise ValueError("x needs a channel dimension, got a 0-d tensor")
    if isinstance(folds, str) or not isinstance(folds, Sequence):
        raise TypeError(f"folds must be a sequence of kinds or of (kind, parameters), got {folds!r}")
    calls = []
    for item in folds:
        pair = (item, {}) if isinstance(item, str) else item
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[1], Mapping):
            raise TypeError(f"folds must be kinds or pairs (kind, parameters), got {item!r}")
        kind, parameters = pair[0], dict(pair[1])
        check_choice("folds", kind, [k for k in FOLDS if not FOLDS[k].widens])
        calls.append(check_call(x, kind, None, dim, parameters.pop("pairing", "adjacent"), parameters))
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"dim must be an int, got {type(dim).__name__}")
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"dim must be in [{-x.dim()}, {x.dim()}), got {dim} for x of shape {tuple(x.shape)}")
    if x.shape[dim] == 0:
        raise ValueError(f"x must have channels in dim {dim}, got shape {tuple(x.shape)}")
    return calls, _Turn(scale, centre, rotation, x.shape[dim]), dim % x.dim()


def kaleidoscope(
    x: torch.Tensor,
    folds: Folds,
    *,
    scale: float = 1.0,
    centre: Any = None,
    rotation: Any = None,
    iterations: int = 1,
    dim: int = 1,
) -> torch.Tensor:
    """Kaleidoscopic iteration: ``z <- s R F(z) - (s - 1) c``, ``iterations`` times over, in one pass over memory.

    ``F`` is the folds one after another, each on all channels: what acts on values, pairs or groups takes them all in turn.
    With scales from 1 this is how kaleidoscopic fractals are made (Knighty 2010); with s = 1 a deep network of folds whose
    layers share their weights. Remembers the folds' bits alone: some of each vector and round.

    Args:
        x: [..., C, ...] as in :func:`pyfold.fold`.
        folds: kinds of ``pyfold.ops.FOLDS`` but crelu, or pairs (kind, parameters); ``pairing`` among them where it matters.
        scale: s, not 0.
        centre: c, C numbers, the point that stays; the origin by default.
        rotation: R, an orthogonal matrix, C rows of C numbers; none by default. Here too a tensor must be on the CPU.
        iterations: rounds, up to 2**20.
        dim: the channel dimension.

    Returns:
        Like ``x``. Differentiable any number of times. Programs of up to 280 instructions (each fold of a value, pair, swap or
        vector is one, and each scale), 104 constants, and 6 channels where there is a rotation run as one kernel; longer
        ones, those with parameters that are tensors, and the gradients of sphere and ball go round by round.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range.

    Example:
        >>> corner = torch.tensor([[-3.0, 2.0]])
        >>> kaleidoscope(corner, [("abs", {})], iterations=2).tolist()  # the second abs finds nothing to fold
        [[3.0, 2.0]]
    """
    calls, turn, dim = _checked(x, folds, scale, centre, rotation, iterations, dim)
    program = _program(calls, turn, iterations, x.shape[dim])
    if program is not None and calls and way((x,), differentiable=program.differentiable) is not Way.COMPOSED:
        return first(sequence(calls[0].x, None, None, dim, "adjacent", 1, *program.operands, False))
    z = x
    for _ in range(iterations):
        for call in calls:
            z = fold(z, call.kind, dim=dim, pairing=call.pairing, **call.parameters)
        z = turn(z, dim)
    return z


# --- declaration


def _rounds(
    x: torch.Tensor, folds: Folds, scale: float = 1.0, centre: Any = None, rotation: Any = None, iterations: int = 1,
    dim: int = 1,
) -> Iterator[tuple[Call | None, torch.Tensor]]:  # fmt: skip
    """(call, what it folds) of each fold, and at the end (None, the result)."""
    calls, turn, dim = _checked(x, folds, scale, centre, rotation, iterations, dim)
    z = x
    for _ in range(iterations):
        for call in calls:
            yield call, z
            z = fold_reference(z, call.kind, dim=dim, pairing=call.pairing, **call.parameters)
        z = turn(z, dim)
    yield None, z


def _reference(x: torch.Tensor, folds: Folds, **options: Any) -> torch.Tensor:
    *_, (_, z) = _rounds(x, folds, **options)
    return z


def _tie_distance(x: torch.Tensor, folds: Folds, **options: Any) -> torch.Tensor:
    dim = options.get("dim", 1)
    seen = [
        tie_distance(z, call.kind, dim=dim, pairing=call.pairing, **call.parameters)
        for call, z in _rounds(x, folds, **options)
        if call is not None
    ]
    return torch.cat(seen)


def _sample(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, generator: torch.Generator, *,
    channels: Sequence[int] = (), **variant: Any,
) -> dict[str, Any] | None:  # fmt: skip
    if len(shape) < 2 or shape[1] == 0 or (channels and shape[1] not in channels):
        return None
    x = normal(shape, dtype, device, generator)
    if variant.get("rotation") is not None:
        random = torch.randn(shape[1], shape[1], generator=generator, dtype=torch.float64)
        variant["rotation"] = torch.linalg.qr(random)[0].tolist()
    if variant.get("centre") is not None:
        variant["centre"] = torch.linspace(-1, 1, shape[1], dtype=torch.float64).tolist()
    return {"x": x, **variant}


declare(
    Op(
        name="kaleidoscope",
        public=kaleidoscope,
        reference=_reference,
        sample=_sample,
        tensors=("x",),
        raw=("fold_sequence", "fold_sequence_apply"),
        rule="z <- s R F(z) - (s - 1) c, over and over",
        variants={
            "boxes": {"folds": [("box", {"length": 0.8}), ("abs", {"offset": -0.3})], "scale": 1.5, "iterations": 3,
                      "centre": True},
            "sorts": {"folds": ["abs", "groupsort"], "scale": -1.3, "iterations": 2},
            "wedges, turned": {"folds": [("dihedral", {"m": 5}), ("maxmin", {"pairing": "halves"})], "rotation": True,
                               "iterations": 3, "channels": (2, 4, 6)},
            "mandelbox": {"folds": ["box", "sphere"], "scale": 2.0, "iterations": 2},
        },
        differentiable=("x",),
        tie_distance=_tie_distance,
        batched=False,
    )
)  # fmt: skip
