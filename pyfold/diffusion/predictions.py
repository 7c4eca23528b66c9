"""Between what a network predicts and what a formula needs: x0, epsilon, v, flow velocity, from each other.

Every prediction is ``m = A x0 + B eps`` with the (A, B) of ``pyfold.ops.TARGETS``; with ``x = alpha x0 + sigma eps`` that is
two equations for x0 and eps, so one formula converts them all.
"""

from __future__ import annotations

from typing import Any

from pyfold.ops import TARGETS


def convert(prediction: str, wanted: str, alpha: Any, sigma: Any) -> tuple[Any, Any]:
    """(r, s) with ``wanted = r x + s m`` where m is the network's prediction.

    Args:
        prediction, wanted: names in ``pyfold.ops.TARGETS``.
        alpha, sigma: float64 numbers or arrays; their schedule's values at the time of x.

    Raises:
        ValueError: an unknown name, or a prediction that says nothing about ``wanted`` there, such as epsilon about x0
            where alpha is 0.
    """
    for name, value in (("prediction", prediction), ("wanted", wanted)):
        if value not in TARGETS:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, TARGETS))}, got {value!r}")
    of_x0, of_epsilon = TARGETS[prediction](alpha, sigma)
    want_x0, want_epsilon = TARGETS[wanted](alpha, sigma)
    if prediction == wanted:
        return 0.0 * alpha, 1.0 + 0.0 * alpha
    determinant = alpha * of_epsilon - sigma * of_x0
    if (determinant == 0).any() if hasattr(determinant, "any") else determinant == 0:
        raise ValueError(f"a prediction of {prediction} does not determine {wanted} at alpha {alpha}, sigma {sigma}")
    # x0 = (B x - sigma m) / det, eps = (alpha m - A x) / det
    from_x = (want_x0 * of_epsilon - want_epsilon * of_x0) / determinant
    from_model = (want_epsilon * alpha - want_x0 * sigma) / determinant
    return from_x, from_model
