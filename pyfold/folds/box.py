"""The line folded at both ends of a box."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from pyfold.folds.kind import POSITIVE, CreaseFamily, FoldKind, emit_each, one_value
from pyfold.folds.program import Program


def _reference(z: torch.Tensor, *, length: float) -> torch.Tensor:
    return torch.where(z > length, 2 * length - z, torch.where(z < -length, -2 * length - z, z))


def _creases(z: torch.Tensor, *, length: float) -> Iterator[CreaseFamily]:
    yield CreaseFamily(z, (-length, length))


def _write(program: Program, i: int, *, length: float) -> None:
    program.box(i, length)


def _eager(*, length: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: 2 * x.clamp(-length, length) - x


KIND = FoldKind(
    name="box",
    rule="2 clamp(x, -L, L) - x",
    source="Tom Lowe's Mandelbox, 2010",
    tie="x = L, x = -L",
    bits="1 a value; 2 to unfold",
    reference=_reference,
    creases=_creases,
    emit=emit_each(_write),
    width=one_value,
    parameters={"length": POSITIVE},
    variants={"box": {"length": 0.6}},
    eager=_eager,
)
