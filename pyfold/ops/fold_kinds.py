"""The kinds of fold: for each its formula, its program for the kernels, what it remembers and what it preserves.

A kind acts on units of ``rows`` values, its reference on ``z`` [..., units, rows]. Everything else (memory order, bias, gain,
clamp, derivatives, bits) is shared; a new kind is one entry of :data:`FOLDS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from pyfold.ops._checks import check_finite, check_tensor
from pyfold.ops._fold_program import Program

REQUIRED = object()


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kind.

    Attributes:
        default: its default, or REQUIRED.
        allowed: what it may be, in words.
        check: ``check(name, value, channels, units) -> value``; raises what names the argument, its value and the allowed.
        learned: may be a tensor that requires a gradient.
    """

    default: Any
    allowed: str
    check: Callable[[str, Any, int, int], Any]
    learned: bool = False


@dataclass(frozen=True)
class FoldKind:
    """What is true of one kind of fold.

    Attributes:
        rule: the formula.
        source: where it comes from.
        tie: where a bit is decided, strictly, so that there the fold is the identity (NaN counts as a tie).
        bits: what backward remembers, in words; :func:`saved_planes` counts it.
        reference: ``reference(z, **parameters)``, [..., units, rows] in plain torch operations.
        ties: ``ties(z, **parameters)``: distances of the input to the creases, zero on one.
        emit: ``emit(program, rows, **parameters)`` writes the fold of these rows; None: torch operations alone.
        rows: ``rows(channels, **parameters)``: the values of a unit.
        paired: takes ``pairing``.
        parameters: by name.
        lipschitz: the Lipschitz constant for given parameters.
        preserves_norm: whether all singular values of the Jacobian are 1, at every input.
        preserves_volume: whether its determinant is 1 or -1 at every input.
        unfolds: whether the input can be had back from the output and the bits.
    """

    rule: str
    source: str
    tie: str
    bits: str
    reference: Callable[..., torch.Tensor]
    ties: Callable[..., torch.Tensor]
    emit: Callable[..., None] | None
    rows: Callable[..., int]
    paired: bool = False
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    lipschitz: Callable[..., float] = lambda **_: 1.0
    preserves_norm: Callable[..., bool] = lambda **_: True
    preserves_volume: Callable[..., bool] = lambda **_: True
    unfolds: Callable[..., bool] = lambda **_: True
    widens: bool = False  # twice as many channels come out

    @property
    def ready(self) -> bool:
        """Whether it works without parameters, and keeps the number of channels: an activation that a name chooses."""
        return not self.widens and all(p.default is not REQUIRED for p in self.parameters.values())

    def defaults(self) -> dict[str, Any]:
        return {name: p.default for name, p in self.parameters.items() if p.default is not REQUIRED}


# --- parameters


def _number(low: float = -math.inf, high: float = math.inf, positive: bool = False) -> Callable[..., Any]:
    def check(name, value, channels, units):
        value = check_finite(name, value)
        if positive and value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
        if not low <= value <= high:
            raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {value}")
        return value

    return check


def _tensor_or(number: Callable[..., Any], per: str) -> Callable[..., Any]:
    """A number, or a tensor: one value, or one for each channel or unit."""

    def check(name, value, channels, units):
        if not isinstance(value, torch.Tensor):
            return number(name, value, channels, units)
        check_tensor(name, value)
        count = channels if per == "channel" else units
        if value.shape not in ((), (count,)):
            raise ValueError(f"{name} must have shape () or ({count},), one for each {per}, got {tuple(value.shape)}")
        return value

    return check


def _angles(name, value, channels, units):
    if isinstance(value, torch.Tensor):
        check_tensor(name, value)
        if tuple(value.shape) != (units,):
            raise ValueError(f"{name} must have shape ({units},), got {tuple(value.shape)}")
        return value
    return check_finite(name, value)


def _size(name, value, channels, units):
    return None if value is None else _count(name, value, channels, units)


def _count(name, value, channels, units):
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be from 1, got {value}")
    return value


def _normals(name, value, channels, units):
    check_tensor(name, value)
    if value.dim() not in (1, 2) or value.shape[-1] != channels or value.shape[0] == 0:
        raise ValueError(f"{name} must have shape ({channels},) or (K, {channels}), got {tuple(value.shape)}")
    return value


def _offsets(name, value, channels, units):
    if not isinstance(value, torch.Tensor):
        return check_finite(name, value)
    check_tensor(name, value)
    if value.dim() > 1:
        raise ValueError(f"{name} must have shape () or (K,), got {tuple(value.shape)}")
    return value


# --- formulas: references in torch operations, distances to the creases, programs


def _one(channels, **_):
    return 1


def _two(channels, **_):
    return 2


def _all(channels, **_):
    return channels


def _sized(channels, *, size, **_):
    return channels if size is None else size


def _per_row(write: Callable[..., None]) -> Callable[..., None]:
    def emit(program: Program, rows, **parameters):
        for row in rows:
            write(program, row, **parameters)

    return emit


def _fold_below(z, at=0.0):
    return torch.where(z < at, 2 * at - z, z)


def _leaky(z, *, slope):
    slope = slope.to(z).unsqueeze(-1) if isinstance(slope, torch.Tensor) else slope
    return torch.where(z < 0, slope * z, z)


def _box(z, *, length):
    return torch.where(z > length, 2 * length - z, torch.where(z < -length, -2 * length - z, z))


def _tri(z, *, length, phase):
    u = z - phase
    within = (u + length) - 4 * length * torch.floor((u + length) / (4 * length))
    return phase + torch.where(within > 2 * length, 3 * length - within, within - length)


def _tri_ties(z, *, length, phase):
    within = torch.remainder(z - phase + length, 2 * length)
    return torch.minimum(within, 2 * length - within)


def _maxmin(z):
    a, b = z.unbind(-1)
    return torch.stack([torch.where(a > b, b, a), torch.where(a > b, a, b)], -1)


def _sort(z, *, size=None):
    return torch.sort(z, dim=-1, stable=True).values


def _differences(z, sums: bool = False):
    i, j = torch.triu_indices(z.shape[-1], z.shape[-1], 1, device=z.device)
    both = [z[..., i] - z[..., j]] + ([z[..., i] + z[..., j], z] if sums else [])
    return torch.cat(both, -1)


def _sortabs_emit(program: Program, rows, *, size=None):
    for row in rows:
        program.mirror(row, 0.0)
    program.sort(rows)


def reflect_at_line(a, b, direction):
    """Pairs (a, b) that lie clockwise of the line through 0 in a direction (radians), reflected at it; and their sides."""
    direction = direction if isinstance(direction, torch.Tensor) else torch.tensor(direction, dtype=a.dtype, device=a.device)
    direction = direction.to(a.dtype)
    side = a * torch.sin(direction) - b * torch.cos(direction)
    cosine, sine = torch.cos(2 * direction), torch.sin(2 * direction)
    return (
        torch.where(side > 0, a * cosine + b * sine, a),
        torch.where(side > 0, a * sine - b * cosine, b),
        side,
    )


def _householder(z, *, angle):
    a, b, _ = reflect_at_line(*z.unbind(-1), angle / 2)
    return torch.stack([a, b], -1)


def _householder_ties(z, *, angle):
    return reflect_at_line(*z.unbind(-1), angle / 2)[2]


def dihedral_directions(m: int, angle: Any) -> list[Any]:
    """The mirrors that fold the plane into the wedge between angle and angle + pi / m: each halves the wedges left."""
    directions, wedges = [angle], m
    while wedges > 1:
        wedges = (wedges + 1) // 2
        directions.append(angle + math.pi * (1 + wedges / m))
    return directions


def _dihedral(z, *, m, angle):
    a, b = z.unbind(-1)
    for direction in dihedral_directions(m, angle):
        a, b, _ = reflect_at_line(a, b, direction)
    return torch.stack([a, b], -1)


def _dihedral_ties(z, *, m, angle):
    return torch.stack([reflect_at_line(*z.unbind(-1), angle + math.pi * k / m)[2] for k in range(m)], -1)


def _dihedral_emit(program: Program, rows, *, m, angle):
    for a, b in zip(rows[0::2], rows[1::2], strict=True):
        for direction in dihedral_directions(m, angle):
            program.line(a, b, direction)


def _hyperplanes(normal, offset, dtype, device):
    """Unit normals [K, C] and offsets [K]."""
    normal = torch.atleast_2d(normal).to(dtype)
    normal = normal / normal.norm(dim=1, keepdim=True)
    offset = offset if isinstance(offset, torch.Tensor) else torch.tensor(offset, device=device)
    return normal, offset.to(dtype).expand(len(normal))


def _hyperplane(z, *, normal, offset):
    for n, b in zip(*_hyperplanes(normal, offset, z.dtype, z.device), strict=True):
        side = (z * n).sum(-1, keepdim=True) - b
        z = torch.where(side > 0, z - 2 * side * n, z)
    return z


def _hyperplane_ties(z, *, normal, offset):
    sides = []
    for n, b in zip(*_hyperplanes(normal, offset, z.dtype, z.device), strict=True):
        sides.append((z * n).sum(-1, keepdim=True) - b)
        z = torch.where(sides[-1] > 0, z - 2 * sides[-1] * n, z)
    return torch.cat(sides, -1)


def _hyperplane_emit(program: Program, rows, *, normal, offset):
    normal, offset = _hyperplanes(normal, offset, torch.float64, normal.device)
    for n, b in zip(normal, offset, strict=True):
        program.plane(torch.cat([n, b.reshape(1)]))


def _crelu(z):
    return torch.cat([torch.where(z < 0, 0.0, z), torch.where(z < 0, -z, 0.0)], -1)


def _sphere(z, *, radius, inner):
    square = (z * z).sum(-1, keepdim=True)
    inversion = torch.where(square < radius**2, radius**2 / square.clamp(min=inner**2), 1.0)
    return z * torch.where(square < inner**2, (radius / inner) ** 2, inversion)


def _ball(z, *, radius):
    square = (z * z).sum(-1, keepdim=True)
    return z * torch.where(square > radius**2, radius**2 / square.clamp(min=radius**2), 1.0)


def _distance_to_spheres(z, *radii):
    length = z.norm(dim=-1)
    return torch.stack([length - r for r in radii], -1)


_SIZE = Parameter(None, "an int that divides the channels, or None for all of them", _size)
_LENGTH = Parameter(1.0, "positive", _number(positive=True))
_RADIUS = Parameter(1.0, "positive", _number(positive=True))

#: The kinds of fold, by name.
FOLDS: dict[str, FoldKind] = {
    "abs": FoldKind(
        rule="c + |x - c|",
        source="Montufar et al. 2014 (arXiv 1402.1869)",
        tie="x = c",
        bits="1 a value",
        reference=lambda z, offset: _fold_below(z, offset),
        ties=lambda z, offset: z - offset,
        emit=_per_row(lambda program, row, offset: program.mirror(row, offset)),
        rows=_one,
        parameters={"offset": Parameter(0.0, "finite", _number())},
    ),
    "leaky": FoldKind(
        rule="max(x, 0) + a min(x, 0): 1 is the identity, 0 ReLU, -1 abs",
        source="Maas, Hannun and Ng 2013, with a from -1",
        tie="x = 0",
        bits="1 a value; the input where the slope learns",
        reference=_leaky,
        ties=lambda z, slope: z,
        emit=_per_row(lambda program, row, slope: program.leaky(row, slope)),
        rows=_one,
        parameters={"slope": Parameter(0.2, "in [-1, 1]; learned: one, or one a channel",
                                       _tensor_or(_number(-1, 1), "channel"), learned=True)},
        preserves_norm=lambda slope: not isinstance(slope, torch.Tensor) and abs(slope) == 1,
        preserves_volume=lambda slope: not isinstance(slope, torch.Tensor) and abs(slope) == 1,
        unfolds=lambda slope: not isinstance(slope, torch.Tensor) and slope != 0,
    ),
    "box": FoldKind(
        rule="2 clamp(x, -L, L) - x",
        source="Tom Lowe's Mandelbox, 2010",
        tie="x = L, x = -L",
        bits="1 a value; 2 to unfold",
        reference=_box,
        ties=lambda z, length: torch.cat([z - length, z + length], -1),
        emit=_per_row(lambda program, row, length: program.box(row, length)),
        rows=_one,
        parameters={"length": _LENGTH},
    ),
    "tri": FoldKind(
        rule="mirrors at p + L (2 k + 1) for all k: a triangle wave of slope 1 and -1 into [p - L, p + L]",
        source="the affine reflection group A_1",
        tie="x = p + L (2 k + 1)",
        bits="1 a value; 32 to unfold",
        reference=_tri,
        ties=_tri_ties,
        emit=_per_row(lambda program, row, length, phase: program.tri(row, length, phase)),
        rows=_one,
        parameters={"length": _LENGTH, "phase": Parameter(0.0, "finite", _number())},
    ),
    "maxmin": FoldKind(
        rule="(min, max) of a pair",
        source="Anil, Lucas and Grosse 2019 (arXiv 1811.05381), GroupSort2",
        tie="x_1 = x_2",
        bits="1 a pair",
        reference=_maxmin,
        ties=lambda z: z[..., 0] - z[..., 1],
        emit=lambda program, rows: [program.swap(*pair) for pair in zip(rows[0::2], rows[1::2], strict=True)],
        rows=_two,
        paired=True,
    ),
    "groupsort": FoldKind(
        rule="each group of channels, ascending",
        source="Anil, Lucas and Grosse 2019 (arXiv 1811.05381)",
        tie="x_i = x_j",
        bits="1 a swap of Batcher's network: 1, 3, 5, 9, 12, 16, 19 a group of 2 to 8",
        reference=_sort,
        ties=lambda z, size: _differences(z),
        emit=lambda program, rows, size: program.sort(rows),
        rows=_sized,
        parameters={"size": _SIZE},
    ),
    "sortabs": FoldKind(
        rule="the absolute values of each group of channels, ascending",
        source="the reflection group B_k",
        tie="x_i = 0, x_i = x_j, x_i = -x_j",
        bits="1 a value and those of groupsort: 3 a pair, 9 a group of 4",
        reference=lambda z, size: _sort(_fold_below(z)),
        ties=lambda z, size: _differences(z, sums=True),
        emit=_sortabs_emit,
        rows=_sized,
        parameters={"size": _SIZE},
    ),
    "householder": FoldKind(
        rule="a pair is reflected at the line of angle t / 2 where it lies clockwise of it",
        source="Singla, Singla and Feizi 2022 (arXiv 2108.04062), eq. 9",
        tie="x_1 sin(t/2) = x_2 cos(t/2)",
        bits="1 a pair; the output where the angle learns",
        reference=_householder,
        ties=_householder_ties,
        emit=lambda program, rows, angle: [
            program.line(a, b, angle / 2) for a, b in zip(rows[0::2], rows[1::2], strict=True)
        ],
        rows=_two,
        paired=True,
        parameters={"angle": Parameter(REQUIRED, "radians: one for all, or a tensor with one a pair", _angles, learned=True)},
    ),
    "dihedral": FoldKind(
        rule="a pair is folded into the wedge between the angles t and t + pi / m",
        source="the reflection group I_2(m), as in Knighty's kaleidoscopic fractals, 2010",
        tie="on each of the m mirrors",
        bits="1 + ceil(log2 m) a pair; the input where the angle learns",
        reference=_dihedral,
        ties=_dihedral_ties,
        emit=_dihedral_emit,
        rows=_two,
        paired=True,
        parameters={
            "m": Parameter(3, "an int from 1", _count),
            "angle": Parameter(0.0, "radians; learned: one, or one a pair", _tensor_or(_number(), "pair"), learned=True),
        },
    ),
    "hyperplane": FoldKind(
        rule="x - 2 max(0, <n, x> - b) n with n = normal / |normal|, for K hyperplanes one after another",
        source="after the folds of Keup and Helias 2022 (arXiv 2203.11355)",
        tie="<n, x> = b",
        bits="K a vector of channels; the input where normal or offset learns",
        reference=_hyperplane,
        ties=_hyperplane_ties,
        emit=_hyperplane_emit,
        rows=_all,
        parameters={
            "normal": Parameter(REQUIRED, "a tensor (C,) or (K, C), not zero", _normals, learned=True),
            "offset": Parameter(0.0, "a number, or a tensor () or (K,)", _offsets, learned=True),
        },
    ),
    "crelu": FoldKind(
        rule="(max(x, 0), max(-x, 0)): twice the channels, the second half for the negative parts",
        source="Shang et al. 2016 (arXiv 1603.05201)",
        tie="x = 0",
        bits="1 a value",
        reference=_crelu,
        ties=lambda z: z,
        emit=lambda program, rows: program.crelu(),
        rows=_one,
        preserves_volume=lambda: False,
        widens=True,
    ),
    "sphere": FoldKind(
        rule="r < r0: x R^2 / r0^2; r < R: x R^2 / r^2; else x, with r = |x| over the channels",
        source="Tom Lowe's Mandelbox, 2010",
        tie="r = r0, r = R",
        bits="the input; 2 a vector to unfold",
        reference=_sphere,
        ties=lambda z, radius, inner: _distance_to_spheres(z, radius, inner),
        emit=lambda program, rows, radius, inner: program.sphere(radius, inner),
        rows=_all,
        parameters={"radius": _RADIUS, "inner": Parameter(0.5, "positive, up to radius", _number(positive=True))},
        lipschitz=lambda radius, inner: (radius / inner) ** 2,
        preserves_norm=lambda radius, inner: False,
        preserves_volume=lambda radius, inner: False,
    ),
    "ball": FoldKind(
        rule="r > R: x R^2 / r^2; else x, with r = |x| over the channels: the outside inverted into the ball",
        source="inversion in a sphere",
        tie="r = R",
        bits="the input; 1 a vector to unfold",
        reference=_ball,
        ties=lambda z, radius: _distance_to_spheres(z, radius),
        emit=lambda program, rows, radius: program.ball(radius),
        rows=_all,
        parameters={"radius": _RADIUS},
        preserves_norm=lambda radius: False,
        preserves_volume=lambda radius: False,
    ),
    "soft": FoldKind(
        rule="sqrt(x^2 + e^2): abs with a round crease",
        source="the hyperbola with the asymptotes of |x|",
        tie="nowhere",
        bits="the input",
        reference=lambda z, epsilon: torch.sqrt(z * z + epsilon**2),
        ties=lambda z, epsilon: torch.full_like(z, math.inf),
        emit=None,
        rows=_one,
        parameters={"epsilon": Parameter(0.1, "positive", _number(positive=True))},
        preserves_norm=lambda epsilon: False,
        preserves_volume=lambda epsilon: False,
        unfolds=lambda epsilon: False,
    ),
}  # fmt: skip


def fold_table() -> str:
    """The kinds as a table in Markdown, for the docs."""
    lines = [
        "| kind | rule | parameters | ties | remembers | Lipschitz constant | keeps lengths | keeps volume | unfolds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    yes = lambda value: "yes" if value else "no"  # noqa: E731
    for name, kind in FOLDS.items():
        known = {key: 0.0 if p.default is REQUIRED else p.default for key, p in kind.parameters.items()}
        parameters = "; ".join(
            f"{key}{'' if p.default is REQUIRED else f' = {p.default}'}: {p.allowed}" for key, p in kind.parameters.items()
        )
        facts = (
            f"`{name}`", kind.rule.replace("|", "\\|"), parameters or "-", kind.tie, kind.bits, f"{kind.lipschitz(**known):g}",
            yes(kind.preserves_norm(**known)), yes(kind.preserves_volume(**known)), yes(kind.unfolds(**known)),
        )  # fmt: skip
        lines.append("| " + " | ".join(facts) + " |")
    return "\n".join(lines) + "\n"
