"""Coefficients that change within a sample: frames, actions or tokens at steps of their own.

A *segment* is a part of a sample that lies in one piece in row-major order and in which no coefficient changes. A call whose
coefficients are shaped like the samples, with ones where they stay the same ([B, 1, frames, 1, 1], [B, tokens, 1]), runs as
one whose samples are the segments: the same kernel, in one pass. A segment draws its part of its sample's noise, because its
key (docs/keys.md) says in which block that begins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from pyfold.ops._checks import check_same, check_seeds, check_tensor
from pyfold.ops.noise import randn

#: Normals in a block, which a key counts.
_BLOCK = 4


def is_segmented(value: Any) -> bool:
    """Whether a coefficient or an index may differ within a sample."""
    return isinstance(value, torch.Tensor) and value.dim() > 1


def last_dimension(name: str, value: torch.Tensor, like_name: str, like: torch.Tensor) -> int:
    """The last dimension in which such a value differs; 0: it is one for each sample, or for all."""
    shape, of_like = tuple(value.shape), tuple(like.shape)
    if len(shape) != len(of_like) or any(size not in (1, whole) for size, whole in zip(shape, of_like, strict=True)):
        raise ValueError(
            f"{name} must have shape (), (1,), ({of_like[0]},), or that of {like_name}, {of_like}, with ones in the dimensions "
            f"in which it stays the same, got {shape}"
        )
    return max(d for d in range(len(shape)) if d == 0 or shape[d] != 1)


class Segments:
    """A batch [B, ..., rest] as its segments, [segments, rest].

    Args:
        like: the samples.
        last: the last dimension in which a coefficient changes.
        offset, global_shape: the window of each sample that ``like`` holds, or empty.

    Attributes:
        sizes: of the dimensions that are merged. count: segments in a sample. size: elements in a segment of a whole sample.
        aligned: whether every segment begins with a block of its sample's noise.
    """

    def __init__(self, like: torch.Tensor, last: int, offset: Sequence[int] = (), global_shape: Sequence[int] = ()):
        self.last, self.sizes, self.device = last, like.shape[: last + 1], like.device
        self.count = math.prod(self.sizes[1:])
        self._offset, self._global_shape = offset, global_shape
        self._inner, self._whole = like.shape[last + 1 :], global_shape or like.shape[1:]
        self.size = math.prod(self._whole[last:])
        self.aligned = last == 0 or self.size % _BLOCK == 0

    def flatten(self, tensor: torch.Tensor) -> torch.Tensor:
        """A view where the merged dimensions lie in memory as one, else a copy."""
        return tensor.flatten(0, self.last)

    def output(self, name: str, tensor: Any, like_name: str, like: torch.Tensor) -> Any:
        """Where results are written, which must be a view; what is no tensor stays."""
        if tensor is None or isinstance(tensor, (bool, torch.dtype)):
            return tensor
        check_same(name, check_tensor(name, tensor), like_name, like)
        try:
            return tensor.view(-1, *self._inner) if tensor.numel() else self.flatten(tensor)
        except RuntimeError:
            raise ValueError(
                f"{name} must have dimensions 0 to {self.last} that lie in memory as one, where coefficients change within "
                f"samples, got strides {tensor.stride()}"
            ) from None

    def of_each(self, value: Any) -> Any:
        """A value, one for each sample or segment, as one for each segment; a number, or what is one for all, stays."""
        if not isinstance(value, torch.Tensor):
            return value
        if value.numel() == 1:
            return value.reshape(-1)
        shape = value.shape[: self.last + 1] if value.dim() > 1 else (*value.shape, *[1] * self.last)
        return value.reshape(shape).expand(self.sizes).reshape(-1)

    def _first_elements(self) -> torch.Tensor:
        """Where in its sample each segment begins, int64 [segments of a sample]."""
        if not self._offset:
            return torch.arange(self.count, device=self.device) * self.size
        first = torch.zeros((), dtype=torch.int64, device=self.device)
        for d, size in enumerate(self.sizes[1:]):
            places = torch.arange(size, device=self.device) + self._offset[d]
            first = first.unsqueeze(-1) + places * math.prod(self._whole[d + 1 :])
        return first.reshape(-1)

    def keys(self, seeds: torch.Tensor) -> torch.Tensor:
        """Each segment's key, uint64 [segments, 2]: its sample's seed, and the block that its first element lies in."""
        seeds = check_seeds(seeds, self.sizes[0], self.device)
        words = seeds.view(torch.int64)
        seed, block = (words[:, :1], words[:, 1:]) if seeds.dtype == torch.uint64 else (words[:, None], 0)
        blocks = (self._first_elements() // _BLOCK).expand(self.sizes[0], -1) + block
        return torch.stack([seed.expand_as(blocks), blocks], -1).reshape(-1, 2).view(torch.uint64)

    def noise_operands(self, operands: Sequence[Any]) -> tuple[Any, ...]:
        """seeds, streams, positions, stream, step, offset, global_shape of the segments, as an op takes them."""
        if self.last == 0:
            return tuple(operands)
        seeds, streams, positions, stream, step, _, _ = operands
        keys = None if seeds is None else self.keys(seeds)
        window = (self._offset[self.last :], self._global_shape[self.last :])
        return keys, self.of_each(streams), self.of_each(positions), stream, step, *window

    def noise(self, seeds: torch.Tensor, **options: Any) -> torch.Tensor:
        """The noise of segments that begin within a block, from the blocks that they touch."""
        if tuple(self._whole[self.last :]) != tuple(self._inner):
            raise ValueError(
                f"global_shape must have segments of a multiple of {_BLOCK} elements, or whole ones in the window, where "
                f"coefficients change within samples and noise is drawn, got segments of {self.size}"
            )
        blocks = (self.size + 2 * _BLOCK - 2) // _BLOCK
        drawn = randn(self.keys(seeds), (_BLOCK * blocks,), **options)
        within = (self._first_elements() % _BLOCK).repeat(self.sizes[0]).unsqueeze(1)
        return drawn.gather(1, within + torch.arange(self.size, device=self.device)).reshape(-1, *self._inner)

    def mean(self, losses: torch.Tensor) -> torch.Tensor:
        """Each sample's mean of its segments' losses, added in order, in float64."""
        of_samples = losses.double().reshape(self.sizes[0], self.count)
        return (of_samples.cumsum(1)[:, -1] / self.count).to(losses.dtype)
