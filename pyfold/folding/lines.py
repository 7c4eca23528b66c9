"""Folding along a line: the pieces of a network on a segment, and the space-folding measure chi."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pyfold.folding.probe import Call, Layer, Probe, Reading, check_affine

_MERGE = 1e-12  # breakpoints nearer than this, of a segment of length 1, are one


def space_folding(patterns: torch.Tensor) -> float:
    """The space-folding measure of patterns [n, units] met along a path (Lewandowski et al. 2025, arXiv 2502.09954).

    ``chi = 1 - max_i d(pi_1, pi_i) / sum_i d(pi_i, pi_{i+1})``, d the number of creases between two patterns (the Hamming
    distance for bits). It is 0 where the distance from the start never falls back, also if no crease is crossed, and
    nears 1 the more often the path comes back to patterns it has left. It may change when the path is walked backwards.
    """
    if patterns.dim() != 2 or len(patterns) == 0:
        raise ValueError(f"patterns must have shape [n, units] with n > 0, got {tuple(patterns.shape)}")
    patterns = patterns.long()
    walked = (patterns[1:] - patterns[:-1]).abs().sum().item()
    return 1 - (patterns - patterns[0]).abs().sum(1).max().item() / walked if walked else 0.0


@dataclass(frozen=True)
class Line:
    """What a network does to a segment.

    Attributes:
        t: float64 [n + 1], from 0 to 1: where its pieces begin and end; for a sampled line [n], where it was looked at.
        patterns: int64 [n, units]: the levels of all activations, for each piece or sample.
        outputs: float64 [len(t), values].
        layers: the activations in the order in which they ran.
        pattern_layers: int64 [units], the layer of each column of the patterns.
        exact: whether every crease of the segment was found.
    """

    t: torch.Tensor
    patterns: torch.Tensor
    outputs: torch.Tensor
    layers: tuple[Layer, ...]
    pattern_layers: torch.Tensor
    exact: bool

    @property
    def regions(self) -> int:
        """Activation regions that the segment meets: runs of one pattern."""
        return 1 + int((self.patterns[1:] != self.patterns[:-1]).any(1).sum())

    @property
    def pieces(self) -> int:
        """Linear pieces of the output; at most ``regions``, fewer where a crease does not reach the output."""
        if not self.exact:
            raise ValueError("the linear pieces of a sampled line are not known; leave samples away")
        slopes = self.outputs.diff(dim=0) / self.t.diff().unsqueeze(1)
        # A slope is known up to the rounding of the outputs over the length of its piece.
        rounding = 1e-12 * self.outputs.abs().max() / self.t.diff()
        tolerance = 1e-9 * slopes.abs().max() + rounding[1:] + rounding[:-1]
        return 1 + int((slopes.diff(dim=0).abs().amax(1) > tolerance).sum())

    @property
    def crossed(self) -> torch.Tensor:
        """int64 [layers]: creases crossed in each layer."""
        steps = (self.patterns[1:] - self.patterns[:-1]).abs().sum(0)
        return torch.zeros(len(self.layers), dtype=torch.int64).index_add_(0, self.pattern_layers, steps)

    @property
    def chi(self) -> float:
        """The space-folding measure of the whole network."""
        return space_folding(self.patterns)

    def chi_up_to(self, layer: int) -> float:
        """The space-folding measure of the first layers, ``layer`` of them."""
        if not 0 < layer <= len(self.layers):
            raise ValueError(f"layer must be in [1, {len(self.layers)}], got {layer}")
        return space_folding(self.patterns[:, self.pattern_layers < layer])


def _segment(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    t = t.reshape(-1, *[1] * a.dim())
    return torch.lerp(a.unsqueeze(0), b.unsqueeze(0), t)


def _check_ends(a: torch.Tensor, b: torch.Tensor) -> None:
    for name, value in (("a", a), ("b", b)):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {getattr(value, 'dtype', type(value).__name__)}")
    if a.shape != b.shape:
        raise ValueError(f"a and b must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")


def _breakpoints(probe: Probe, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """All t at which some activation crosses a crease, layer after layer (Sotoudeh and Thakur 2019, section 3).

    Between the breakpoints of the layers before it, a layer's input is linear in t, so its values at the breakpoints say
    where it crosses.
    """
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    index = 0
    while (creases := probe.stage(_segment(a, b, t), index)) is not None:
        found = [t]
        for offset in creases.reached():
            side = creases.side(offset).cpu()
            piece, unit = (side[:-1] * side[1:] < 0).nonzero(as_tuple=True)
            before, after = side[piece, unit], side[piece + 1, unit]
            found.append(t[piece] + before / (before - after) * (t[piece + 1] - t[piece]))
        t = torch.cat(found).unique()
        t = t[torch.cat([torch.tensor([True]), t.diff() > _MERGE])]
        t[-1] = 1.0
        index += 1
    return t


def _line(t: torch.Tensor, at: Reading, outputs: torch.Tensor, exact: bool) -> Line:
    return Line(t, at.patterns, outputs.cpu(), at.layers, at.pattern_layers, exact)


def _trace(probe: Probe, a: torch.Tensor, b: torch.Tensor, samples: int | None) -> Line:
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    if samples is not None:
        t = torch.linspace(0, 1, samples, dtype=torch.float64)
        at = probe.read(_segment(a, b, t))
        return _line(t, at, at.outputs, exact=False)
    t = _breakpoints(probe, a, b)
    vertices = probe.read(_segment(a, b, t))
    inside = probe.read(_segment(a, b, (t[1:] + t[:-1]) / 2))
    check_affine(vertices, inside, lambda v: (v[1:] + v[:-1]) / 2)
    return _line(t, inside, vertices.outputs, exact=True)


def check_samples(samples: int | None) -> None:
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 2):
        raise ValueError(f"samples must be an int from 2, or None for the exact pieces, got {samples!r}")


def line(model: nn.Module, a: torch.Tensor, b: torch.Tensor, *, samples: int | None = None, call: Call | None = None) -> Line:
    """What a network does to the segment from a to b.

    Args:
        model: any module of piecewise-linear activations (``ACTIVATION_CREASES``) with affine layers between them, skips and
            shared layers included; it is copied, to float64 and evaluation mode.
        a, b: one input each, without batch dimension.
        samples: look at so many equally spaced points instead of finding every crease. Needed for models with smooth
            activations or other operations that bend.
        call: ``call(model, x)`` for models that take more than x.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or range; no known activation; or, without samples, a
            model that bends inside a piece.
    """
    _check_ends(a, b)
    check_samples(samples)
    return _trace(Probe(model, call), a, b, samples)


def lines(
    model: nn.Module, a: torch.Tensor, b: torch.Tensor, *, samples: int | None = None, call: Call | None = None
) -> list[Line]:
    """:func:`line` for each pair of rows of a and b [pairs, ...]."""
    _check_ends(a, b)
    check_samples(samples)
    if a.dim() < 2 or len(a) == 0:
        raise ValueError(f"a must have shape [pairs, ...] with pairs > 0, got {tuple(a.shape)}")
    probe = Probe(model, call)
    return [_trace(probe, *ends, samples) for ends in zip(a, b, strict=True)]
