"""Folding along a line: the pieces of a network on a segment, and the space-folding measure chi."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pyfold.folding.probe import INNER_POINTS, AffineCheck, Call, Layer, Probe, Reading, inner_weights

_MERGE = 1e-12  # breakpoints nearer than this, of a segment of length 1, are one


def space_folding(patterns: torch.Tensor) -> float:
    """The space-folding measure of patterns [n, units] met along a path (Lewandowski et al. 2025, arXiv 2502.09954).

    ``chi = 1 - max_i d(pi_1, pi_i) / sum_i d(pi_i, pi_{i+1})``, d the number of creases between two patterns (the Hamming
    distance for bits). It is 0 where the distance from the start never falls back, also if no crease is crossed, and
    nears 1 the more often the path comes back to patterns it has left. It may change when the path is walked backwards.

    Args:
        patterns: whole numbers or bools, in the order of the path.

    Returns:
        chi, in [0, 1).

    Raises:
        ValueError: patterns of another shape, or none.
    """
    if patterns.dim() != 2 or len(patterns) == 0:
        raise ValueError(f"patterns must have shape [n, units] with n > 0, got {tuple(patterns.shape)}")
    patterns = patterns.long()
    return _chi((patterns - patterns[0]).abs().sum(1), patterns.diff(dim=0).abs().sum(1))


def _chi(away: torch.Tensor, steps: torch.Tensor) -> float:
    walked = steps.sum().item()
    return 1 - away.max().item() / walked if walked else 0.0


@dataclass(frozen=True)
class Line:
    """What a network does to a segment.

    Attributes:
        t: float64 [n + 1], from 0 to 1: where its n pieces begin and end; for a sampled line [n], where it was looked at.
        away: int64 [n, layers]: creases between the first piece or sample and each other.
        steps: int64 [n - 1, layers]: creases between each piece or sample and the next.
        patterns: int64 [n, units]: the levels of all activations, or None if they were not asked for.
        pattern_layers: int64 [units], the layer of each column of the patterns.
        outputs: float64 [len(t), values].
        layers: the activations in the order in which they ran.
        exact: whether every crease of the segment was found.
    """

    t: torch.Tensor
    away: torch.Tensor
    steps: torch.Tensor
    patterns: torch.Tensor | None
    pattern_layers: torch.Tensor
    outputs: torch.Tensor
    layers: tuple[Layer, ...]
    exact: bool

    @property
    def regions(self) -> int:
        """Activation regions that the segment meets: runs of one pattern."""
        return 1 + int((self.steps.sum(1) > 0).sum())

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
        return self.steps.sum(0)

    @property
    def chi(self) -> float:
        """The space-folding measure of the whole network."""
        return self.chi_up_to(len(self.layers))

    def chi_up_to(self, layer: int) -> float:
        """The space-folding measure of the first layers, ``layer`` of them."""
        if not 0 < layer <= len(self.layers):
            raise ValueError(f"layer must be in [1, {len(self.layers)}], got {layer}")
        return _chi(self.away[:, :layer].sum(1), self.steps[:, :layer].sum(1))


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
    rows = probe.batch(a.unsqueeze(0))
    index = 0
    while True:
        found = [t]
        for first in range(0, len(t) - 1, rows - 1):
            part = t[first : first + rows]
            creases = probe.stage(_segment(a, b, part), index)
            if creases is None:
                return t
            for offset in creases.reached():
                side = creases.side(offset)
                piece, unit = (side[:-1] * side[1:] < 0).nonzero(as_tuple=True)
                before, after, piece = side[piece, unit].cpu(), side[piece + 1, unit].cpu(), piece.cpu()
                found.append(part[piece] + before / (before - after) * (part[piece + 1] - part[piece]))
        t = torch.cat(found).sort().values
        t = t[torch.cat([torch.tensor([True]), t.diff() > _MERGE])]
        t[-1] = 1.0
        index += 1


class _Between:
    """Means of neighbouring rows, the share of the second one given for each piece."""

    def __init__(self, share: torch.Tensor):
        self.share = share.unsqueeze(1)

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        return torch.lerp(values[:-1], values[1:], self.share.to(values.device))


class _Walk:
    """Gathers a line from readings of its pieces or samples, part by part."""

    def __init__(self, keep: bool):
        self.keep = keep
        self.first: torch.Tensor | None = None
        self.last: torch.Tensor | None = None
        self.away: list[torch.Tensor] = []
        self.steps: list[torch.Tensor] = []
        self.patterns: list[torch.Tensor] = []

    def add(self, at: Reading) -> None:
        patterns, self.layers, self.pattern_layers = at.patterns, at.layers, at.pattern_layers
        before = patterns[:0] if self.last is None else self.last
        self.first = patterns[:1] if self.first is None else self.first
        self.away.append(self._by_layer((patterns - self.first).abs()))
        self.steps.append(self._by_layer(torch.cat([before, patterns]).diff(dim=0).abs()))
        self.last = patterns[-1:]
        if self.keep:
            self.patterns.append(patterns)

    def _by_layer(self, distances: torch.Tensor) -> torch.Tensor:
        zeros = distances.new_zeros(len(distances), len(self.layers))
        return zeros.index_add_(1, self.pattern_layers, distances)

    def line(self, t: torch.Tensor, outputs: list[torch.Tensor], exact: bool) -> Line:
        return Line(
            t=t,
            away=torch.cat(self.away),
            steps=torch.cat(self.steps),
            patterns=torch.cat(self.patterns) if self.keep else None,
            pattern_layers=self.pattern_layers,
            outputs=torch.cat(outputs).cpu(),
            layers=self.layers,
            exact=exact,
        )


def _trace(probe: Probe, a: torch.Tensor, b: torch.Tensor, samples: int | None, patterns: bool) -> Line:
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    walk, outputs = _Walk(patterns), []
    rows = probe.batch(a.unsqueeze(0))
    if samples is not None:
        t = torch.linspace(0, 1, samples, dtype=torch.float64)
        for first in range(0, samples, rows):
            part = t[first : first + rows]
            at = probe.read(_segment(a, b, part))
            walk.add(at)
            outputs.append(at.outputs)
        return walk.line(t, outputs, exact=False)
    t = _breakpoints(probe, a, b)
    check = AffineCheck()
    for first in range(0, len(t) - 1, rows - 1):
        part = t[first : first + rows]
        vertices = probe.read(_segment(a, b, part))
        inside = probe.read(_segment(a, b, (part[1:] + part[:-1]) / 2))
        check.add(vertices, inside, lambda v: (v[1:] + v[:-1]) / 2)
        for k in range(INNER_POINTS):
            weights = inner_weights(2 * (len(part) - 1), k).reshape(2, -1)
            share = weights[0] / weights.sum(0)
            point = probe.read(_segment(a, b, torch.lerp(part[:-1], part[1:], share)))
            check.add(vertices, point, _Between(share))
        walk.add(inside)
        outputs.append(vertices.outputs[(1 if first else 0) :])
    check.finish()
    return walk.line(t, outputs, exact=True)


def check_samples(samples: int | None) -> None:
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 2):
        raise ValueError(f"samples must be an int from 2, or None for the exact pieces, got {samples!r}")


def line(model: nn.Module, a: torch.Tensor, b: torch.Tensor, *, samples: int | None = None, call: Call | None = None) -> Line:
    """What a network does to the segment from a to b (Sotoudeh and Thakur 2019, section 3, find its creases so).

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

    Returns:
        Its creases, regions and patterns.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1), pyfold.nn.Fold("abs"))
        >>> _ = torch.nn.init.ones_(model[0].weight), torch.nn.init.zeros_(model[0].bias)
        >>> line(model, torch.tensor([-3.0]), torch.tensor([3.0])).t.tolist()  # one crease, halfway
        [0.0, 0.5, 1.0]
    """
    _check_ends(a, b)
    check_samples(samples)
    return _trace(Probe(model, call), a, b, samples, patterns=True)


def lines(
    model: nn.Module,
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    samples: int | None = None,
    call: Call | None = None,
    patterns: bool = True,
) -> list[Line]:
    """:func:`line` for each pair of rows of a and b.

    Args:
        model, samples, call: as for :func:`line`.
        a, b: [pairs, ...].
        patterns: False keeps none, which may be large.

    Returns:
        One for each pair.

    Raises:
        TypeError, ValueError: as for :func:`line`, or no pair.
    """
    _check_ends(a, b)
    check_samples(samples)
    if a.dim() < 2 or len(a) == 0:
        raise ValueError(f"a must have shape [pairs, ...] with pairs > 0, got {tuple(a.shape)}")
    probe = Probe(model, call)
    return [_trace(probe, *ends, samples, patterns) for ends in zip(a, b, strict=True)]
