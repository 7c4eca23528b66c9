"""What lies outside of a ball, inverted into it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pyfold.folds.kind import LENGTH, CreaseFamily, FoldKind, all_channels
from pyfold.folds.program import Program


def _reference(z: torch.Tensor, *, radius: float) -> torch.Tensor:
    square = (z * z).sum(-1, keepdim=True)
    return z * torch.where(square > radius**2, radius**2 / square.clamp(min=radius**2), 1.0)


def _creases(z: torch.Tensor, *, radius: float) -> Iterator[CreaseFamily]:
    yield CreaseFamily(z.norm(dim=-1, keepdim=True), (radius,), home=0)


def _emit(program: Program, values: Sequence[int], *, radius: float) -> None:
    program.ball(radius)


def _no(**_: Any) -> bool:
    return False


KIND = FoldKind(
    name="ball",
    rule="r > R: x R^2 / r^2; else x, with r = |x| over the channels: the outside inverted into the ball",
    source="inversion in a sphere",
    tie="r = R",
    bits="the input; 1 a vector to unfold",
    reference=_reference,
    creases=_creases,
    emit=_emit,
    width=all_channels,
    parameters={"radius": LENGTH},
    flat=False,
    preserves_norm=_no,
    preserves_volume=_no,
    variants={"ball, gain": {"gain": 0.5}},
)
