"""The line, its part below a point laid on the part above it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from pyfold.folds.kind import CreaseFamily, FoldKind, Parameter, emit_each, fold_below, number, one_value
from pyfold.folds.program import Program


def _creases(z: torch.Tensor, *, offset: float) -> Iterator[CreaseFamily]:
    yield CreaseFamily(z - offset)


def _write(program: Program, i: int, *, offset: float) -> None:
    program.mirror(i, offset)


def _eager(*, offset: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return torch.abs if offset == 0 else lambda x: offset + (x - offset).abs()


def _reflects(*, offset: float, **_: Any) -> bool:
    return offset == 0


KIND = FoldKind(
    name="abs",
    rule="c + |x - c|",
    source="Montufar et al. 2014 (arXiv 1402.1869)",
    tie="x = c",
    bits="1 a value",
    reference=lambda z, offset: fold_below(z, offset),
    creases=_creases,
    emit=emit_each(_write),
    width=one_value,
    parameters={"offset": Parameter(0.0, "finite", number())},
    reflects=_reflects,
    variants={
        "abs": {},
        "abs, bias, gain, clamp": {"bias": True, "gain": 1.25, "clamp": 0.9},
        "abs, offset": {"offset": -0.4},
    },
    eager=_eager,
)
