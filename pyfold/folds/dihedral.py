"""The plane folded into a wedge."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from pyfold.folds.kind import (
    CreaseFamily,
    FoldKind,
    Normal,
    Parameter,
    a_pair,
    count,
    emit_pairs,
    number,
    reflect_at_line,
    tensor_or,
)
from pyfold.folds.program import Program


def directions(m: int, angle: Any) -> list[Any]:
    """The mirrors that fold the plane into the wedge between angle and angle + pi / m: each halves the wedges left."""
    found, wedges = [angle], m
    while wedges > 1:
        wedges = (wedges + 1) // 2
        found.append(angle + math.pi * (1 + wedges / m))
    return found


def _reference(z: torch.Tensor, *, m: int, angle: Any) -> torch.Tensor:
    a, b = z.unbind(-1)
    for direction in directions(m, angle):
        a, b, _ = reflect_at_line(a, b, direction)
    return torch.stack([a, b], -1)


def _creases(z: torch.Tensor, *, m: int, angle: Any) -> Iterator[CreaseFamily]:
    # The mirrors of I_2(m); at home the pair lies counterclockwise of the first and clockwise of the others.
    a, b = z.unbind(-1)
    mirrors = [reflect_at_line(a, b, angle + math.pi * k / m)[2] for k in range(m)]
    home = torch.ones(m, dtype=torch.int64, device=z.device)
    home[0] = 0
    yield CreaseFamily(torch.stack(mirrors, -1), home=home)


def _write(program: Program, i: int, j: int, *, m: int, angle: float) -> None:
    for direction in directions(m, angle):
        program.line(i, j, direction)


def _sample(channels: int, normal: Normal, learned: bool) -> dict[str, Any]:
    return {"angle": math.pi * normal([channels // 2])} if learned else {}


KIND = FoldKind(
    name="dihedral",
    rule="a pair is folded into the wedge between the angles t and t + pi / m",
    source="the reflection group I_2(m), as in Knighty's kaleidoscopic fractals, 2010",
    tie="on each of the m mirrors",
    bits="1 + ceil(log2 m) a pair; the input where the angle learns",
    reference=_reference,
    creases=_creases,
    emit=emit_pairs(_write),
    width=a_pair,
    paired=True,
    parameters={
        "m": Parameter(3, "an int from 1", count),
        "angle": Parameter(0.0, "radians; learned: one, or one a pair", tensor_or(number(), "pair"), learned=True),
    },
    sample=_sample,
    variants={
        "dihedral": {"m": 5, "angle": 0.7},
        "dihedral, halves, bias": {"pairing": "halves", "bias": True},
    },
    composed_variants={"dihedral, learned": {"m": 4, "learned": True}},
)
