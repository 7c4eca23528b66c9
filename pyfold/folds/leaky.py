"""ReLU with any slope from -1 to 1 below zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from pyfold.folds.kind import CreaseFamily, FoldKind, Normal, Parameter, emit_each, number, one_value, tensor_or
from pyfold.folds.program import Program


def _reference(z: torch.Tensor, *, slope: Any) -> torch.Tensor:
    slope = slope.to(z).unsqueeze(-1) if isinstance(slope, torch.Tensor) else slope
    return torch.where(z < 0, slope * z, z)


def _creases(z: torch.Tensor, *, slope: Any) -> Iterator[CreaseFamily]:
    yield CreaseFamily(z)


def _write(program: Program, i: int, *, slope: float) -> None:
    program.leaky(i, slope)


def _isometry(*, slope: Any) -> bool:
    return not isinstance(slope, torch.Tensor) and abs(slope) == 1


def _unfolds(*, slope: Any) -> bool:
    return not isinstance(slope, torch.Tensor) and slope != 0


def _sample(channels: int, normal: Normal, learned: bool) -> dict[str, Any]:
    return {"slope": normal([channels]).tanh()} if learned else {}


def _eager(*, slope: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: torch.nn.functional.leaky_relu(x, slope)


KIND = FoldKind(
    name="leaky",
    rule="max(x, 0) + a min(x, 0): 1 is the identity, 0 ReLU, -1 abs",
    source="Maas, Hannun and Ng 2013, with a from -1",
    tie="x = 0",
    bits="1 a value; the input where the slope learns",
    reference=_reference,
    creases=_creases,
    emit=emit_each(_write),
    width=one_value,
    parameters={
        "slope": Parameter(0.2, "in [-1, 1]; learned: one, or one a channel", tensor_or(number(-1, 1), "channel"), learned=True)
    },
    preserves_norm=_isometry,
    preserves_volume=_isometry,
    unfolds=_unfolds,
    sample=_sample,
    variants={
        "leaky": {"slope": -0.6},
        "leaky, bias, gain, clamp": {"bias": True, "gain": 1.25, "clamp": 0.9},
    },
    composed_variants={"leaky, learned": {"learned": True}},
    eager=_eager,
)
