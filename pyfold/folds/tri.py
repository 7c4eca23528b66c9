"""The line folded over and over into one interval."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pyfold.folds.kind import POSITIVE, CreaseFamily, FoldKind, Parameter, emit_each, number, one_value
from pyfold.folds.program import Program


def _reference(z: torch.Tensor, *, length: float, phase: float) -> torch.Tensor:
    u = z - phase
    within = (u + length) - 4 * length * torch.floor((u + length) / (4 * length))
    return phase + torch.where(within > 2 * length, 3 * length - within, within - length)


def _creases(z: torch.Tensor, *, length: float, phase: float) -> Iterator[CreaseFamily]:
    # The cell (-length, length] about the phase has level 0 here, and the fold is the identity in it.
    yield CreaseFamily(z - phase, (length,), period=2 * length, home=0)


def _write(program: Program, i: int, *, length: float, phase: float) -> None:
    program.tri(i, length, phase)


KIND = FoldKind(
    name="tri",
    rule="mirrors at p + L (2 k + 1) for all k: a triangle wave of slope 1 and -1 into [p - L, p + L]",
    source="the affine reflection group A_1",
    tie="x = p + L (2 k + 1)",
    bits="1 a value; 32 to unfold",
    reference=_reference,
    creases=_creases,
    emit=emit_each(_write),
    width=one_value,
    parameters={"length": POSITIVE, "phase": Parameter(0.0, "finite", number())},
    variants={"tri": {"length": 0.4, "phase": 0.3}},
)
