"""Predictor-correctors: the prediction at a point also corrects the state that led there.

The corrected state is the predicted one plus terms in the x0 known so far, so neither the state nor the noise of the step
before has to be kept; with one evaluation a step (PEC) corrector and the next predictor are one affine map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from pyfold.diffusion.formulas import Form, H, N, Step, U, X, weighted
from pyfold.diffusion.integrals import lagrange_integrals
from pyfold.diffusion.samplers._declare import Past, Steps, alias, regular, sampler
from pyfold.diffusion.samplers.exponential import decay, growth
from pyfold.diffusion.schedule import Point


def unipc_weights(points: Sequence[Point], order: int, variant: str, interpolated: str) -> tuple[Any, Any]:
    """(predictor, corrector) coefficients of u at points there, here, before, ... (Zhao et al. 2023, theorem 3.1)."""
    there, here = points[:2]
    h = there.lam - here.lam
    # z is the exponent of what u is integrated against, from one end of the step to the other.
    z, size = (-h, there.alpha) if interpolated == "x0" else (h, there.sigma)
    whole = (decay(here, there) if interpolated == "x0" else growth(here, there))[1]
    r = np.array([(point.lam - here.lam) / h for point in points[2 : order + 1]] + [1.0])
    scale = z if variant == "bh1" else np.expm1(z)
    target, phi, factorial = [], np.expm1(z) / z - 1, 1.0
    for k in range(1, order + 1):
        target.append(phi * factorial / scale)
        factorial *= k + 1
        phi = phi / z - 1 / factorial
    powers = np.array([r**k for k in range(order)])

    def weights(rho: Any) -> Any:
        """From those of the divided differences ``(m_k - m_0) / r_k``."""
        result = np.zeros(order + 1)
        for value, ratio, k in zip(rho, r, [*range(2, order + 1), 0], strict=True):
            if value == 0:
                continue  # no term, also where the step to zero noise makes B(h) infinite
            result[k] -= size * scale * value / ratio
            result[1] += size * scale * value / ratio
        result[1] += whole
        return result

    corrector = np.linalg.solve(powers, target) if order > 1 else np.array([0.5])
    predictor = np.zeros(order)
    if order == 2:
        predictor[0] = 0.5
    elif order > 2:
        predictor[:-1] = np.linalg.solve(powers[:-1, :-1], target[:-1])
    return weights(predictor), weights(corrector)


class Method(NamedTuple):
    """A predictor-corrector: coefficients of a step.

    Attributes:
        linear: (of x, of constant u, of noise).
        weights: (predictor, corrector) of u at the point that the step leads to, the one it starts from, and earlier ones.
    """

    linear: Callable[[Past], tuple[Any, Any, Any]]
    weights: Callable[[Past], tuple[Any, Any]]

    def step(self, past: Past, corrects: bool = True) -> Step:
        """The next prediction from the corrected state: x and terms in u, u_{-1}, ..."""
        change = self._change(past.back()) if len(past) and corrects else Form()
        return Step(self._predicted(past, X + change, (U, *H)))

    def _predicted(self, past: Past, x: Form, us: Sequence[Form]) -> Form:
        a, _, noise = self.linear(past)
        end: Form = x * a + weighted(us, self.weights(past)[0][1:]) + N * noise
        return end

    def _change(self, past: Past) -> Form:
        """From a step's predicted end to its corrected one, with U at that end."""
        predictor, corrector = (weighted((U, *H), weights) for weights in self.weights(past))
        return corrector - predictor

    def step_evaluated_twice(self, past: Past) -> Steps:
        """The prediction, then, but at an infinite lambda, its correction: U of the prediction is kept until the next step,
        whose own, of the corrected state, takes its place."""
        again = len(past) > 0 and regular([past[0], past.here])
        first = Step(self._predicted(past, X, (U, *H[1:]) if again else (U, *H)), overwrites=again)
        if not regular([past.here, past.there]):
            return first
        return first, Step(X + self._change(past), at=past.there)

    def corrected(self, past: Past, x: Form, us: Sequence[Form]) -> Form:
        """The end of a step from x alone, of u there, here and before."""
        end: Form = x * self.linear(past)[0] + weighted(us, self.weights(past)[1])
        return end


_corrector = partial(
    sampler, 20, keeps="interpolated", spacing="trailing", needs_signal=lambda options: options["interpolated"] == "epsilon",
    final_order=(1, 4), interpolated=("x0", "epsilon"),
)  # fmt: skip


@_corrector(
    source="Zhao et al. 2023, algorithms 5 to 8",
    order=(1, 4),
    variant=("bh1", "bh2"),
    texts={
        "variant": "the function B(h).",
        "interpolated": "the paper's data and noise prediction, whatever the model predicts.",
    },
)
def unipc(
    here: Point,
    there: Point,
    past: Past,
    *,
    order: int = 2,
    variant: str = "bh2",
    interpolated: str = "x0",
    final_order: int | None = 1,
) -> Step:
    """Unified predictor-corrector: order ``order`` + 1 for one evaluation a step."""
    return unipc_method(order, variant, interpolated, final_order).step(past)


def unipc_method(order: int, variant: str, interpolated: str, final_order: int | None, limits: bool = True) -> Method:
    """``limits``: a step from or to an infinite lambda takes the limit; else diffusers' weights, finite or not."""

    def linear(step: Past) -> tuple[Any, Any, Any]:
        ends = step.here, step.there
        return decay(*ends) if interpolated == "x0" else (*growth(*ends), 0.0)

    def weights(step: Past) -> tuple[Any, Any]:
        if limits and not regular([step.here, step.there]):
            whole = np.array([0.0, linear(step)[1]])
            return whole, whole
        levels = [step.there, step.here, *(step[j] for j in range(len(step)))]
        return unipc_weights(levels, step.order(order, final_order) if limits else order, variant, interpolated)

    return Method(linear, weights)


def adams_weights(here: Point, there: Point, eta: float, nodes: list[Any], interpolated: str) -> Any:
    """Of x0: ``alpha' (1 + eta) integral of exp(-(1 + eta) (lambda' - lambda)) L_j(lambda)``; of epsilon:

    ``-sigma' (1 + eta) integral of exp(lambda' - lambda) L_j(lambda)`` (Xue et al. 2023, eq. 14, 17 and appendix).
    """
    size, rate = (there.alpha, 1 + eta) if interpolated == "x0" else (-there.sigma, -1.0)
    damping = lambda lam: (1 + eta) * np.exp(rate * (lam - there.lam))  # noqa: E731
    return size * np.array(lagrange_integrals(nodes, here.lam, there.lam, damping))


def adams_adjustment(here: Point, there: Point, eta: float) -> Any:
    """What the authors' code adds to order 2 for few steps, of O(h^3), as a part of h dx0 / dlambda."""
    h = there.lam - here.lam
    exact = (h * (1 + eta) + np.expm1(-(1 + eta) * h)) / (1 + eta) ** 2
    return (1 + eta) * there.alpha * (h / 2 - exact / h)


def _strength(tau: float | Callable[[Point], float], point: Point) -> float:
    """eta, the square of tau."""
    value = float(tau(point) if callable(tau) else tau)
    if not 0 <= value**2 < math.inf or (value < 0 and not callable(tau)):
        raise ValueError(f"tau must be finite and from 0, got {tau}")
    return value**2


_adams = partial(
    _corrector,
    predictor_order=(1, 4),
    texts={
        "predictor_order": "values of x0 that the predictor interpolates.",
        "corrector_order": "values of x0 that the corrector interpolates, the new one included; 0, in `sa_solver`, for none.",
        "tau": "strength of the noise, 0 for the flow and 1 for the reverse SDE, or a function of the step's first point.",
        "adjusted": "the change of order 2 for few steps in the authors' code, on x0 only. Without bound in long steps, it is "
        "unstable there: 20 steps on edm() end at a variance of 3.1 for .49, without it .74.",
        "interpolated": "the paper's data and noise parametrization, whatever the model predicts.",
    },
)


@_adams(source="Xue et al. 2023, algorithm 1", corrector_order=(0, 4))
def sa_solver(
    here: Point,
    there: Point,
    past: Past,
    *,
    predictor_order: int = 2,
    corrector_order: int = 2,
    tau: float | Callable[[Point], float] = 1.0,
    adjusted: bool = False,
    interpolated: str = "x0",
    final_order: int | None = 1,
) -> Step:
    """Stochastic Adams solver: exponential Adams-Bashforth, then Adams-Moulton."""
    return adams_method(predictor_order, corrector_order, tau, adjusted, interpolated, final_order).step(past)


@_adams(source="Xue et al. 2023, algorithm 1; the corrected state is evaluated, too", corrector_order=(1, 4))
def sa_solver_pece(
    here: Point,
    there: Point,
    past: Past,
    *,
    predictor_order: int = 2,
    corrector_order: int = 2,
    tau: float | Callable[[Point], float] = 1.0,
    adjusted: bool = False,
    interpolated: str = "x0",
    final_order: int | None = 1,
) -> Steps:
    """SA-Solver that predicts, evaluates, corrects and evaluates (PECE): two evaluations a step but the last."""
    method = adams_method(predictor_order, corrector_order, tau, adjusted, interpolated, final_order)
    return method.step_evaluated_twice(past)


def adams_method(
    predictor_order: int,
    corrector_order: int,
    tau: float | Callable[[Point], float],
    adjusted: bool,
    interpolated: str,
    final_order: int | None,
) -> Method:
    on_x0 = interpolated == "x0"

    def linear(step: Past) -> tuple[Any, Any, Any]:
        eta = _strength(tau, step.here)
        if on_x0:
            return decay(step.here, step.there, eta)
        a, of_epsilon = growth(step.here, step.there)
        if step.there.sigma == 0:
            return a, of_epsilon, 0.0
        h = step.there.lam - step.here.lam
        return a, (1 + eta) * of_epsilon, step.there.sigma * np.sqrt(eta * np.expm1(2 * h))

    def weights(step: Past) -> tuple[Any, Any]:
        here, there, eta = step.here, step.there, _strength(tau, step.here)
        if not regular([here, there]):
            whole = np.array([0.0, linear(step)[1]])
            return whole, whole
        lambdas = [p.lam for p in (here, *(step[j] for j in range(len(step))))]
        bashforth = step.order(predictor_order, final_order)
        predictor = np.array([0.0, *adams_weights(here, there, eta, lambdas[:bashforth], interpolated)])
        if adjusted and on_x0 and bashforth == 2:
            change = adams_adjustment(here, there, eta) * (there.lam - here.lam) / (here.lam - lambdas[1])
            predictor += [0.0, change, -change]
        if corrector_order == 0:
            return predictor, predictor
        moulton = step.order(corrector_order - 1, final_order) if corrector_order > 1 else 0
        corrector = adams_weights(here, there, eta, [there.lam, *lambdas[:moulton]], interpolated)
        if adjusted and on_x0 and moulton == 1:
            change = adams_adjustment(here, there, eta)
            corrector += [change, -change]
        return predictor, corrector

    return Method(linear, weights)


alias("uni_pc", unipc, "ComfyUI", variant="bh1")
alias("uni_pc_bh2", unipc, "ComfyUI")
