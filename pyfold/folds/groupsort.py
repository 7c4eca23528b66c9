"""Groups of channels, sorted: space folded into one chamber of the symmetric group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from pyfold.folds.kind import SIZE, CreaseFamily, FoldKind, group_of, pairs_of, sorted_units
from pyfold.folds.program import Program


def _creases(z: torch.Tensor, *, size: int | None) -> Iterator[CreaseFamily]:
    # The mirrors of A_{k-1}: one for each pair, so that the distance of two patterns is Kendall's.
    i, j = pairs_of(z.shape[-1], z.device)
    yield CreaseFamily(z[..., i] - z[..., j], home=0)


def _emit(program: Program, values: Sequence[int], *, size: int | None) -> None:
    program.sort(values)


def _eager(*, size: int | None) -> Callable[[torch.Tensor], torch.Tensor]:
    def groupsort(x: torch.Tensor) -> torch.Tensor:
        width = size or x.shape[1]
        return x.reshape(len(x), x.shape[1] // width, width, *x.shape[2:]).sort(2).values.flatten(1, 2)

    return groupsort


KIND = FoldKind(
    name="groupsort",
    rule="each group of channels, ascending",
    source="Anil, Lucas and Grosse 2019 (arXiv 1811.05381)",
    tie="x_i = x_j",
    bits="1 a swap of Batcher's network: 1, 3, 5, 9, 12, 16, 19 a group of 2 to 8",
    reference=lambda z, size: sorted_units(z),
    creases=_creases,
    emit=_emit,
    width=group_of,
    parameters={"size": SIZE},
    variants={
        "groupsort": {},
        "groupsort of 2, bias, gain, clamp": {"size": 2, "bias": True, "gain": 0.75, "clamp": 0.8},
    },
    eager=_eager,
)
