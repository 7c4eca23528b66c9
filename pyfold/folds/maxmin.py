"""The plane folded at its diagonal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from pyfold.folds.kind import CreaseFamily, FoldKind, a_pair, emit_pairs
from pyfold.folds.program import Program


def _reference(z: torch.Tensor) -> torch.Tensor:
    a, b = z.unbind(-1)
    return torch.stack([torch.where(a > b, b, a), torch.where(a > b, a, b)], -1)


def _creases(z: torch.Tensor) -> Iterator[CreaseFamily]:
    yield CreaseFamily(z[..., :1] - z[..., 1:], home=0)


def _write(program: Program, i: int, j: int) -> None:
    program.swap(i, j)


def _reflects(**_: Any) -> bool:
    return True


def _eager() -> Callable[[torch.Tensor], torch.Tensor]:
    def maxmin(x: torch.Tensor) -> torch.Tensor:
        a, b = x[:, 0::2], x[:, 1::2]
        return torch.stack([torch.minimum(a, b), torch.maximum(a, b)], 2).flatten(1, 2)

    return maxmin


KIND = FoldKind(
    name="maxmin",
    rule="(min, max) of a pair",
    source="Anil, Lucas and Grosse 2019 (arXiv 1811.05381), GroupSort2",
    tie="x_1 = x_2",
    bits="1 a pair",
    reference=_reference,
    creases=_creases,
    emit=emit_pairs(_write),
    width=a_pair,
    paired=True,
    reflects=_reflects,
    variants={
        "maxmin": {},
        "maxmin, halves, last dim": {"pairing": "halves", "dim": -1},
        "maxmin, bias, gain, clamp": {"bias": True, "gain": 0.75, "clamp": 0.8},
    },
    eager=_eager,
)
