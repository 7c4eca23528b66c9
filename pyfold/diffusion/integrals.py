"""Integrals of interpolating polynomials: the coefficients of every multistep method."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)


def lagrange_integrals(
    nodes: Sequence[float], low: float, high: float, weight: Callable[[np.ndarray], np.ndarray] | None = None
) -> list[float]:
    """``integral from low to high of weight(s) L_j(s) ds`` for each node's Lagrange polynomial L_j.

    Gauss-Legendre with 32 nodes: exact without a weight, to rounding with an exponential over the length of a step.
    """
    s = (low + high) / 2 + (high - low) / 2 * _NODES
    measure = (high - low) / 2 * _WEIGHTS * (1.0 if weight is None else weight(s))
    result = []
    for j, node in enumerate(nodes):
        basis = np.ones_like(s)
        for k, other in enumerate(nodes):
            if k != j:
                basis = basis * (s - other) / (node - other)
        result.append(float(measure @ basis))
    return result
