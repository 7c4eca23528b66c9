"""Reads the creases of every activation of a network, in the order in which they are met."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from pyfold.folding.creases import CreaseRule, Creases, rule_of
from pyfold.nn import Fold

_MOST_INPUTS = 8192  # inputs in one call of the network, at most
_VALUES = 1 << 24  # values of all layers that are held at a time
_AFFINE = 1e-8  # departure of a value from affine over a piece, relative to its size, that float64 never reaches
_ROUNDING = 1e-12  # and beside that, relative to the largest value of the network
INNER_POINTS = 3  # in which each piece is looked at, beside its middle

#: ``call(model, x)`` -> outputs, for models that take more than x.
Call = Callable[[nn.Module, torch.Tensor], torch.Tensor]


class _Enough(Exception):
    pass


@dataclass(frozen=True)
class Layer:
    """One call of an activation: its name in the model, what it is, and how many values decide its creases.

    Attributes:
        name: of the module, as ``named_modules`` has it.
        kind: the activation.
        units: values that decide its creases.
    """

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
        self._batch: int | None = None
        for name, module, rule in found:
            module.register_forward_pre_hook(self._hook(name, rule))

    def _hook(self, name: str, rule: CreaseRule) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
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
    def _run(self, x: torch.Tensor, until: int | None = None) -> torch.Tensor:
        """The outputs; raises _Enough where so many families of creases have been met."""
        self._creases, self._layers, self._layer_of, self._until = [], [], [], until
        outputs = self.call(self.model, x.to(self.device))
        if not isinstance(outputs, torch.Tensor):
            raise TypeError(f"model must return a tensor, got {type(outputs).__name__}; choose one with call=")
        return outputs.flatten(1) if outputs.dim() > 1 else outputs.unsqueeze(1)

    def batch(self, x: torch.Tensor) -> int:
        """How many inputs like x [1, ...] may be read at a time."""
        if self._batch is None:
            outputs = self._run(x)
            if not self._creases:
                raise ValueError("no activation with known creases ran in the model's forward")
            values = outputs.numel() + sum(c.value.numel() for c in self._creases)
            self._batch = min(max(_VALUES // values, 16), _MOST_INPUTS)
        return self._batch

    def stage(self, x: torch.Tensor, index: int) -> Creases | None:
        """The creases met ``index``-th, without running what comes after; None if there are fewer."""
        try:
            self._run(x, index + 1)
        except _Enough:
            return self._creases[index]
        return None

    def read(self, x: torch.Tensor) -> Reading:
        """All creases and the outputs [B, values] for inputs x [B, ...]."""
        outputs = self._run(x)
        return Reading(tuple(self._layers), tuple(self._creases), tuple(self._layer_of), outputs)


class AffineCheck:
    """Holds a subdivision to its promise: in each piece, every value of every layer and of the output is affine.

    Each piece is looked at in several points inside, at places that are no round fractions of it, since what bends more than
    once may still meet its chord in the middle. A value may depart from affine by the rounding of the largest value of the
    network, and by a little of its own size.
    """

    def __init__(self) -> None:
        self._departure: dict[str, torch.Tensor] = {}
        self._scale: dict[str, torch.Tensor] = {}

    def add(self, vertices: Reading, inside: Reading, between: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """A point in each of some pieces.

        Args:
            vertices: the reading at their vertices.
            inside: the reading at a mean of each piece's vertices, with weights.
            between: takes that mean of values [vertices, n].
        """
        values = {"the output": (vertices.outputs, inside.outputs)}
        for k, (corners, point) in enumerate(zip(vertices.creases, inside.creases, strict=True)):
            name = vertices.layers[vertices.layer_of[k]].name or "the activation"
            values[f"the input of {name} ({k})"] = corners.value, point.value
        for name, (at_corners, at_point) in values.items():
            departure = (between(at_corners) - at_point).abs().amax(0)
            scale = at_corners.abs().amax(0)
            if departure.isnan().any():
                raise ValueError(f"the model is not a number at {name} on this segment or slice")
            self._departure[name] = torch.maximum(departure, self._departure.get(name, departure))
            self._scale[name] = torch.maximum(scale, self._scale.get(name, scale))

    def finish(self) -> None:
        """Raises ValueError if a layer bends inside a piece, because of an activation that is smooth or not known."""
        rounding = _ROUNDING * max((scale.max().item() for scale in self._scale.values()), default=0.0)
        for name in sorted(self._departure, key="the output".__eq__):  # layers in their order, the output last
            departure, scale = self._departure[name], self._scale[name]
            worst = int((departure - _AFFINE * scale).argmax())
            if departure[worst] > _AFFINE * scale[worst] + rounding:
                raise ValueError(
                    f"the model is not piecewise linear between the creases of its known activations: {name} departs by "
                    f"{departure[worst]:.2g} (of {scale[worst]:.2g}) from being affine; measure it by samples, or make its "
                    f"activation known"
                )


def inner_weights(vertices: int, round: int) -> torch.Tensor:
    """Positive float64 weights [vertices] with no order among them, the same in each run."""
    generator = torch.Generator().manual_seed(round)
    return 0.1 + torch.rand(vertices, dtype=torch.float64, generator=generator)
