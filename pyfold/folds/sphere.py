"""The shell between two spheres turned inside out, and what lies inside scaled to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from pyfold.folds.kind import LARGEST_LENGTH, LENGTH, CreaseFamily, FoldKind, Parameter, all_channels, number
from pyfold.folds.program import Program


def _check(parameters: Mapping[str, Any]) -> None:
    if parameters["inner"] > parameters["radius"]:
        raise ValueError(f"inner must be at most radius, {parameters['radius']}, got {parameters['inner']}")
    if parameters["inner"] * LARGEST_LENGTH < parameters["radius"]:
        raise ValueError(f"inner must be at least radius / {LARGEST_LENGTH:g}, got {parameters['inner']}")


def _reference(z: torch.Tensor, *, radius: float, inner: float) -> torch.Tensor:
    square = (z * z).sum(-1, keepdim=True)
    inversion = torch.where(square < radius**2, radius**2 / square.clamp(min=inner**2), 1.0)
    return z * torch.where(square < inner**2, (radius / inner) ** 2, inversion)


def _creases(z: torch.Tensor, *, radius: float, inner: float) -> Iterator[CreaseFamily]:
    yield CreaseFamily(z.norm(dim=-1, keepdim=True), (inner, radius), home=2)


def _emit(program: Program, values: Sequence[int], *, radius: float, inner: float) -> None:
    program.sphere(radius, inner)


def _no(**_: Any) -> bool:
    return False


KIND = FoldKind(
    name="sphere",
    rule="r < r0: x R^2 / r0^2; r < R: x R^2 / r^2; else x, with r = |x| over the channels",
    source="Tom Lowe's Mandelbox, 2010",
    tie="r = r0, r = R",
    bits="the input; 2 a vector to unfold",
    reference=_reference,
    creases=_creases,
    emit=_emit,
    width=all_channels,
    parameters={"radius": LENGTH, "inner": Parameter(0.5, "positive, up to radius", number(positive=True))},
    check=_check,
    flat=False,
    lipschitz=lambda radius, inner: float((radius / inner) ** 2),
    preserves_norm=_no,
    preserves_volume=_no,
    variants={"sphere": {"radius": 1.5, "inner": 0.7}},
)
