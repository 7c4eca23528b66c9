"""The plane folded at a line through the origin, whose angle learns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from pyfold.folds.kind import REQUIRED, CreaseFamily, FoldKind, Normal, Parameter, a_pair, emit_pairs, reflect_at_line
from pyfold.folds.program import Program
from pyfold.ops._checks import check_finite, check_tensor


def _angles(name: str, value: Any, channels: int, units: int) -> Any:
    if isinstance(value, torch.Tensor):
        check_tensor(name, value)
        if tuple(value.shape) != (units,):
            raise ValueError(f"{name} must have shape ({units},), got {tuple(value.shape)}")
        return value
    return check_finite(name, value)


def _reference(z: torch.Tensor, *, angle: Any) -> torch.Tensor:
    a, b = z.unbind(-1)
    a, b, _ = reflect_at_line(a, b, angle / 2)
    return torch.stack([a, b], -1)


def _creases(z: torch.Tensor, *, angle: Any) -> Iterator[CreaseFamily]:
    a, b = z.unbind(-1)
    yield CreaseFamily(reflect_at_line(a, b, angle / 2)[2].unsqueeze(-1), home=0)


def _write(program: Program, i: int, j: int, *, angle: float) -> None:
    program.line(i, j, angle / 2)


def _reflects(*, angle: Any, **_: Any) -> bool:
    return isinstance(angle, torch.Tensor)


def _sample(channels: int, normal: Normal, learned: bool) -> dict[str, Any]:
    return {"angle": math.pi * normal([channels // 2])}


KIND = FoldKind(
    name="householder",
    rule="a pair is reflected at the line of angle t / 2 where it lies clockwise of it",
    source="Singla, Singla and Feizi 2022 (arXiv 2108.04062), eq. 9",
    tie="x_1 sin(t/2) = x_2 cos(t/2)",
    bits="1 a pair; the output where the angle learns",
    reference=_reference,
    creases=_creases,
    emit=emit_pairs(_write),
    width=a_pair,
    paired=True,
    parameters={
        "angle": Parameter(
            REQUIRED,
            "radians: one for all, or a tensor with one a pair",
            _angles,
            learned=True,
            start=lambda channels: torch.full((channels // 2,), math.pi / 2),  # where it is maxmin
        )
    },
    reflects=_reflects,
    sample=_sample,
    variants={
        "householder": {},
        "householder, halves, bias, gain": {"pairing": "halves", "bias": True, "gain": 1.5},
    },
)
