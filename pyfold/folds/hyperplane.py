"""Space folded at hyperplanes, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.compiler import is_compiling

from pyfold._elementary import sqrt
from pyfold.folds.kind import REQUIRED, CreaseFamily, FoldKind, Normal, Parameter, all_channels
from pyfold.folds.program import Program, unit_planes
from pyfold.ops._checks import check_finite, check_tensor


def _normals(name: str, value: Any, channels: int, units: int) -> torch.Tensor:
    normals = check_tensor(name, value)
    if normals.dim() not in (1, 2) or normals.shape[-1] != channels or not normals.numel():
        raise ValueError(f"{name} must have shape ({channels},) or (K, {channels}), got {tuple(normals.shape)}")
    return normals


def _offsets(name: str, value: Any, channels: int, units: int) -> Any:
    if not isinstance(value, torch.Tensor):
        return check_finite(name, value)
    check_tensor(name, value)
    if value.dim() > 1:
        raise ValueError(f"{name} must have shape () or (K,), got {tuple(value.shape)}")
    return value


def _check(parameters: Mapping[str, Any]) -> None:
    normal, offset = parameters["normal"], parameters["offset"]
    if not isinstance(offset, torch.Tensor):
        return
    count = 1 if normal.dim() == 1 else len(normal)
    if offset.shape not in ((), (count,)):
        raise ValueError(f"offset must have shape () or ({count},), one for each hyperplane, got {tuple(offset.shape)}")


def _unit_planes(normal: torch.Tensor, offset: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit normals [K, C] and offsets [K], float64: one rule for the kernels and for torch's operations.

    The squares are summed by halves, elementwise, so that the bits are the same on every device and instruction set, and in
    ``program.unit_planes``, which is this function where no gradient may flow.
    """
    normal = torch.atleast_2d(normal).double()  # type: ignore[no-untyped-call]
    squares = normal * normal
    while squares.shape[1] > 1:
        half = (squares.shape[1] + 1) // 2
        tail = squares[:, half:]
        squares = squares[:, :half] + torch.nn.functional.pad(tail, (0, half - tail.shape[1]))
    offset = torch.as_tensor(offset, dtype=torch.float64, device=normal.device)
    return normal / sqrt(squares), offset.expand(len(normal))


def _hyperplanes(normal: torch.Tensor, offset: Any, like: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Unit normals [C] and offsets [], in the dtype of like."""
    normals, offsets = _unit_planes(normal, offset)
    return zip(normals.to(like.dtype), offsets.to(like.dtype), strict=True)


def _pack(dtype: torch.dtype, *, normal: torch.Tensor, offset: Any) -> torch.Tensor:
    packed: torch.Tensor | None = None if is_compiling() else unit_planes(normal, offset, dtype)
    if packed is None:
        normals, offsets = _unit_planes(normal, offset)
        packed = torch.cat([normals, offsets.unsqueeze(1)], 1).reshape(-1).detach().to(dtype)
    return packed


def _reference(z: torch.Tensor, *, normal: torch.Tensor, offset: Any) -> torch.Tensor:
    for n, b in _hyperplanes(normal, offset, z):
        side = (z * n).sum(-1, keepdim=True) - b
        z = torch.where(side > 0, z - 2 * side * n, z)
    return z


def _creases(z: torch.Tensor, *, normal: torch.Tensor, offset: Any) -> Iterator[CreaseFamily]:
    for n, b in _hyperplanes(normal, offset, z):
        side = (z * n).sum(-1, keepdim=True) - b
        yield CreaseFamily(side, home=0)
        z = torch.where(side > 0, z - 2 * side * n, z)


def _emit(program: Program, values: Sequence[int], *, normal: torch.Tensor, offset: Any) -> None:
    for _ in range(1 if normal.dim() == 1 else len(normal)):
        program.plane()


def _sample(channels: int, normal: Normal, learned: bool) -> dict[str, Any] | None:
    return {"normal": normal([3, channels]), "offset": 0.3 * normal([3])} if channels else None


KIND = FoldKind(
    name="hyperplane",
    rule="x - 2 max(0, <n, x> - b) n with n = normal / |normal|, for K hyperplanes one after another",
    source="after the folds of Keup and Helias 2022 (arXiv 2203.11355)",
    tie="<n, x> = b",
    bits="K a vector of channels; the input where normal or offset learns",
    reference=_reference,
    creases=_creases,
    emit=_emit,
    width=all_channels,
    parameters={
        "normal": Parameter(REQUIRED, "a tensor (C,) or (K, C), not zero", _normals, learned=True),
        "offset": Parameter(0.0, "a number, or a tensor () or (K,)", _offsets, learned=True),
    },
    check=_check,
    pack=_pack,
    sample=_sample,
    variants={"hyperplane": {}},
)
