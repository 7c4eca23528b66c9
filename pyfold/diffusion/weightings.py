"""Weights of the training loss, each written for the squared error of x0 and carried over to the model's own prediction.

At a given x an error in x0 is one in ``m = A x0 + B eps`` times ``A - B alpha / sigma``, so the weight of the one is that of
the other over its square. The exception is "simple", which is 1 whatever the model predicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from pyfold.diffusion.predictions import PREDICTIONS
from pyfold.diffusion.schedules import Schedule


def _snr(alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return (alpha / sigma) ** 2


def vlb(schedule: Schedule, t: torch.Tensor) -> torch.Tensor:
    """The variational bound's, in nats a step (discrete) or a unit of time (continuous).

    ``beta_t / (2 (1 - beta_t) (1 - alpha_bar_t))`` for epsilon, the variance of the reverse steps being beta_t (Ho et al. 2020,
    eq. 12), or ``-d snr / dt / 2`` for x0 (Kingma et al. 2021, eq. 17).
    """
    if not schedule.steps:
        with torch.enable_grad():
            t = t.detach().to(torch.float64).requires_grad_()
            (slope,) = torch.autograd.grad(_snr(*schedule.coefficients(t)).sum(), t)
        return -slope / 2
    alpha, sigma = schedule.coefficients(t)
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
    """
    alpha, sigma = schedule.coefficients(t)
    rule = WEIGHTINGS[weighting] if isinstance(weighting, str) else weighting
    of_x0_error = rule(schedule, t, alpha, sigma)
    if of_x0_error is None:
        return torch.ones_like(alpha)
    of_x0, of_epsilon = PREDICTIONS[prediction](alpha, sigma, schedule.data_std)
    return of_x0_error / (of_x0 - of_epsilon * alpha / sigma) ** 2
