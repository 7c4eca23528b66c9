"""Folds as modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx

from pyfold.folds import FOLDS, REQUIRED
from pyfold.ops import fold
from pyfold.ops._checks import check_choice

torch.fx.wrap("fold")  # a traced module calls it as a whole


class Fold(torch.nn.Module):
    """:func:`pyfold.fold` with its parameters.

    Args:
        kind: a name of ``pyfold.ops.FOLDS``.
        channels: size of the channel dimension; needed for ``bias=True`` and for householder's own angles.
        bias: learn one bias for each channel, starting at 0.
        gain, clamp, dim, pairing: as in :func:`pyfold.fold`.
        learn: parameters that learn, by name; those that can: slope, angle, normal, offset (of hyperplane).
        parameters: those of the kind. A ``torch.nn.Parameter`` learns, another tensor is a buffer, a number is a constant.

    The angle of householder learns unless it is given; it starts at pi/2 for each pair, where householder is maxmin.
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
        learn: Sequence[str] = (),
        **parameters: Any,
    ):
        super().__init__()
        check_choice("kind", kind, FOLDS)
        self.kind, self.gain, self.clamp, self.dim, self.pairing = kind, gain, clamp, dim, pairing
        known = FOLDS[kind].parameters
        if isinstance(learn, str) or not isinstance(learn, Sequence) or not all(isinstance(name, str) for name in learn):
            raise TypeError(f"learn must be a sequence of parameters' names, got {learn!r}")
        if channels is not None and (isinstance(channels, bool) or not isinstance(channels, int) or channels < 0):
            raise TypeError(f"channels must be an int from 0, or None, got {channels!r}")
        for name in (*parameters, *learn):
            if name not in known:
                raise ValueError(f"{name} is not a parameter of {kind}, whose parameters are: {', '.join(known) or 'none'}")
        for name in learn:
            if not known[name].learned:
                raise ValueError(f"learn may not name {name}: it has no gradient in {kind}")
        starts = {name: p.start for name, p in known.items() if p.start is not None and name not in parameters}
        if channels is None and (bias or starts):
            raise ValueError(f"channels is needed for {kind} with bias={bias}, got None")
        if channels is not None and FOLDS[kind].paired and channels % 2:
            raise ValueError(f"channels must be even for {kind}, got {channels}")
        for name, start in starts.items():
            parameters[name] = torch.nn.Parameter(start(channels))
        self.bias = torch.nn.Parameter(torch.zeros(channels)) if bias else None
        for name, parameter in known.items():
            value = parameters.get(name, parameter.default)
            if value is REQUIRED:
                raise ValueError(f"{name} is needed by {kind}: {parameter.allowed}")
            if name in learn and not isinstance(value, torch.nn.Parameter):
                value = torch.nn.Parameter(torch.as_tensor(value, dtype=torch.get_default_dtype()).clone())
            if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)
        self._names = tuple(known)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parameters = {name: getattr(self, name) for name in self._names}
        return fold(
            x, self.kind, bias=self.bias, gain=self.gain, clamp=self.clamp, dim=self.dim, pairing=self.pairing, **parameters
        )

    def extra_repr(self) -> str:
        values = {name: getattr(self, name) for name in self._names}
        numbers = "".join(f", {name}={value}" for name, value in values.items() if not isinstance(value, torch.Tensor))
        return f"{self.kind!r}{numbers}, gain={self.gain:g}, clamp={self.clamp}, dim={self.dim}, pairing={self.pairing!r}"
