"""Folds as modules."""

from __future__ import annotations

import math

import torch

from pyfold.ops import FOLDS, fold


class Fold(torch.nn.Module):
    """:func:`pyfold.fold` with its parameters.

    Args:
        kind: a name of ``pyfold.ops.FOLDS``.
        channels: size of the channel dimension; needed for ``bias=True`` and for kinds with an angle.
        bias: learn one bias for each channel, starting at 0.
        gain, clamp, dim, pairing: as in :func:`pyfold.fold`.

    A learned ``angle`` starts at pi/2, where householder is maxmin.
    """

    def __init__(
        self,
        kind: str,
        channels: int | None = None,
        *,
        bias: bool = False,
        gain: float = 1.0,
        clamp: float | None = None,
        dim: int = 1,
        pairing: str = "adjacent",
    ):
        super().__init__()
        if kind not in FOLDS:
            raise ValueError(f"kind must be one of {', '.join(map(repr, FOLDS))}, got {kind!r}")
        if channels is None and (bias or FOLDS[kind].has_angle):
            raise ValueError(f"channels is needed for {kind} with bias={bias}, got None")
        if channels is not None and channels % FOLDS[kind].components:
            raise ValueError(f"channels must be even for {kind}, got {channels}")
        self.kind, self.gain, self.clamp, self.dim, self.pairing = kind, gain, clamp, dim, pairing
        self.bias = torch.nn.Parameter(torch.zeros(channels)) if bias else None
        has_angle = FOLDS[kind].has_angle
        self.angle = torch.nn.Parameter(torch.full((channels // 2,), math.pi / 2)) if has_angle else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return fold(
            x, self.kind, bias=self.bias, gain=self.gain, clamp=self.clamp, dim=self.dim, angle=self.angle,
            pairing=self.pairing,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{self.kind!r}, gain={self.gain:g}, clamp={self.clamp}, dim={self.dim}, pairing={self.pairing!r}"
