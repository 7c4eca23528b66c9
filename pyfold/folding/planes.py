"""Folding of a plane: the linear regions of a network in a 2-D slice, by clipping polygons."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pyfold.folding.creases import Creases
from pyfold.folding.probe import INNER_POINTS, AffineCheck, Call, Layer, Probe, inner_weights


def _area(polygon: np.ndarray) -> float:
    x, y = (polygon - polygon[0]).T
    return 0.5 * float(np.abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


class _Means:
    """Weighted means of rows, so many rows after another for each piece."""

    def __init__(self, weights: torch.Tensor, counts: torch.Tensor):
        weights = weights.to(counts.device)
        sums = torch.segment_reduce(weights, "sum", lengths=counts)
        self.weights = (weights / sums.repeat_interleave(counts)).unsqueeze(1)
        self.counts = counts

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        return torch.segment_reduce(self.weights * values, "sum", lengths=self.counts, axis=0)


@dataclass(frozen=True)
class Plane:
    """The regions of a network in a rectangle ``origin + p u + q v``.

    Attributes:
        polygons: for each region its corners (p, q), float64 [k, 2], in order around it; regions are convex.
        patterns: int64 [regions, units]: the levels of all activations.
        outputs: for each region the outputs at its corners, float64 [k, values].
        depth: int64 [regions]: creases between the region and the identity, summed over the layers.
        creases: float64 [n, 2, 2]: segments (from, to) of (p, q) that together are all creases.
        crease_layers: int64 [n]: the layer that each segment belongs to.
        layers: the activations in the order in which they ran.
        pattern_layers: int64 [units], the layer of each column of the patterns.
        bounds: (p from, p to, q from, q to).
    """

    polygons: list[np.ndarray]
    patterns: torch.Tensor
    outputs: list[np.ndarray]
    depth: torch.Tensor
    creases: np.ndarray
    crease_layers: np.ndarray
    layers: tuple[Layer, ...]
    pattern_layers: torch.Tensor
    bounds: tuple[float, float, float, float]

    @property
    def regions(self) -> int:
        return len(self.polygons)

    @property
    def areas(self) -> np.ndarray:
        """float64 [regions]; they sum to the area of the rectangle."""
        return np.array([_area(p) for p in self.polygons])


def _split(corners: np.ndarray, side: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """A convex polygon cut where ``side``, affine in its corners, is 0: the two parts and the cut; None if it only touches.

    ``corners`` [k, n] holds everything that is affine over the polygon, coordinates first.
    """
    if not (side.min() < 0 < side.max()):
        return None
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    cut: list[np.ndarray] = []
    for i, value in enumerate(side):
        j = (i + 1) % len(side)
        if value <= 0:
            parts[0].append(corners[i])
        if value >= 0:
            parts[1].append(corners[i])
        if value == 0:
            cut.append(corners[i])
        if value * side[j] < 0:
            crossing = (side[j] * corners[i] - value * corners[j]) / (side[j] - value)
            parts[0].append(crossing)
            parts[1].append(crossing)
            cut.append(crossing)
    return np.stack(parts[0]), np.stack(parts[1]), np.stack(cut)


def plane(
    model: nn.Module,
    origin: torch.Tensor,
    u: torch.Tensor,
    v: torch.Tensor,
    *,
    bounds: tuple[float, float, float, float] = (-1.0, 1.0, -1.0, 1.0),
    call: Call | None = None,
) -> Plane:
    """All linear regions of a network in the rectangle of points ``origin + p u + q v``, exactly.

    Layer by layer, each region is cut where a unit of the layer crosses a crease: inside a region of the layers before, the
    layer's input is affine, so its values at the corners say where.

    Args:
        model, call: as for :func:`line`.
        origin, u, v: inputs without batch dimension; u and v need not be orthogonal or of unit length.
        bounds: (p from, p to, q from, q to).

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or range; no known activation; a model that bends inside a
            region.

    Returns:
        The regions, and the creases between them.

    Example:
        >>> sheet = torch.nn.Sequential(torch.nn.Identity(), pyfold.nn.Fold("abs"))
        >>> plane(sheet, torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])).regions
        4
    """
    for name, value in (("origin", origin), ("u", u), ("v", v)):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {getattr(value, 'dtype', type(value).__name__)}")
        if value.shape != origin.shape:
            raise ValueError(f"{name} must have the shape of origin, {tuple(origin.shape)}, got {tuple(value.shape)}")
    p0, p1, q0, q1 = map(float, bounds)
    if not (p0 < p1 and q0 < q1):
        raise ValueError(f"bounds must be (p from, p to, q from, q to) with from < to, got {bounds}")
    origin, u, v = (value.detach().cpu().double() for value in (origin, u, v))
    probe = Probe(model, call)

    def points(pq: np.ndarray) -> torch.Tensor:
        p, q = (torch.from_numpy(np.ascontiguousarray(c)).reshape(-1, *[1] * origin.dim()) for c in pq.T)
        return origin + p * u + q * v

    polygons = [np.array([[p0, q0], [p1, q0], [p1, q1], [p0, q1]])]
    segments: list[np.ndarray] = []
    segment_stage: list[int] = []
    rows = probe.batch(origin.unsqueeze(0))

    def parts_of(polygons: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """As many polygons at a time as may be read together."""
        ends = np.cumsum([len(p) for p in polygons])
        for _, part in itertools.groupby(zip(polygons, (ends - 1) // rows, strict=True), key=lambda pair: pair[1]):
            yield [polygon for polygon, _ in part]

    def cut(polygons: list[np.ndarray], creases: Creases, stage: int) -> Iterator[np.ndarray]:
        # One column for each crease that some region may reach: on which side of it the corners are.
        reached = torch.cat([creases.value.new_empty(len(creases.value), 0), *map(creases.side, creases.reached())], 1)
        sides: np.ndarray = reached.cpu().numpy()
        zero = creases.zero
        first = 0
        for polygon in polygons:
            own = sides[first : first + len(polygon)]
            first += len(polygon)
            own = own[:, (own.min(0) < 0) & (own.max(0) > 0)]
            parts = [np.concatenate([polygon, own], 1)]
            for column in range(2, parts[0].shape[1]):
                whole, parts = parts, []
                for part in whole:
                    side = np.where(np.abs(part[:, column]) <= zero, 0.0, part[:, column])
                    halves = _split(part, side)
                    if halves is None:
                        parts.append(part)
                        continue
                    parts += halves[:2]
                    segments.append(halves[2][[0, -1], :2])
                    segment_stage.append(stage)
            yield from (part[:, :2] for part in parts)

    stage, done = 0, False
    while not done:
        after: list[np.ndarray] = []
        for part in parts_of(polygons):
            creases = probe.stage(points(np.concatenate(part)), stage)
            if done := creases is None:
                break
            after += cut(part, creases, stage)
        else:
            polygons, stage = after, stage + 1

    check, patterns, depth, outputs = AffineCheck(), [], [], []
    for part in parts_of(polygons):
        sizes = [len(p) for p in part]
        starts, counts = np.cumsum([0, *sizes[:-1]]), torch.tensor(sizes, device=probe.device)
        corners = np.concatenate(part)
        vertices = probe.read(points(corners))
        inside = probe.read(points(np.add.reduceat(corners, starts) / np.array(sizes)[:, None]))
        check.add(vertices, inside, _Means(torch.ones(len(corners), dtype=torch.float64), counts))
        for k in range(INNER_POINTS):
            weights = inner_weights(len(corners), k)
            means = _Means(weights, counts)
            check.add(vertices, probe.read(points(means(torch.from_numpy(corners).to(probe.device)).cpu().numpy())), means)
        patterns.append(inside.patterns)
        depth.append(torch.stack([c.depth() for c in inside.creases]).sum(0).cpu())
        outputs += np.split(vertices.outputs.cpu().numpy(), starts[1:])
    check.finish()
    layer_of = np.array(inside.layer_of)
    return Plane(
        polygons=polygons,
        patterns=torch.cat(patterns),
        outputs=outputs,
        depth=torch.cat(depth),
        creases=np.array(segments).reshape(-1, 2, 2),
        crease_layers=layer_of[np.array(segment_stage, dtype=np.int64)],
        layers=inside.layers,
        pattern_layers=inside.pattern_layers,
        bounds=(p0, p1, q0, q1),
    )
