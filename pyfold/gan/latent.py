"""Moves among latent codes z ~ N(0, I): walks, arithmetic, and reflections, which keep that distribution exactly.

A reflection ``H = I - 2 n n^T`` is orthogonal, so ``z ~ N(0, I)`` gives ``H z ~ N(0, I)``, whatever the unit vector n is, as
long as it does not depend on z. A fold, ``F(z) = z - 2 max(0, <n, z> - c) n``, lays one side of a hyperplane on the other.

Every function takes codes [..., d] of float32 or float64 and is differentiable; random choices are functions of ``seeds``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.functional import softplus

from pyfold.ops import randn
from pyfold.ops._checks import check_finite, check_tensor

#: The stream of ``pyfold.randn`` that children and variations are drawn from.
LATENT_TOOLS_STREAM = 17


def _codes(**named: torch.Tensor) -> None:
    sizes = set()
    for name, value in named.items():
        check_tensor(name, value, (torch.float32, torch.float64))
        if value.dim() == 0:
            raise ValueError(f"{name} must have a last dimension of codes, got a 0-d tensor")
        sizes.add(value.shape[-1])
    if len(sizes) > 1:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in named.items())
        raise ValueError(f"codes must have the same size, got {shapes}")


def _norm(z: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    return norm


def _unit(v: torch.Tensor) -> torch.Tensor:
    """v / |v|, and 0 for 0: the reflection at no hyperplane is the identity."""
    norm = _norm(v)
    return v / torch.where(norm > 0, norm, 1.0)


def rescale(z: torch.Tensor, radius: float | torch.Tensor | None = None) -> torch.Tensor:
    """z with norm ``radius``, by default sqrt(d), where nearly all of N(0, I) lies; 0 stays 0.

    Args:
        z: codes [..., d].
        radius: a number, or a tensor that broadcasts.

    Returns:
        Like z.
    """
    _codes(z=z)
    return _unit(z) * (math.sqrt(z.shape[-1]) if radius is None else radius)


# --- walks


def lerp(a: torch.Tensor, b: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
    """``(1 - t) a + t b``. Halfway between independent codes its norm is low by a factor sqrt(2); see :func:`slerp`.

    Args:
        a, b: codes [..., d].
        t: a number, or a tensor [T] for T codes [..., T, d] on the way.

    Returns:
        [..., d], or [..., T, d].
    """
    _codes(a=a, b=b)
    a, b, t = _along(a, b, t)
    return (1 - t) * a + t * b


def slerp(a: torch.Tensor, b: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
    """``(sin((1 - t) w) a + sin(t w) b) / sin w`` with w the angle between a and b (White 2016; Shoemake 1985).

    Keeps the norm where both have the same.

    Args:
        a, b: codes [..., d].
        t: a number, or a tensor [T] for T codes [..., T, d] on the way.

    Returns:
        [..., d], or [..., T, d].

    Raises:
        ValueError: a and b point in opposite directions, where there is no shortest way.
    """
    _codes(a=a, b=b)
    a, b, t = _along(a, b, t)
    ua, ub = _unit(a), _unit(b)
    # The angle by its tangent, which keeps all digits where the cosine is near 1 or -1.
    angle = 2 * torch.atan2(_norm(ua - ub), _norm(ua + ub))
    if bool((angle > math.pi - 1e-6).any()):
        raise ValueError("a and b must not point in opposite directions")
    near = angle < 1e-4  # sin(x) / x is 1 to 1e-9 there
    safe = torch.where(near, 1.0, angle)
    wa = torch.where(near, 1 - t, ((1 - t) * safe).sin() / safe.sin())
    wb = torch.where(near, t, (t * safe).sin() / safe.sin())
    return wa * a + wb * b


def _along(a: torch.Tensor, b: torch.Tensor, t: float | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if isinstance(t, torch.Tensor):
        if t.dim() != 1:
            raise ValueError(f"t must be a number or a tensor [T], got shape {tuple(t.shape)}")
        return a.unsqueeze(-2), b.unsqueeze(-2), t.to(a)[:, None]
    return a, b, torch.as_tensor(check_finite("t", t)).to(a)


# --- arithmetic


def arithmetic(
    plus: Sequence[torch.Tensor], minus: Sequence[torch.Tensor] = (), *, radius: float | None = None
) -> torch.Tensor:
    """Sum of the concepts of ``plus`` less those of ``minus``, a concept being the mean of its codes (Radford et al. 2016).

    Args:
        plus, minus: concepts, each codes [N, d] of samples that show it (any N), or one code [d].
        radius: the norm of the result; without it that of the sum. A mean of N codes is short by sqrt(N), so a concept that
            should look typical wants ``radius=sqrt(d)``.

    Returns:
        [d].

    Raises:
        ValueError: no concept to add.
    """
    if not plus:
        raise ValueError("plus must hold at least one concept, got none")
    _codes(**{f"plus[{i}]": c for i, c in enumerate(plus)}, **{f"minus[{i}]": c for i, c in enumerate(minus)})
    mean = lambda c: c.reshape(-1, c.shape[-1]).mean(0)  # noqa: E731
    total = sum(map(mean, plus)) - sum(map(mean, minus))
    return total if radius is None else rescale(total, radius)


def combine(codes: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """``sum_i w_i z_i / sqrt(sum_i w_i^2)``, which is N(0, I) where the z_i are independently so (Bodin et al. 2024).

    Args:
        codes: [..., N, d].
        weights: [N], not all zero.

    Returns:
        [..., d].

    Raises:
        ValueError: weights of another shape, or all zero.
    """
    _codes(codes=codes)
    if weights.shape != codes.shape[-2:-1]:
        raise ValueError(f"weights must have shape {tuple(codes.shape[-2:-1])}, got {tuple(weights.shape)}")
    norm = weights.norm()
    if norm == 0:
        raise ValueError("weights must not all be zero")
    return torch.einsum("...nd,n->...d", codes, (weights / norm).to(codes))


# --- hyperplanes


def reflect(z: torch.Tensor, normal: torch.Tensor, offset: float | torch.Tensor = 0.0) -> torch.Tensor:
    """``z - 2 (<n, z> - c) n`` with ``n = normal / |normal|`` and ``c = offset``; a zero normal leaves z.

    Applied twice it is the identity. Keeps norms, and N(0, I), where ``offset`` is 0.

    Args:
        z: codes [..., d].
        normal: [d] or [..., d], of any length.
        offset: of the hyperplane from the origin, along the normal.

    Returns:
        Like z.

    Example:
        >>> reflect(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.0])).tolist()
        [-3.0, 1.0]
    """
    _codes(z=z, normal=normal)
    n = _unit(normal)
    return z - 2 * ((n * z).sum(-1, keepdim=True) - offset) * n


def fold_hyperplane(
    z: torch.Tensor, normal: torch.Tensor, offset: float | torch.Tensor = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """``F(z) = z - 2 max(0, <n, z> - c) n`` and the bit that it forgets, ``<n, z> > c`` [..., 1].

    ``z = where(bit, reflect(F, normal, offset), F)``.

    Args:
        z, normal, offset: as for :func:`reflect`.

    Returns:
        (F like z, bool [..., 1]).
    """
    _codes(z=z, normal=normal)
    n = _unit(normal)
    side = (n * z).sum(-1, keepdim=True) - offset
    return z - 2 * side.clamp(min=0) * n, side > 0


def equalise(a: torch.Tensor, b: torch.Tensor, radius: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """a and b with one norm, by default the root of the mean of their squares.

    Args:
        a, b: codes [..., d].
        radius: the norm of both.

    Returns:
        The pair, of their shapes.
    """
    _codes(a=a, b=b)
    common = ((_norm(a).square() + _norm(b).square()) / 2).sqrt() if radius is None else radius
    return rescale(a, common), rescale(b, common)


def counterpart(z: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """What z, seen as a kind of a, would be as a kind of b: its reflection over the bisecting hyperplane of a and b.

    The hyperplane is that of a and b with their norms made equal, so it goes through the origin:
    ``H z = z - 2 <n, z> n`` with ``n`` along ``a / |a| - b / |b|``. It swaps the directions of a and b, keeps everything
    orthogonal to their difference, is its own inverse, and keeps ``|z|`` and N(0, I) exactly. With a = b it returns z.

    Args:
        z, a, b: codes [..., d]; a and b may be means of codes.

    Returns:
        Like z.
    """
    _codes(z=z, a=a, b=b)
    return reflect(z, _unit(a) - _unit(b))


def crease_children(
    a: torch.Tensor, b: torch.Tensor, seeds: torch.Tensor | Sequence[int], *, spread: float = 1.0, radius: float | None = None
) -> torch.Tensor:
    """Codes on the crease between a and b: as far from one parent as from the other, with the norm of a parent.

    ``z = sqrt(r^2 - s^2) m / |m| + s u`` with m the midpoint of the parents of :func:`equalise` (norm r), u a random unit
    vector orthogonal to both, and ``s = spread sqrt(r^2 - |m|^2)``. ``spread=1`` gives ``m + s u``; ``spread=0`` gives the
    middle of the :func:`slerp`, one child for every seed.

    Args:
        a, b: codes [d], d at least 3.
        seeds: int64 [N], a child for each.
        spread: 0 to 1.
        radius: the norm; by default that of :func:`equalise`.

    Returns:
        [N, d]; copies of a where a = b.

    Raises:
        ValueError: codes of another shape, or a spread out of [0, 1].
    """
    _codes(a=a, b=b)
    if a.dim() != 1 or b.dim() != 1 or len(a) < 3:
        raise ValueError(f"a and b must be codes [d] with d >= 3, got {tuple(a.shape)} and {tuple(b.shape)}")
    if not 0 <= check_finite("spread", spread) <= 1:
        raise ValueError(f"spread must be in [0, 1], got {spread}")
    a, b = equalise(a, b, radius)
    normal, middle = _unit(a - b), (a + b) / 2
    towards = _unit(middle)
    u = randn(seeds, (len(a),), stream=LATENT_TOOLS_STREAM, device=a.device).to(a)
    for _ in range(2):  # once leaves rounding errors of the size of what was taken away
        for direction in (normal, towards):
            u = u - (u * direction).sum(-1, keepdim=True) * direction
        u = _unit(u)

    def square(v: torch.Tensor) -> torch.Tensor:
        return (v * v).sum()

    s = spread * ((a - b) / 2).norm()  # r^2 - |m|^2 = |(a - b) / 2|^2, without the cancellation
    if not square(middle):
        opposite: torch.Tensor = a.norm() * u
        return opposite
    result: torch.Tensor = (square(a) - s * s).clamp(min=0).sqrt() * towards + s * u
    return result


# --- fold and unfold by a reflection group


class ReflectionGroup(Protocol):
    """A finite group of orthogonal maps that is generated by reflections."""

    def fold(self, z: torch.Tensor) -> torch.Tensor:
        """The one point of z's orbit in the fundamental chamber."""

    def act(self, y: torch.Tensor, seeds: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """A uniformly drawn element of the group for each seed, applied: [..., d] -> [N, ..., d]."""


def _draw(seeds: torch.Tensor | Sequence[int], y: torch.Tensor, count: int) -> torch.Tensor:
    values = randn(seeds, (count,), stream=LATENT_TOOLS_STREAM, device=y.device)
    return values.reshape(len(values), *[1] * (y.dim() - 1), count)


@dataclass(frozen=True)
class SignFlips:
    """2^d sign changes; the chamber is the positive orthant, and the fold is abs."""

    def fold(self, z: torch.Tensor) -> torch.Tensor:
        return z.abs()

    def act(self, y: torch.Tensor, seeds: torch.Tensor | Sequence[int]) -> torch.Tensor:
        return torch.where(_draw(seeds, y, y.shape[-1]) < 0, -y, y)


@dataclass(frozen=True)
class Permutations:
    """d! permutations of the coordinates; the chamber is that of ascending values, and the fold is a sort."""

    def fold(self, z: torch.Tensor) -> torch.Tensor:
        return z.sort(-1).values

    def act(self, y: torch.Tensor, seeds: torch.Tensor | Sequence[int]) -> torch.Tensor:
        order = _draw(seeds, y, y.shape[-1]).argsort(-1)
        return y.expand(len(order), *y.shape).gather(-1, order.expand(len(order), *y.shape))


@dataclass(frozen=True, eq=False)
class Hyperplanes:
    """2^K reflections at K hyperplanes through the origin that stand upright on each other.

    Upright, they commute. Hyperplanes at odd angles generate an infinite group, which has no uniform element to draw.

    Attributes:
        normals: [K, d], orthonormal.
    """

    normals: torch.Tensor

    def __post_init__(self) -> None:
        _codes(normals=self.normals)
        if self.normals.dim() != 2 or len(self.normals) > self.normals.shape[1]:
            raise ValueError(f"normals must have shape [K, d] with K <= d, got {tuple(self.normals.shape)}")
        error = (self.normals @ self.normals.T - torch.eye(len(self.normals)).to(self.normals)).abs().max().item()
        if error > 1e-5:
            raise ValueError(f"normals must be orthonormal, got products up to {error:.2g} off; see Hyperplanes.random")

    @classmethod
    def random(cls, count: int, size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Hyperplanes:
        """``count`` hyperplanes of codes of ``size``, uniform among the upright ones."""
        if not 1 <= count <= size:
            raise ValueError(f"count must be in [1, {size}], got {count}")
        gaussian = randn([seed], (size, count), stream=LATENT_TOOLS_STREAM, dtype=torch.float64)[0]
        q, r = torch.linalg.qr(gaussian)
        return cls((q * r.diagonal().sign()).T.to(dtype).contiguous())

    def fold(self, z: torch.Tensor) -> torch.Tensor:
        return z - 2 * (z @ self.normals.T).clamp(min=0) @ self.normals

    def act(self, y: torch.Tensor, seeds: torch.Tensor | Sequence[int]) -> torch.Tensor:
        flipped = (_draw(seeds, y, len(self.normals)) < 0).to(y)
        return y - 2 * (flipped * (y @ self.normals.T)) @ self.normals


def variations(z: torch.Tensor, group: ReflectionGroup, seeds: torch.Tensor | Sequence[int]) -> torch.Tensor:
    """``w F(z)``: z folded into the group's chamber, then unfolded by a random element w for each seed.

    The results are uniform on z's orbit, whichever point of it z was, and N(0, I) where z is. All have the norm of z.

    Args:
        z: codes [..., d].
        group: :class:`SignFlips`, :class:`Permutations` or :class:`Hyperplanes`.
        seeds: int64 [N].

    Returns:
        [N, ..., d].
    """
    _codes(z=z)
    return group.act(group.fold(z), seeds)


# --- a fold that learns which concept a code shows


def discriminant(a: torch.Tensor, b: torch.Tensor, shrinkage: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """Fisher's linear discriminant of two sets of codes, as a hyperplane: unit normal [d], pointing to a, and offset.

    ``n`` along ``S^-1 (mean a - mean b)`` with S the mean of both covariances, shrunk to a multiple of the identity
    (Fisher 1936; Friedman 1989); the hyperplane halves the way between the means.

    Args:
        a, b: codes [N, d] and [M, d], at least two each.
        shrinkage: 0 (none) to 1 (the normal is the difference of the means).

    Returns:
        (normal [d], offset, 0-d), in the dtype of a.

    Raises:
        ValueError: other shapes, or a shrinkage out of its range.
    """
    _codes(a=a, b=b)
    if a.dim() != 2 or b.dim() != 2 or min(len(a), len(b)) < 2:
        raise ValueError(f"a and b must be codes [N, d] with N >= 2, got {tuple(a.shape)} and {tuple(b.shape)}")
    if not 0 <= check_finite("shrinkage", shrinkage) <= 1:
        raise ValueError(f"shrinkage must be in [0, 1], got {shrinkage}")
    within = (a.double().T.cov() + b.double().T.cov()) / 2
    size = a.shape[1]
    within = (1 - shrinkage) * within + shrinkage * within.trace() / size * torch.eye(size).to(within)
    means = a.double().mean(0), b.double().mean(0)
    normal = _unit(torch.linalg.lstsq(within, (means[0] - means[1])[:, None]).solution[:, 0])
    return normal.to(a), (normal @ (means[0] + means[1]) / 2).to(a)


class LearnedFold(torch.nn.Module):
    """A fold whose bit is the concept and whose folded code is what both share: ``fold(z) -> (code, bit)``.

    ``forward`` returns the folded code; :meth:`translate` flips the bit. The hyperplane is a parameter: start it at
    :func:`discriminant` (:meth:`between`) and train it with any loss, or with :meth:`fit`.

    Args:
        normal: [d], any length but 0.
        offset: along the unit normal; 0 keeps N(0, I) under :meth:`translate`.
    """

    def __init__(self, normal: torch.Tensor, offset: float | torch.Tensor = 0.0):
        super().__init__()
        _codes(normal=normal)
        if normal.dim() != 1 or not bool(normal.norm() > 0):
            raise ValueError(f"normal must be a vector [d] other than 0, got shape {tuple(normal.shape)}")
        self.normal = torch.nn.Parameter(normal.detach().clone())
        self.offset = torch.nn.Parameter(torch.as_tensor(offset).detach().to(normal).clone())

    @classmethod
    def between(cls, a: torch.Tensor, b: torch.Tensor, shrinkage: float = 0.1) -> LearnedFold:
        """At the linear discriminant of codes a [N, d] and b [M, d]; bit 1 is a."""
        return cls(*discriminant(a, b, shrinkage))

    def fold(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return fold_hyperplane(z, self.normal, self.offset)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.fold(z)[0]

    def unfold(self, code: torch.Tensor, bit: torch.Tensor) -> torch.Tensor:
        """The code with ``fold(code) == (code, bit)`` undone; code [..., d], bit [..., 1]."""
        return torch.where(bit, self.translate(code), code)

    def translate(self, z: torch.Tensor) -> torch.Tensor:
        """z with its bit flipped and its folded code kept: its reflection."""
        return reflect(z, self.normal, self.offset)

    def fit(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        *,
        steps: int = 300,
        lr: float = 0.02,
        sharpness: float = 2.0,
    ) -> LearnedFold:
        """Trains the hyperplane so that the bit tells a from b, and translated a's and b's lie among the others.

        The loss is ``mean softplus(-+ sharpness (<n, z> - c))`` over a and b, plus the energy distance (Szekely and Rizzo 2013)
        of translated a's from b's.

        Args:
            a, b: codes [N, d] and [M, d].
            steps, lr: of Adam.
            sharpness: of the logistic loss.
        """
        _codes(a=a, b=b)
        optimizer = torch.optim.Adam(self.parameters(), lr)

        def distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.cdist(x, y).mean()

        for _ in range(steps):
            n = _unit(self.normal)
            bit = softplus(-sharpness * (a @ n - self.offset)).mean() + softplus(sharpness * (b @ n - self.offset)).mean()
            moved = self.translate(a)  # a reflection: the distance of moved b's from a's is the same number
            energy = 2 * distance(moved, b) - distance(a, a) - distance(b, b)
            optimizer.zero_grad()
            (bit + energy).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return self
