"""The absolute values of groups of channels, sorted: space folded into one chamber of the signed permutations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from pyfold.folds.kind import SIZE, CreaseFamily, FoldKind, fold_below, group_of, pairs_of, sorted_units
from pyfold.folds.program import Program


def _creases(z: torch.Tensor, *, size: int | None) -> Iterator[CreaseFamily]:
    # The mirrors of B_k: x_i = 0, x_i = x_j, x_i = -x_j; at home 0 < x_1 < ... < x_k.
    width = z.shape[-1]
    i, j = pairs_of(width, z.device)
    home = torch.ones(width + 2 * len(i), dtype=torch.int64, device=z.device)
    home[width : width + len(i)] = 0
    yield CreaseFamily(torch.cat([z, z[..., i] - z[..., j], z[..., i] + z[..., j]], -1), home=home)


def _emit(program: Program, values: Sequence[int], *, size: int | None) -> None:
    for i in values:
        program.mirror(i, 0.0)
    program.sort(values)


KIND = FoldKind(
    name="sortabs",
    rule="the absolute values of each group of channels, ascending",
    source="the reflection group B_k",
    tie="x_i = 0, x_i = x_j, x_i = -x_j",
    bits="1 a value and those of groupsort: 3 a pair, 9 a group of 4",
    reference=lambda z, size: sorted_units(fold_below(z)),
    creases=_creases,
    emit=_emit,
    width=group_of,
    parameters={"size": SIZE},
    variants={"sortabs, last dim": {"size": 2, "dim": -1}},
)
