"""Reads the creases of every activation of a network, in the order in which they are met."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from pyfold.folding.creases import Creases, rule_of
from pyfold.nn import Fold

_ROWS = 8192  # inputs in one call of the network
_AFFINE = 1e-8  # relative departure of a layer from its mean over a piece that float64 never reaches

#: ``call(model, x)`` -> outputs, for models that take more than x.
Call = Callable[[nn.Module, torch.Tensor], torch.Tensor]


class _Enough(Exception):
    pass


@dataclass(frozen=True)
class Layer:
    """One call of an activation: its name in the model, what it is, and how many values decide its creases."""

    name: str
    kind: str
    units: int


@dataclass(frozen=True)
class Reading:
    """Creases of all layers for a batch of inputs; ``layer_of[k]`` says whose ``creases[k]`` are."""

    layers: tuple[Layer, ...]
    creases: tuple[Creases, ...]
    layer_of: tuple[int, ...]
    outputs: torch.Tensor

    @property
    def patterns(self) -> torch.Tensor:
        """int64 [B, units of all layers], on the CPU."""
        return torch.cat([c.levels() for c in self.creases], 1).cpu()

    @property
    def pattern_layers(self) -> torch.Tensor:
        """int64 [units]: the layer that each column of the patterns belongs to."""
        counts = torch.tensor([c.value.shape[1] for c in self.creases])
        return torch.repeat_interleave(torch.tensor(self.layer_of), counts)


def _join(parts: list[Creases]) -> Creases:
    first = parts[0]
    value = torch.cat([p.value for p in parts])
    return Creases(value, first.offsets, first.period, first.home, first.smooth)


class Probe:
    """A float64 copy of a model in evaluation mode, whose activations report their creases.

    Args:
        model: any module; activations are known by ``ACTIVATION_CREASES``, wherever they are and however often they run.
        call: how to call the model if not by ``model(x)``.
    """

    def __init__(self, model: nn.Module, call: Call | None = None):
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self.model = copy.deepcopy(model).double().eval()
        self.call = call or (lambda model, x: model(x))
        self.device = next((p.device for p in [*self.model.parameters(), *self.model.buffers()]), torch.device("cpu"))
        found = [(name, m, rule) for name, m in self.model.named_modules() if (rule := rule_of(m)) is not None]
        if not found:
            raise ValueError("model has no activation with known creases; ACTIVATION_CREASES says which modules have them")
        self._creases: list[Creases] = []
        self._layers: list[Layer] = []
        self._layer_of: list[int] = []
        self._until: int | None = None
        for name, module, rule in found:
            module.register_forward_pre_hook(self._hook(name, rule))

    def _hook(self, name: str, rule: Callable) -> Callable:
        def read(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            units = 0
            for creases in rule(module, inputs[0].clone()):  # an in-place activation is about to overwrite it
                units += creases.value.shape[1]
                self._creases.append(creases)
                self._layer_of.append(len(self._layers))
                if self._until == len(self._creases):
                    raise _Enough
            kind = module.kind if isinstance(module, Fold) else type(module).__name__
            self._layers.append(Layer(name, kind, units))

        return read

    @torch.no_grad()
    def _run(self, x: torch.Tensor, until: int | None) -> torch.Tensor | None:
        self._creases, self._layers, self._layer_of, self._until = [], [], [], until
        try:
            outputs = self.call(self.model, x.to(self.device))
        except _Enough:
            return None
        if not isinstance(outputs, torch.Tensor):
            raise TypeError(f"model must return a tensor, got {type(outputs).__name__}; choose one with call=")
        return outputs.flatten(1) if outputs.dim() > 1 else outputs.unsqueeze(1)

    def stage(self, x: torch.Tensor, index: int) -> Creases | None:
        """The creases met ``index``-th, without running what comes after; None if there are fewer."""
        parts = []
        for rows in x.split(_ROWS):
            if self._run(rows, index + 1) is not None:
                return None
            parts.append(self._creases[index])
        return _join(parts)

    def read(self, x: torch.Tensor) -> Reading:
        """All creases and the outputs [B, values] for inputs x [B, ...]."""
        runs = []
        for rows in x.split(_ROWS):
            outputs = self._run(rows, None)
            if not self._creases:
                raise ValueError("no activation with known creases ran in the model's forward")
            runs.append((self._creases, outputs))
        creases = tuple(_join([run[0][k] for run in runs]) for k in range(len(runs[0][0])))
        return Reading(tuple(self._layers), creases, tuple(self._layer_of), torch.cat([run[1] for run in runs]))


def check_affine(at_vertices: Reading, inside: Reading, mean: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Holds a subdivision to its promise: in each piece, every layer and the output are affine.

    Args:
        at_vertices: the reading at the vertices of all pieces.
        inside: the reading at the mean of each piece's vertices.
        mean: averages values [vertices, n] over each piece.

    Raises:
        ValueError: a layer bends inside a piece, because of an activation that is smooth or not known.
    """
    names = [at_vertices.layers[k].name for k in at_vertices.layer_of]
    pairs = [(c.value, d.value) for c, d in zip(at_vertices.creases, inside.creases, strict=True)]
    for name, (corners, centre) in zip(
        [f"the input of {n or 'the activation'}" for n in names] + ["the output"],
        [*pairs, (at_vertices.outputs, inside.outputs)],
        strict=True,
    ):
        departure = (mean(corners) - centre).abs().max().item()
        scale = corners.abs().max().item()
        if not departure <= _AFFINE * max(scale, 1e-300):
            raise ValueError(
                f"the model is not piecewise linear between the creases of its known activations: {name} departs by "
                f"{departure:.2g} (of {scale:.2g}) from being affine; measure it by samples, or make its activation known"
            )
