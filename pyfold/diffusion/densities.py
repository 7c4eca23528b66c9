"""Densities of training times: each maps a uniform number in (0, 1) to a time of a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from pyfold.diffusion.schedules import Schedule


def _spread(schedule: Schedule, u: torch.Tensor) -> torch.Tensor:
    """From (0, 1) over the schedule's times; a discrete one gets integers, all alike."""
    if schedule.steps:
        return (u * schedule.steps).floor().clamp(0, schedule.steps - 1)
    return schedule.t_min + u * (schedule.t_max - schedule.t_min)


def _at_ratio(schedule: Schedule, ratio: torch.Tensor) -> torch.Tensor:
    t = schedule.time(ratio)
    return t.round() if schedule.steps else t


def uniform(schedule: Schedule, u: torch.Tensor) -> torch.Tensor:
    """All times alike."""
    return _spread(schedule, u)


def lognormal(schedule: Schedule, u: torch.Tensor, mean: float = -1.2, std: float = 1.2) -> torch.Tensor:
    """log(sigma / alpha) is normal (Karras et al. 2022, section 5)."""
    return _at_ratio(schedule, (mean + std * torch.special.ndtri(u)).exp())


def logit_normal(schedule: Schedule, u: torch.Tensor, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
    """The logit of the time is normal (Esser et al. 2024, eq. 19)."""
    return _spread(schedule, (mean + std * torch.special.ndtri(u)).sigmoid())


def mode(schedule: Schedule, u: torch.Tensor, scale: float = 1.29) -> torch.Tensor:
    """``1 - u - scale (cos^2(pi u / 2) - 1 + u)`` (Esser et al. 2024, eq. 20)."""
    return _spread(schedule, 1 - u - scale * ((math.pi / 2 * u).cos() ** 2 - 1 + u))


def cosine_interpolated(
    schedule: Schedule,
    u: torch.Tensor,
    size: float = 64.0,
    low: float = 32.0,
    high: float = 64.0,
    ratio_min: float = 1e-3,
    ratio_max: float = 1e3,
) -> torch.Tensor:
    """log SNR between two shifted cosine schedules (Hoogeboom et al. 2023, section 3.1; k-diffusion), u at the noisy end.

    ``2 log(d / size) - 2 log tan(a + u (b - a))`` with d from ``low`` (u = 1) to ``high`` (u = 0).
    """

    def log_snr(noise_size: float) -> torch.Tensor:
        shift = 2 * math.log(noise_size / size)
        ends = [math.atan(ratio * math.exp(shift / 2)) for ratio in (ratio_min, ratio_max)]
        return shift - 2 * (ends[0] + u * (ends[1] - ends[0])).tan().log()

    return _at_ratio(schedule, (-torch.lerp(log_snr(high), log_snr(low), u) / 2).exp())


DENSITIES: dict[str, Callable[..., torch.Tensor]] = {
    density.__name__: density for density in (uniform, lognormal, logit_normal, mode, cosine_interpolated)
}
