"""Where a game is going: how far from its centre, how it turns, and the eigenvalues that decide whether it converges."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from pyfold._requirements import need
from pyfold.gan.dynamics import Dynamic, jacobian

_DENSE = 64


def _flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([t.detach().flatten().double() for t in tensors])


def _split(vector: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    pieces = torch.split(vector, [p.numel() for p in like])
    return [piece.reshape(p.shape).to(p) for piece, p in zip(pieces, like, strict=True)]


def game_eigenvalues(dynamic: Dynamic, count: int = 4) -> np.ndarray:
    """Eigenvalues of the Jacobian of the game's field (each player's gradient of its own loss), the largest first.

    With gradient flow the game moves along minus this field: it converges near a point where all real parts are positive,
    orbits where they are zero, and turns with the imaginary parts (Mescheder, Nowozin and Geiger 2017, section 3). A plain
    step of size h multiplies an eigendirection by ``1 - h lambda``.

    By products with the Jacobian: all of it for up to 64 parameters, else Arnoldi's iteration (ARPACK by scipy).

    Args:
        dynamic: any dynamic of the game; only its losses and parameters are used.
        count: how many, at least 1.

    Returns:
        complex128 [count], fewer if the game has fewer parameters.

    Raises:
        ValueError: a count below 1.

    Example:
        >>> x, y = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
        >>> players = torch.optim.SGD([x], 0.1), torch.optim.SGD([y], 0.1)
        >>> game = pyfold.gan.DYNAMICS["simultaneous"](players, lambda: ((x * y).sum(), -(x * y).sum()))
        >>> sorted(game_eigenvalues(game, 2).imag.round(6).tolist())  # imaginary alone: it orbits
        [-1.0, 1.0]
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"count must be an int of at least 1, got {count!r}")
    gradients, _ = dynamic._gradients(graph=True)
    field = [g for gradient in gradients for g in gradient]
    where = [p for parameters in dynamic.parameters for p in parameters]
    size = sum(p.numel() for p in where)

    def product(vector: np.ndarray) -> np.ndarray:
        direction = _split(torch.from_numpy(np.ascontiguousarray(vector, dtype=np.float64)).to(where[0].device), where)
        return _flat(jacobian(field, where, direction, keep=True)).cpu().numpy()

    if size <= max(_DENSE, count + 1):
        values = np.linalg.eigvals(np.stack([product(e) for e in np.eye(size)], 1))
    else:
        linalg = need("scipy.sparse.linalg", "examples")
        operator = linalg.LinearOperator((size, size), matvec=product, dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(size)
        values = linalg.eigs(operator, k=count, which="LM", v0=start, return_eigenvectors=False)
    return values[np.argsort(-np.abs(values), kind="stable")][:count].astype(np.complex128)


class GameMonitor:
    """The radius of the players' path and how far it turned, around a centre.

    Args:
        dynamic: whose parameters are watched.
        centre: each parameter's value at the centre, in the order of ``dynamic.parameters``, flattened together; by default
            all zeros.
    """

    def __init__(self, dynamic: Dynamic, centre: torch.Tensor | None = None):
        self.parameters = [p for parameters in dynamic.parameters for p in parameters]
        size = sum(p.numel() for p in self.parameters)
        if centre is not None and centre.numel() != size:
            raise ValueError(f"centre must hold {size} values, one for each parameter, got {centre.numel()}")
        self.centre = torch.zeros(size, dtype=torch.float64) if centre is None else centre.detach().double().flatten().cpu()
        self._last = self._place()

    def _place(self) -> torch.Tensor:
        return _flat(self.parameters).cpu() - self.centre

    def measure(self) -> dict[str, float]:
        """``radius``: the distance to the centre; ``growth``: its ratio to the one measured before; ``rotation``: the angle
        between the two places seen from the centre, in radians in [0, pi]. NaN where a radius is zero."""
        here, before = self._place(), self._last
        self._last = here
        radius, old = here.norm().item(), before.norm().item()
        if radius == 0 or old == 0:
            return {"radius": radius, "growth": math.nan, "rotation": math.nan}
        # The angle by both chords: acos of the cosine loses half the digits where the angle is small.
        a, b = here / radius, before / old
        return {"radius": radius, "growth": radius / old, "rotation": 2 * math.atan2((a - b).norm(), (a + b).norm())}
