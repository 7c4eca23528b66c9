"""Where each activation folds: its creases, as affine functions of its input. A new kind is one entry here.

A crease is a hyperplane at which an activation changes its linear map. Parallel creases form a family: an affine value of
the input, and the offsets at which that value crosses a crease. The level of an input is how many creases of the family it
lies beyond, so that the pattern of a layer is a vector of integers and the number of creases between two inputs is the sum of
their absolute differences: the Hamming distance of the activation bits where a family has one crease (ReLU, abs), the Kendall
distance of the permutations for sorts.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from pyfold.nn import Fold
from pyfold.ops.fold_kinds import reflect_at_line

_ZERO = 1e-12  # a value this small beside the largest of its layer lies on the crease, whatever its rounding says


@dataclass(frozen=True)
class Creases:
    """One family of parallel creases for each unit of a layer.

    Attributes:
        value: [B, units]; affine in the layer's input on each side of the creases before it.
        offsets: a crease lies where ``value`` equals one of these.
        period: creases lie at ``offsets[0] + k period`` for every integer k, if given.
        home: the level at which the activation is the identity, one for all units or one for each.
        smooth: the activation also bends between its creases, so that no piece of it is linear.
    """

    value: torch.Tensor
    offsets: tuple[float, ...] = (0.0,)
    period: float | None = None
    home: int | torch.Tensor = 1
    smooth: bool = False

    @property
    def zero(self) -> float:
        """The distance from a crease up to which a value counts as lying on it."""
        return _ZERO * self.value.abs().max().item()

    def levels(self) -> torch.Tensor:
        """int64 [B, units]: how many creases each value lies beyond."""
        value = self.value - self.zero
        if self.period is not None:
            return torch.ceil((value - self.offsets[0]) / self.period).long()
        return sum((value > offset).long() for offset in self.offsets)

    def side(self, offset: float) -> torch.Tensor:
        """[B, units]: on which side of one crease each value is, 0 on it."""
        side = self.value - offset
        return side.masked_fill(side.abs() <= self.zero, 0.0)

    def reached(self) -> list[float]:
        """The offsets between the least and the greatest value."""
        low, high = (bound.item() for bound in self.value.aminmax())
        if self.period is None:
            return [o for o in self.offsets if low <= o <= high]
        first, last = math.ceil((low - self.offsets[0]) / self.period), math.floor((high - self.offsets[0]) / self.period)
        return [self.offsets[0] + k * self.period for k in range(first, last + 1)]

    def depth(self) -> torch.Tensor:
        """int64 [B]: creases between each input and the region where the activation is the identity."""
        home = self.home.to(self.value.device) if isinstance(self.home, torch.Tensor) else self.home
        return (self.levels() - home).abs().sum(1)


# --- torch's activations


def _at(*offsets: float, home: int = 1, smooth: bool = False) -> Callable[[nn.Module, torch.Tensor], Iterator[Creases]]:
    def creases(_: nn.Module, x: torch.Tensor) -> Iterator[Creases]:
        yield Creases(x.flatten(1), offsets, home=home, smooth=smooth)

    return creases


def _hardtanh(module: nn.Hardtanh, x: torch.Tensor) -> Iterator[Creases]:
    yield Creases(x.flatten(1), (module.min_val, module.max_val))


def _softshrink(module: nn.Softshrink, x: torch.Tensor) -> Iterator[Creases]:
    yield Creases(x.flatten(1), (-module.lambd, module.lambd))


# --- folds. Each rule takes the fold and its input [..., C] with the bias added, and yields, one after another, creases whose
# values [..., units] are affine between those before.


def _pairs(fold: Fold, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return z.chunk(2, -1) if fold.pairing == "halves" else (z[..., 0::2], z[..., 1::2])


def _groups(fold: Fold, z: torch.Tensor) -> torch.Tensor:
    size = getattr(fold, "size", None) or z.shape[-1]
    return z.unflatten(-1, (-1, size))


def _all_pairs(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.triu_indices(size, size, 1))


def _values(value: torch.Tensor, home: int | torch.Tensor = 1, **families) -> Creases:
    """Creases of values [B, ..., units], or [B, ..., groups, units in a group] with a home for each unit in a group."""
    if isinstance(home, torch.Tensor):
        home = home.expand(value.shape[1:]).flatten()
    return Creases(value.flatten(1), home=home, **families)


def _abs(fold: Fold, z: torch.Tensor) -> Iterator[Creases]:
    yield _values(z - getattr(fold, "offset", 0.0))


def _box(fold: Fold, z: torch.Tensor) -> Iterator[Creases]:
    yield _values(z / fold.length, offsets=(-1.0, 1.0))


def _tri(fold: Fold, z: torch.Tensor) -> Iterator[Creases]:
    # The cell (-1, 1] has level 0 here, and the fold is the identity in it.
    yield _values((z - fold.phase) / fold.length, home=0, offsets=(1.0,), period=2.0)


def _maxmin(fold: Fold, z: torch.Tensor) -> Iterator[Creases]:
    a, b = _pairs(fold, z)
    yield _values(a - b, home=0)


def _householder(fold: Fold, z: torch.Tensor) -> Iterator[Creases]:
    yield _values(reflect_at_line(*_pairs(fold, z), fold.angle / 2)[2], home=0)


def _dihedral(fold: Fold, z: torch.Tensor) -> Iterator[Creases]:
    # The mirrors of I_2(m); at home the pair lies counterclockwise of the first and clockwise of the others.
    a, b = _pairs(fold, z)
    mirrors = [reflect_at_line(a, b, fold.angle + math.pi * k / fold.m)[2] for k in range(fold.m)]
    home = torch.ones(fold.m, dtype=torch.int64)
    home[0] = 0
    yield _values(torch.stack(mirrors, -1), home=home)


def _groupsort(fold: Fold, z: torch.Tensor) -> Iterator[Creases]:
    # The mirrors of the symmetric group A_{k-1}: one for each pair, so that the distance of patterns is Kendall's.
    z = _groups(fold, z)
    i, j = _all_pairs(z.shape[-1])
    yield _values(z[..., i] - z[..., j], home=0)


def _sortabs(fold: Fold, z: torch.Tensor) -> Iterator[Creases]:
    # The mirrors of B_k: x_i = 0, x_i = x_j, x_i = -x_j; at home 0 < x_1 < ... < x_k.
    z = _groups(fold, z)
    i, j = _all_pairs(z.shape[-1])
    ones, zeros = torch.ones(len(i), dtype=torch.int64), torch.zeros(len(i), dtype=torch.int64)
    home = torch.cat([torch.ones(z.shape[-1], dtype=torch.int64), zeros, ones])
    yield _values(torch.cat([z, z[..., i] - z[..., j], z[..., i] + z[..., j]], -1), home=home)


def _hyperplane(fold: Fold, z: torch.Tensor) -> Iterator[Creases]:
    normals, offsets = torch.atleast_2d(fold.normal), torch.atleast_1d(torch.as_tensor(fold.offset).to(z))
    normals = normals / normals.norm(dim=1, keepdim=True)
    for normal, offset in zip(normals, offsets.expand(len(normals)), strict=True):
        side = z @ normal - offset
        yield _values(side.unsqueeze(-1), home=0)
        z = z - 2 * side.clamp(min=0).unsqueeze(-1) * normal


#: The kinds of fold with creases that are hyperplanes. The clamp of a fold is added to them.
FOLD_CREASES: dict[str, Callable[[Fold, torch.Tensor], Iterator[Creases]]] = {
    "abs": _abs,
    "leaky": _abs,
    "crelu": _abs,
    "box": _box,
    "tri": _tri,
    "maxmin": _maxmin,
    "householder": _householder,
    "dihedral": _dihedral,
    "groupsort": _groupsort,
    "sortabs": _sortabs,
    "hyperplane": _hyperplane,
}


def _fold(fold: Fold, x: torch.Tensor) -> Iterator[Creases]:
    if fold.kind not in FOLD_CREASES:
        raise ValueError(f"the creases of a {fold.kind} fold are not hyperplanes; known are {', '.join(FOLD_CREASES)}")
    z = x
    if -x.dim() <= fold.dim < x.dim():
        z = x.movedim(fold.dim, -1)
        z = z if fold.bias is None else z + fold.bias
    yield from FOLD_CREASES[fold.kind](fold, z)
    if fold.clamp is not None:
        unclamped = copy.copy(fold)
        unclamped.clamp = None
        yield Creases(unclamped.forward(x).flatten(1), (-fold.clamp, fold.clamp))


#: What each activation module yields for its input [B, ...]; an entry of your own makes a module known. Subclasses inherit.
#: Smooth activations count the sign of their input, as Lewandowski et al. (arXiv 2503.08502) do for other activations.
ACTIVATION_CREASES: dict[type[nn.Module], Callable[[nn.Module, torch.Tensor], Iterator[Creases]]] = {
    nn.ReLU: _at(0.0),
    nn.LeakyReLU: _at(0.0),
    nn.PReLU: _at(0.0),
    nn.RReLU: _at(0.0),
    nn.Hardtanh: _hardtanh,
    nn.ReLU6: _hardtanh,
    nn.Hardsigmoid: _at(-3.0, 3.0),
    nn.Softshrink: _softshrink,
    Fold: _fold,
    **{
        smooth: _at(0.0, smooth=True)
        for smooth in (nn.SiLU, nn.GELU, nn.ELU, nn.CELU, nn.SELU, nn.Softplus, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Hardswish)
    },
}


def rule_of(module: nn.Module) -> Callable[[nn.Module, torch.Tensor], Iterator[Creases]] | None:
    """The entry of ``ACTIVATION_CREASES`` for a module, or None if it has no creases."""
    return next((ACTIVATION_CREASES[base] for base in type(module).__mro__ if base in ACTIVATION_CREASES), None)
