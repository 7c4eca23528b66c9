"""Between what a network predicts and what a formula needs: x0, epsilon, v, flow velocity, score and F, from each other.

Every prediction is ``m = A x0 + B eps``; with ``x = alpha x0 + sigma eps`` that is two equations for x0 and eps, so one
formula converts them all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pyfold.ops import TARGETS


def _score(alpha: Any, sigma: Any, data_std: float) -> tuple[Any, Any]:
    """``grad log p = -eps / sigma`` (Song et al. 2021, section 3.3)."""
    return 0.0 * alpha, -1 / sigma


def _edm_f(alpha: Any, sigma: Any, data_std: float) -> tuple[Any, Any]:
    """``x0 = c_skip x / alpha + c_out F`` with c_skip and c_out at sigma / alpha (Karras et al. 2022, eq. 7, table 1)."""
    norm = ((alpha * data_std) ** 2 + sigma**2) ** 0.5
    return sigma / (data_std * norm), -alpha * data_std / norm


def _trigflow(alpha: Any, sigma: Any, data_std: float) -> tuple[Any, Any]:
    """``data_std F = cos(t) data_std eps - sin(t) x0`` (Lu and Song 2025, section 3.1): EDM's F with its sign changed."""
    of_x0, of_epsilon = _edm_f(alpha, sigma, data_std)
    return -of_x0, -of_epsilon


def _of_target(target: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[Any, Any, float], tuple[Any, Any]]:
    return lambda alpha, sigma, data_std: target(alpha, sigma)


#: (coefficient of x0, coefficient of epsilon) from alpha, sigma and the standard deviation of the data.
PREDICTIONS: dict[str, Callable[[Any, Any, float], tuple[Any, Any]]] = {
    **{name: _of_target(target) for name, target in TARGETS.items()},
    "score": _score,
    "F": _edm_f,
    "trigflow": _trigflow,
}


def check_prediction(name: str, value: str) -> None:
    """One of ``PREDICTIONS``."""
    if not isinstance(value, str) or value not in PREDICTIONS:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, PREDICTIONS))}, got {value!r}")


def determines_x0(prediction: str) -> bool:
    """Whether it does at pure noise, where alpha is 0; epsilon and the score do not."""
    check_prediction("prediction", prediction)
    return bool(PREDICTIONS[prediction](0.0, 1.0, 1.0)[0] != 0)


def _has_zero(value: Any) -> bool:
    """Not looked into on a device, where that would wait for it, nor by the compiler."""
    if isinstance(value, torch.Tensor) and (value.device.type != "cpu" or torch.compiler.is_compiling()):
        return False
    return bool((value == 0).any()) if hasattr(value, "any") else value == 0


def convert(prediction: str, wanted: str, alpha: Any, sigma: Any, data_std: float = 1.0) -> tuple[Any, Any]:
    """(r, s) with ``wanted = r x + s m`` where m is the network's prediction.

    Args:
        prediction, wanted: names in ``PREDICTIONS``.
        alpha, sigma: float64 numbers or arrays; their schedule's values at the time of x.
        data_std: standard deviation of the data, for "F" and "trigflow".

    Returns:
        r and s, float64.

    Raises:
        ValueError: an unknown name, or a prediction that says nothing about ``wanted`` there, such as epsilon about x0
            where alpha is 0.

    Example:
        >>> convert("epsilon", "x0", alpha=0.5, sigma=0.75)  # x0 = (x - 0.75 eps) / 0.5
        (2.0, -1.5)
    """
    check_prediction("prediction", prediction)
    check_prediction("wanted", wanted)
    if prediction == wanted:
        return 0.0 * alpha, 1.0 + 0.0 * alpha
    of_x0, of_epsilon = PREDICTIONS[prediction](alpha, sigma, data_std)
    want_x0, want_epsilon = PREDICTIONS[wanted](alpha, sigma, data_std)
    determinant = alpha * of_epsilon - sigma * of_x0
    if _has_zero(determinant):
        raise ValueError(f"a prediction of {prediction} does not determine {wanted} at alpha {alpha}, sigma {sigma}")
    # x0 = (B x - sigma m) / det, eps = (alpha m - A x) / det
    from_x = (want_x0 * of_epsilon - want_epsilon * of_x0) / determinant
    from_model = (want_epsilon * alpha - want_x0 * sigma) / determinant
    return from_x, from_model
