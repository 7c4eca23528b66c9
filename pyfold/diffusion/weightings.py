"""Weights of the training loss, each written for the squared error of x0 and carried over to the model's own prediction.

At a given x an error in x0 is one in ``m = A x0 + B eps`` times ``A - B alpha / sigma``, so the weight of the one is that of
the other over its square. The exception is "simple", which is 1 whatever the model predicts.

At the ends of a schedule, where alpha or sigma is 0, a weight is its limit, which may be infinite. All of these are rational
in alpha and sigma, so the limit is their value a hair's breadth away, to all digits of a float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from pyfold.diffusion.predictions import PREDICTIONS
from pyfold.diffusion.schedule import Schedule

#: alpha and sigma at an end of a schedule: its square, and the inverse of that, are still ordinary numbers.
_NEARLY_ZERO = 1e-70
#: No weight of a schedule's inside is as large; at an end it is what grows without bound.
_INFINITE = 1e60


def _snr(alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return (alpha / sigma) ** 2


def _inside(alpha: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma in float64, neither of them 0."""
    return alpha.to(torch.float64).clamp(min=_NEARLY_ZERO), sigma.to(torch.float64).clamp(min=_NEARLY_ZERO)


def _slope(value: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    if not value.requires_grad:  # alpha of a variance-exploding schedule, for one
        return torch.zeros_like(t)
    return torch.autograd.grad(value.sum(), t, retain_graph=True)[0]


def vlb(schedule: Schedule, t: torch.Tensor) -> torch.Tensor:
    """The variational bound's, in nats a step (discrete) or a unit of time (continuous).

    ``beta_t / (2 (1 - beta_t) (1 - alpha_bar_t))`` for epsilon, the variance of the reverse steps being beta_t (Ho et al. 2020,
    eq. 12), or ``-d snr / dt / 2`` for x0 (Kingma et al. 2021, eq. 17).
    """
    alpha, sigma = _inside(*schedule.coefficients(t))
    if not schedule.steps:
        with torch.enable_grad():
            t = t.detach().to(torch.float64).requires_grad_()
            of_alpha, of_sigma = (_slope(c, t) for c in schedule.coefficients(t))
        return _snr(alpha, sigma) * (of_sigma / sigma - of_alpha / alpha)
    before = torch.where(t > 0, schedule.coefficients((t - 1).clamp(min=0))[0], 1.0)
    keep = (alpha / before) ** 2
    return (1 - keep) / (2 * keep * sigma**2) * _snr(alpha, sigma)


#: Weight of the squared error of x0, from (schedule, t, alpha, sigma).
WEIGHTINGS: dict[str, Callable[..., Any]] = {
    # Ho et al. 2020, eq. 14: the prediction itself, unweighted.
    "simple": lambda schedule, t, alpha, sigma: None,
    # Of epsilon, unweighted, whatever is predicted (Salimans and Ho 2022, section 4).
    "snr": lambda schedule, t, alpha, sigma: _snr(alpha, sigma),
    # Hang et al. 2023, eq. 5.
    "min_snr": lambda schedule, t, alpha, sigma, gamma=5.0: _snr(alpha, sigma).clamp(max=gamma),
    # Crowson et al. 2024, section 4.2.
    "soft_min_snr": lambda schedule, t, alpha, sigma: 1 / ((sigma / alpha) ** 2 + schedule.data_std**2),
    # Karras et al. 2022, section 5: F, unweighted.
    "edm": lambda schedule, t, alpha, sigma: _snr(alpha, sigma) + schedule.data_std**-2,
    # Choi et al. 2022, eq. 8, on top of epsilon's.
    "p2": lambda schedule, t, alpha, sigma, gamma=1.0, k=1.0: _snr(alpha, sigma) / (k + _snr(alpha, sigma)) ** gamma,
    "vlb": lambda schedule, t, alpha, sigma: vlb(schedule, t),
    # Esser et al. 2024, as diffusers has them for SD3, of the flow velocity: sigma^-2, and pi's cosine map (section 3.1).
    "sigma_sqrt": lambda schedule, t, alpha, sigma: (sigma / (alpha + sigma)) ** -2 * (1 + alpha / sigma) ** 2,
    "cosmap": lambda schedule, t, alpha, sigma: (
        2 * (alpha + sigma) ** 2 / (math.pi * (alpha**2 + sigma**2)) * (1 + alpha / sigma) ** 2
    ),
}


def weight_of_prediction(
    weighting: str | Callable[..., Any], prediction: str, schedule: Schedule, t: torch.Tensor
) -> torch.Tensor:
    """The weight [B], float64, of the squared error of ``prediction`` at times t.

    Args:
        weighting: a name in ``WEIGHTINGS``, or a function like those; ``functools.partial`` sets their options.
        prediction: what the model predicts, a name in ``PREDICTIONS``.
        schedule: of alpha and sigma.
        t: the schedule's times [B].

    Returns:
        The weight, or its limit where alpha or sigma is 0: infinite, say, for the error of epsilon at alpha 0 under "edm".
    """
    alpha, sigma = _inside(*schedule.coefficients(t))
    rule = WEIGHTINGS[weighting] if isinstance(weighting, str) else weighting
    of_x0_error = rule(schedule, t, alpha, sigma)
    if of_x0_error is None:
        return torch.ones_like(alpha)
    of_x0, of_epsilon = PREDICTIONS[prediction](alpha, sigma, schedule.data_std)
    weight = of_x0_error / (of_x0 - of_epsilon * alpha / sigma) ** 2
    return torch.where(weight > _INFINITE, torch.inf, weight)
