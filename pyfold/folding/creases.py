"""Where each activation folds: its creases, as affine functions of its input.

Those of torch's activations stand here; a fold's come from its kind (pyfold/folds).

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
from typing import Any

import torch
from torch import nn

from pyfold.folds import FOLDS, CreaseFamily, FoldKind
from pyfold.folds.kind import split_units
from pyfold.nn import Fold

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
        return torch.stack([value > offset for offset in self.offsets]).sum(0)

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


#: ``rule(module, x)`` yields the creases of an activation for its input x [B, ...], one family after another.
CreaseRule = Callable[[Any, torch.Tensor], Iterator[Creases]]


def _at(*offsets: float, home: int = 1, smooth: bool = False) -> CreaseRule:
    def creases(_: nn.Module, x: torch.Tensor) -> Iterator[Creases]:
        yield Creases(x.flatten(1), offsets, home=home, smooth=smooth)

    return creases


def _hardtanh(module: nn.Hardtanh, x: torch.Tensor) -> Iterator[Creases]:
    yield Creases(x.flatten(1), (module.min_val, module.max_val))


def _softshrink(module: nn.Softshrink, x: torch.Tensor) -> Iterator[Creases]:
    yield Creases(x.flatten(1), (-module.lambd, module.lambd))


# --- folds


def _levels_at_home(family: CreaseFamily) -> int | torch.Tensor:
    """One home for all units, or one for each of their columns in the flat value."""
    if isinstance(family.home, int):
        return family.home
    return family.home.expand(family.value.shape[1:]).flatten()


def fold_creases(kind: FoldKind, z: torch.Tensor, pairing: str = "adjacent", **parameters: Any) -> Iterator[Creases]:
    """The creases of a fold for its input [B, ..., C] with the bias added, one family after another."""
    if not kind.creased or kind.creases is None:
        creased = ", ".join(name for name, other in FOLDS.items() if other.creased)
        raise ValueError(f"the creases of a {kind.name} fold are not hyperplanes; known are {creased}")
    width = kind.width(channels=z.shape[-1], **parameters)
    for family in kind.creases(split_units(z, width, -1, pairing if kind.paired else "adjacent"), **parameters):
        yield Creases(family.value.flatten(1), family.offsets, family.period, _levels_at_home(family))


def _fold(fold: Fold, x: torch.Tensor) -> Iterator[Creases]:
    kind = FOLDS[fold.kind]
    if -x.dim() <= fold.dim < x.dim():
        z = x.movedim(fold.dim, -1)
        z = z if fold.bias is None else z + fold.bias
    else:  # every value for itself
        z = x.unsqueeze(-1)
    parameters = {name: getattr(fold, name) for name in kind.parameters}
    yield from fold_creases(kind, z, fold.pairing, **parameters)
    if fold.clamp is not None:
        unclamped = copy.copy(fold)
        unclamped.clamp = None
        yield Creases(unclamped.forward(x).flatten(1), (-fold.clamp, fold.clamp))


#: What each activation module yields for its input [B, ...]; an entry of your own makes a module known. Subclasses inherit.
#: Smooth activations count the sign of their input, as Lewandowski et al. (arXiv 2503.08502) do for other activations.
ACTIVATION_CREASES: dict[type[nn.Module], CreaseRule] = {
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


def rule_of(module: nn.Module) -> CreaseRule | None:
    """The entry of ``ACTIVATION_CREASES`` for a module, or None if it has no creases."""
    return next((ACTIVATION_CREASES[base] for base in type(module).__mro__ if base in ACTIVATION_CREASES), None)
