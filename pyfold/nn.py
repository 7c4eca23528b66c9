"""Folds as modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from torch.compiler import is_compiling

from pyfold.folds import FOLDS, REQUIRED
from pyfold.ops._checks import check_choice
from pyfold.ops.fold import PreparedFold, fold

torch.fx.wrap("fold")  # a traced module calls it as a whole


def _check_names(kind: str, learn: Any, parameters: dict[str, Any]) -> None:
    declared = FOLDS[kind].parameters
    if isinstance(learn, str) or not isinstance(learn, Sequence) or not all(isinstance(name, str) for name in learn):
        raise TypeError(f"learn must be a sequence of parameters' names, got {learn!r}")
    for name in (*parameters, *learn):
        if name not in declared:
            raise ValueError(f"{name} is not a parameter of {kind}, whose parameters are: {', '.join(declared) or 'none'}")
    for name in learn:
        if not declared[name].learned:
            raise ValueError(f"learn may not name {name}: it has no gradient in {kind}")


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
    What is set on a module counts from the next call on.

    Example:
        >>> Fold("maxmin")(torch.tensor([[1.0, 2.0, 5.0, 3.0]])).tolist()
        [[1.0, 2.0, 3.0, 5.0]]
    """

    # The fold with its options, until one is set.
    _prepared: PreparedFold | None = None

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
        if not isinstance(bias, bool):
            raise TypeError(f"bias must be a bool, got {type(bias).__name__}")
        self.kind, self.gain, self.clamp, self.dim, self.pairing = kind, gain, clamp, dim, pairing
        declared = FOLDS[kind].parameters
        _check_names(kind, learn, parameters)
        if channels is not None and (isinstance(channels, bool) or not isinstance(channels, int) or channels < 0):
            raise TypeError(f"channels must be an int from 0, or None, got {channels!r}")
        starts = {name: p.start for name, p in declared.items() if p.start is not None and name not in parameters}
        if channels is None and (bias or starts):
            raise ValueError(f"channels is needed for {kind} with bias={bias}, got None")
        if channels is not None and FOLDS[kind].paired and channels % 2:
            raise ValueError(f"channels must be even for {kind}, got {channels}")
        self.bias = None
        if channels is not None:
            for name, start in starts.items():
                parameters[name] = torch.nn.Parameter(start(channels))
            self.bias = torch.nn.Parameter(torch.zeros(channels)) if bias else None
        for name, parameter in declared.items():
            value = parameters.get(name, parameter.default)
            if value is REQUIRED:
                raise ValueError(f"{name} is needed by {kind}: {parameter.allowed}")
            if name in learn and not isinstance(value, torch.nn.Parameter):
                value = torch.nn.Parameter(torch.as_tensor(value, dtype=torch.get_default_dtype()).clone())
            if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)
        self._names = tuple(declared)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name != "training":
            self._forget()

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None}

    def _forget(self) -> None:
        self.__dict__["_prepared"] = None

    def _parameters_by_name(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._names}

    def _prepare(self, x: torch.Tensor) -> PreparedFold:
        parameters = self._parameters_by_name()
        made = PreparedFold(x, self.kind, self.gain, self.clamp, self.dim, self.pairing, parameters)
        self.__dict__["_prepared"] = made
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if type(x) is torch.Tensor and not is_compiling():
            prepared = self._prepared or self._prepare(x)
            tensors = [getattr(self, name) for name in prepared.tensors] if prepared.tensors else ()
            done = prepared.call(x, self.bias, *tensors)
            if done is None and not prepared.serves(x, *tensors):
                # The options mean something else for x.
                done = self._prepare(x).call(x, self.bias, *tensors)
            if done is not None:
                return done
        options: dict[str, Any] = {"gain": self.gain, "clamp": self.clamp, "dim": self.dim, "pairing": self.pairing}
        return fold(x, self.kind, bias=self.bias, **options, **self._parameters_by_name())

    def extra_repr(self) -> str:
        values = self._parameters_by_name()
        numbers = "".join(f", {name}={value}" for name, value in values.items() if not isinstance(value, torch.Tensor))
        return f"{self.kind!r}{numbers}, gain={self.gain:g}, clamp={self.clamp}, dim={self.dim}, pairing={self.pairing!r}"
