"""The line bent upwards into a quarter of the plane."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pyfold.folds.kind import CreaseFamily, FoldKind, one_value
from pyfold.folds.program import Program


def _reference(z: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.where(z < 0, 0.0, z), torch.where(z < 0, -z, 0.0)], -1)


def _creases(z: torch.Tensor) -> Iterator[CreaseFamily]:
    yield CreaseFamily(z)


def _emit(program: Program, values: Sequence[int]) -> None:
    program.crelu()


def _loses_volume(**_: Any) -> bool:
    return False


KIND = FoldKind(
    name="crelu",
    rule="(max(x, 0), max(-x, 0)): twice the channels, the second half for the negative parts",
    source="Shang et al. 2016 (arXiv 1603.05201)",
    tie="x = 0",
    bits="1 a value",
    reference=_reference,
    creases=_creases,
    emit=_emit,
    width=one_value,
    preserves_volume=_loses_volume,
    widens=True,
    variants={"crelu, bias": {"bias": True}},
)
