"""What is true of a kind of fold: the record that each file of this folder fills in once.

A kind acts on units of ``width`` values, its formula on ``z`` [..., units, width]. Everything else (memory order, bias, gain,
clamp, derivatives, bits) is shared. To add one: a file with a :class:`FoldKind`, and its name in ``pyfold/folds/__init__.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from pyfold.folds.program import Program
from pyfold.ops._checks import check_finite, check_tensor


class REQUIRED:
    """The default of a parameter that must be given; a class, because the compiler of torch 2.10 compares no plain objects."""


#: ``check(name, value, channels, units) -> value``; raises an error that names the argument, its value and what is allowed.
Check = Callable[[str, Any, int, int], Any]
#: ``normal(shape)`` draws a tensor of normals.
Normal = Callable[[Sequence[int]], torch.Tensor]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kind.

    Attributes:
        default: its default, or REQUIRED.
        allowed: what it may be, in words.
        check: raises what names the argument, its value and the allowed.
        learned: may be a tensor that requires a gradient.
        start: ``start(channels)`` is what a module learns that is not given this parameter; None: a module uses the default.
    """

    default: Any
    allowed: str
    check: Check
    learned: bool = False
    start: Callable[[int], torch.Tensor] | None = None


@dataclass(frozen=True)
class CreaseFamily:
    """Parallel creases for each unit: where an affine value of the unit equals one of the offsets.

    Attributes:
        value: [..., units, families], or [..., families] for a kind whose unit is all channels.
        offsets: a crease lies where ``value`` equals one of these.
        period: creases lie at ``offsets[0] + k period`` for every integer k, if given.
        home: the level (how many creases a value lies beyond) at which the fold is the identity; int64 [families] if not one
            for all.
    """

    value: torch.Tensor
    offsets: tuple[float, ...] = (0.0,)
    period: float | None = None
    home: int | torch.Tensor = 1

    def distances(self) -> list[torch.Tensor]:
        """Distances of the values to the creases, zero on one."""
        if self.period is None:
            return [self.value - offset for offset in self.offsets]
        beyond = torch.remainder(self.value - self.offsets[0], self.period)
        return [torch.minimum(beyond, self.period - beyond)]


def _no_sample(channels: int, normal: Normal, learned: bool) -> dict[str, Any] | None:
    return {}


@dataclass(frozen=True)
class FoldKind:
    """What is true of one kind of fold.

    Attributes:
        name: how users call it.
        rule: the formula.
        source: where it comes from.
        tie: where a bit is decided, strictly, so that there the fold is the identity (NaN counts as a tie).
        bits: what backward keeps, in words.
        reference: ``reference(z, **parameters)``, [..., units, width] in torch operations.
        creases: ``creases(z, **parameters)``: the creases, one family after another, each affine between those before it; None
            where there are none.
        emit: ``emit(program, values, **parameters)`` writes the fold of these values of a unit; None: torch operations alone.
        width: ``width(channels, **parameters)``: the values of a unit.
        parameters: by name.
        check: ``check(parameters)`` raises a ValueError where parameters do not go together.
        paired: takes ``pairing``.
        reflects: whether the kernels of one reflection (csrc/folds) serve it with these parameters.
        pack: ``pack(dtype, **parameters)`` gives what its program reads of parameters that are tensors and do not learn, in a
            row; None: it takes no such program. The program itself depends on their shapes alone.
        flat: whether its creases are hyperplanes.
        lipschitz: the Lipschitz constant for given parameters.
        preserves_norm: whether all singular values of the Jacobian are 1, at every input.
        preserves_volume: whether its determinant is 1 or -1 at every input.
        unfolds: whether the input can be had back from the output and the bits.
        widens: twice as many channels come out.
        sample: ``sample(channels, normal, learned)`` draws the parameters of a call for tests and benchmarks, or is None for
            so many channels.
        variants: settings that the test matrix visits, by name; ``learned`` among them is passed to ``sample``.
        composed_variants: those that run in torch operations.
        eager: ``eager(**parameters)`` is the function of x [N, C, ...] that users of torch write; None: the reference.
    """

    name: str
    rule: str
    source: str
    tie: str
    bits: str
    reference: Callable[..., torch.Tensor]
    creases: Callable[..., Iterator[CreaseFamily]] | None
    emit: Callable[..., None] | None
    width: Callable[..., int]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    check: Callable[[Mapping[str, Any]], None] = lambda parameters: None
    paired: bool = False
    reflects: Callable[..., bool] = lambda **_: False
    pack: Callable[..., torch.Tensor] | None = None
    flat: bool = True
    lipschitz: Callable[..., float] = lambda **_: 1.0
    preserves_norm: Callable[..., bool] = lambda **_: True
    preserves_volume: Callable[..., bool] = lambda **_: True
    unfolds: Callable[..., bool] = lambda **_: True
    widens: bool = False
    sample: Callable[[int, Normal, bool], dict[str, Any] | None] = _no_sample
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    composed_variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    eager: Callable[..., Callable[[torch.Tensor], torch.Tensor]] | None = None

    def ready(self) -> bool:
        """Whether it works without parameters, and keeps the number of channels."""
        return not self.widens and all(p.default is not REQUIRED for p in self.parameters.values())

    @property
    def named(self) -> bool:
        """Whether its name and the number of channels make an activation: each parameter has a default, or a start."""
        return not self.widens and all(p.default is not REQUIRED or p.start is not None for p in self.parameters.values())

    @property
    def creased(self) -> bool:
        """Whether it is piecewise linear, so that its creases say where."""
        return self.creases is not None and self.flat

    @cached_property
    def default_values(self) -> Mapping[str, Any]:
        return self.defaults()

    def defaults(self) -> dict[str, Any]:
        return {name: p.default for name, p in self.parameters.items() if p.default is not REQUIRED}

    def ties(self, z: torch.Tensor, **parameters: Any) -> torch.Tensor:
        """Distances of z [..., units, width] to the creases, zero on one; flat, and infinite where there are none."""
        if self.creases is None:
            return torch.full_like(z, math.inf).flatten()
        return torch.cat([d.flatten() for family in self.creases(z, **parameters) for d in family.distances()])


# --- units


def split_units(z: torch.Tensor, width: int, dim: int, pairing: str = "adjacent") -> torch.Tensor:
    """The units of a tensor, [..., units, width]; pairing says where the values of a pair lie."""
    z = z.movedim(dim, -1) if z.dim() else z.reshape(1)
    if width == 2 and pairing == "halves":
        return z.reshape(*z.shape[:-1], 2, z.shape[-1] // 2).transpose(-1, -2)
    return z.reshape(*z.shape[:-1], z.shape[-1] // width, width)


def join_units(units: torch.Tensor, dim: int, pairing: str, dims: int) -> torch.Tensor:
    """The tensor of ``dims`` dimensions whose units these are."""
    if units.shape[-1] == 2 and pairing == "halves":
        units = units.transpose(-1, -2)
    y = units.flatten(-2)
    return y.movedim(-1, dim) if dims else y.reshape(())


def one_value(channels: int, **_: Any) -> int:
    return 1


def a_pair(channels: int, **_: Any) -> int:
    return 2


def all_channels(channels: int, **_: Any) -> int:
    return channels


def group_of(channels: int, *, size: int | None, **_: Any) -> int:
    return channels if size is None else size


def emit_each(write: Callable[..., None]) -> Callable[..., None]:
    """The program of a fold that acts on each value for itself: ``write(program, i, **parameters)``."""

    def emit(program: Program, values: Sequence[int], **parameters: Any) -> None:
        for i in values:
            write(program, i, **parameters)

    return emit


def emit_pairs(write: Callable[..., None]) -> Callable[..., None]:
    """The program of a fold of neighbouring values: ``write(program, i, j, **parameters)``."""

    def emit(program: Program, values: Sequence[int], **parameters: Any) -> None:
        for i, j in zip(values[0::2], values[1::2], strict=True):
            write(program, i, j, **parameters)

    return emit


# --- checks of parameters


def number(low: float = -math.inf, high: float = math.inf, positive: bool = False) -> Check:
    def check(name: str, value: Any, channels: int, units: int) -> Any:
        value = check_finite(name, value)
        if positive and value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
        if not low <= value <= high:
            raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {value}")
        return value

    return check


def tensor_or(number: Check, per: str) -> Check:
    """A number, or a tensor: one value, or one for each channel or pair."""

    def check(name: str, value: Any, channels: int, units: int) -> Any:
        if not isinstance(value, torch.Tensor):
            return number(name, value, channels, units)
        check_tensor(name, value)
        count = channels if per == "channel" else units
        if value.shape not in ((), (count,)):
            raise ValueError(f"{name} must have shape () or ({count},), one for each {per}, got {tuple(value.shape)}")
        return value

    return check


def count(name: str, value: Any, channels: int, units: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be from 1, got {value}")
    return value


def _size(name: str, value: Any, channels: int, units: int) -> int | None:
    return None if value is None else count(name, value, channels, units)


SIZE = Parameter(None, "an int that divides the channels, or None for all of them", _size)
POSITIVE = Parameter(1.0, "positive", number(positive=True))
#: Of what is squared: its square is a number in float32 too.
LARGEST_LENGTH = 1e18
LENGTH = Parameter(1.0, f"positive, up to {LARGEST_LENGTH:g}", number(high=LARGEST_LENGTH, positive=True))


# --- formulas that several kinds share


def fold_below(z: torch.Tensor, at: float = 0.0) -> torch.Tensor:
    """Values below a point, mirrored at it."""
    return torch.where(z < at, 2 * at - z, z)


def sorted_units(z: torch.Tensor) -> torch.Tensor:
    return torch.sort(z, dim=-1, stable=True).values


def pairs_of(width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices (i, j), i < j, of all pairs of a unit."""
    i, j = torch.triu_indices(width, width, 1, device=device)
    return i, j


def reflect_at_line(a: torch.Tensor, b: torch.Tensor, direction: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pairs (a, b) that lie clockwise of the line through 0 in a direction (radians), reflected at it; and their sides."""
    direction = direction if isinstance(direction, torch.Tensor) else torch.tensor(direction, dtype=a.dtype, device=a.device)
    direction = direction.to(a.dtype)
    side = a * torch.sin(direction) - b * torch.cos(direction)
    cosine, sine = torch.cos(2 * direction), torch.sin(2 * direction)
    return (
        torch.where(side > 0, a * cosine + b * sine, a),
        torch.where(side > 0, a * sine - b * cosine, b),
        side,
    )
