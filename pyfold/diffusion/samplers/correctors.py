"""Predictor-correctors of one evaluation a step: the prediction at a point also corrects the state that led there.

The corrected state is the predicted one plus terms in the x0 known so far, so corrector and the next predictor are one
affine map, and neither the state nor the noise of the step before has to be kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from pyfold.diffusion.integrals import lagrange_integrals
from pyfold.diffusion.plan import Builder, Plan
from pyfold.diffusion.samplers.ancestral import Spacing
from pyfold.diffusion.samplers.exponential import decay, growth
from pyfold.diffusion.samplers.orders import check_order, regular, usable_order
from pyfold.diffusion.schedules import Point, Schedule
from pyfold.diffusion.spacings import choose_points


def _check_interpolated(interpolated: str, points: list[Point]) -> None:
    if interpolated not in ("x0", "epsilon"):
        raise ValueError(f"interpolated must be 'x0' or 'epsilon', got {interpolated!r}")
    if interpolated == "epsilon" and points[0].alpha == 0:
        raise ValueError("interpolated must be 'x0' for a spacing that starts at pure noise (alpha 0), got 'epsilon'")


def unipc_weights(points: list[Point], order: int, variant: str, interpolated: str) -> tuple[np.ndarray, np.ndarray]:
    """(predictor, corrector) coefficients of u at points there, here, before, ... (Zhao et al. 2023, theorem 3.1)."""
    there, here = points[:2]
    h = there.lam - here.lam
    # z is the exponent of what u is integrated against, from one end of the step to the other.
    z, size = (-h, there.alpha) if interpolated == "x0" else (h, there.sigma)
    plain = (decay(here, there) if interpolated == "x0" else growth(here, there))[1]
    r = np.array([(point.lam - here.lam) / h for point in points[2 : order + 1]] + [1.0])
    scale = z if variant == "bh1" else math.expm1(z)
    target, phi, factorial = [], math.expm1(z) / z - 1, 1.0
    for k in range(1, order + 1):
        target.append(phi * factorial / scale)
        factorial *= k + 1
        phi = phi / z - 1 / factorial
    powers = np.array([r**k for k in range(order)])

    def weights(rho: np.ndarray) -> np.ndarray:
        """From those of the divided differences ``(m_k - m_0) / r_k``."""
        result = np.zeros(order + 1)
        for value, ratio, k in zip(rho, r, [*range(2, order + 1), 0], strict=True):
            if value == 0:
                continue  # no term, also where the step to zero noise makes B(h) infinite
            result[k] -= size * scale * value / ratio
            result[1] += size * scale * value / ratio
        result[1] += plain
        return result

    corrector = np.linalg.solve(powers, target) if order > 1 else np.array([0.5])
    predictor = np.zeros(order)
    if order == 2:
        predictor[0] = 0.5
    elif order > 2:
        predictor[:-1] = np.linalg.solve(powers[:-1, :-1], target[:-1])
    return weights(predictor), weights(corrector)


def _run(
    build: Builder,
    points: list[Point],
    decays: Callable[[Point, Point], tuple[float, float, float]],
    weights: Callable[[int], tuple[np.ndarray, np.ndarray]],
) -> None:
    """Rows from each step's weights of u at the point it leads to, the one it starts from, and earlier ones."""
    correction = np.zeros(1)
    for i, (here, there) in enumerate(pairwise(points)):
        a, _, noise = decays(here, there)
        predictor, corrector = weights(i)
        # The state here becomes x + correction of (u, u_{-1}, ...), then a of that, plus the predictor.
        terms = np.zeros(max(len(correction), len(predictor) - 1))
        terms[: len(correction)] += a * correction
        terms[: len(predictor) - 1] += predictor[1:]
        c_u, *b = (float(c) for c in terms)
        while b and b[-1] == 0:
            b.pop()
        build.stage(here, a=a, c_u=c_u, b=b, noise=noise)
        correction = np.zeros(max(len(corrector), len(predictor)))
        correction[: len(corrector)] += corrector
        correction[: len(predictor)] -= predictor


def unipc(
    schedule: Schedule,
    steps: int = 20,
    *,
    prediction: str = "epsilon",
    order: int = 2,
    variant: str = "bh2",
    interpolated: str = "x0",
    final_order: int | None = 1,
    clip: float | None = None,
    spacing: Spacing = "trailing",
) -> Plan:
    """Unified predictor-corrector (Zhao et al. 2023, algorithms 5 to 8): order ``order`` + 1 for one evaluation a step.

    Args:
        schedule, steps, prediction, clip, spacing: as for :func:`pyfold.diffusion.euler`.
        order: from 1 to 4.
        variant: "bh1" or "bh2", the function B(h).
        interpolated: "x0" or "epsilon", the paper's data and noise prediction, whatever the model predicts.
        final_order: highest order of the last step, one more of the one before, and so on; None for no limit.
    """
    check_order(order, 4)
    check_order(order if final_order is None else final_order, 4, "final_order")
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"variant must be 'bh1' or 'bh2', got {variant!r}")
    points = choose_points(schedule, steps, spacing)
    _check_interpolated(interpolated, points)
    build = Builder(schedule, prediction, clip, interpolated)
    linear = decay if interpolated == "x0" else lambda here, there: (*growth(here, there), 0.0)

    def weights(i: int) -> tuple[np.ndarray, np.ndarray]:
        if not regular(points[i : i + 2]):
            plain = np.array([0.0, linear(points[i], points[i + 1])[1]])
            return plain, plain
        newest_first = points[i + 1 :: -1]
        return unipc_weights(newest_first, usable_order(points, i, order, final_order), variant, interpolated)

    _run(build, points, linear, weights)
    return build.plan("unipc")


def adams_weights(here: Point, there: Point, eta: float, nodes: list[float], interpolated: str) -> np.ndarray:
    """Of x0: ``alpha' (1 + eta) integral of exp(-(1 + eta) (lambda' - lambda)) L_j(lambda)``; of epsilon:

    ``-sigma' (1 + eta) integral of exp(lambda' - lambda) L_j(lambda)`` (Xue et al. 2023, eq. 14, 17 and appendix).
    """
    size, rate = (there.alpha, 1 + eta) if interpolated == "x0" else (-there.sigma, -1.0)
    damping = lambda lam: (1 + eta) * np.exp(rate * (lam - there.lam))  # noqa: E731
    return size * np.array(lagrange_integrals(nodes, here.lam, there.lam, damping))


def _noised_growth(here: Point, there: Point, eta: float) -> tuple[float, float, float]:
    """(of x, of epsilon, of noise) in one step of constant epsilon; one to zero noise is the flow's."""
    a, of_epsilon = growth(here, there)
    if there.sigma == 0:
        return a, of_epsilon, 0.0
    return a, (1 + eta) * of_epsilon, there.sigma * math.sqrt(eta * math.expm1(2 * (there.lam - here.lam)))


def adams_adjustment(here: Point, there: Point, eta: float) -> float:
    """What the authors' code adds to order 2 for few steps, of O(h^3), as a part of h dx0 / dlambda."""
    h = there.lam - here.lam
    exact = (h * (1 + eta) + math.expm1(-(1 + eta) * h)) / (1 + eta) ** 2
    return (1 + eta) * there.alpha * (h / 2 - exact / h)


def sa_solver(
    schedule: Schedule,
    steps: int = 20,
    *,
    prediction: str = "epsilon",
    predictor_order: int = 2,
    corrector_order: int = 2,
    tau: float | Callable[[Point], float] = 1.0,
    adjusted: bool = True,
    interpolated: str = "x0",
    final_order: int | None = 1,
    clip: float | None = None,
    spacing: Spacing = "trailing",
) -> Plan:
    """Stochastic Adams solver (Xue et al. 2023, algorithm 1): exponential Adams-Bashforth, then Adams-Moulton.

    Args:
        schedule, steps, prediction, clip, spacing: as for :func:`pyfold.diffusion.euler`.
        predictor_order: values of x0 that the predictor interpolates, from 1 to 4.
        corrector_order: values of x0 that the corrector interpolates, the new one included, from 1 to 4; 0 for none.
        tau: strength of the noise, 0 for the flow and 1 for the reverse SDE, or a function of the step's first point.
        adjusted: the authors' change of order 2 for few steps, which they make on x0 only.
        interpolated: "x0" or "epsilon", the paper's data and noise parametrization, whatever the model predicts.
        final_order: highest predictor order of the last step, one more of the one before, and so on; None for no limit.
    """
    check_order(predictor_order, 4, "predictor_order")
    if corrector_order != 0:
        check_order(corrector_order, 4, "corrector_order")
    check_order(predictor_order if final_order is None else final_order, 4, "final_order")
    points = choose_points(schedule, steps, spacing)
    _check_interpolated(interpolated, points)
    build = Builder(schedule, prediction, clip, interpolated)
    linear = decay if interpolated == "x0" else _noised_growth
    adjusted = adjusted and interpolated == "x0"
    etas = {here: float(tau(here) if callable(tau) else tau) ** 2 for here in points[:-1]}
    if not all(0 <= eta < math.inf for eta in etas.values()) or (not callable(tau) and tau < 0):
        raise ValueError(f"tau must be finite and from 0, got {tau}")

    def weights(i: int) -> tuple[np.ndarray, np.ndarray]:
        here, there = points[i], points[i + 1]
        eta = etas[here]
        if not regular([here, there]):
            plain = np.array([0.0, linear(here, there, eta)[1]])
            return plain, plain
        known = [p.lam for p in points[: i + 1][::-1]]
        bashforth = usable_order(points, i, predictor_order, final_order)
        predictor = np.array([0.0, *adams_weights(here, there, eta, known[:bashforth], interpolated)])
        if adjusted and bashforth == 2:
            change = adams_adjustment(here, there, eta) * (there.lam - here.lam) / (here.lam - known[1])
            predictor += [0.0, change, -change]
        if corrector_order == 0:
            return predictor, predictor
        past = usable_order(points, i, corrector_order - 1, final_order) if corrector_order > 1 else 0
        corrector = adams_weights(here, there, eta, [there.lam, *known[:past]], interpolated)
        if adjusted and past == 1:
            change = adams_adjustment(here, there, eta)
            corrector += [change, -change]
        return predictor, corrector

    _run(build, points, lambda here, there: linear(here, there, etas[here]), weights)
    return build.plan("sa_solver")
