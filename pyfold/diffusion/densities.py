"""Densities of training times: each maps a uniform number in (0, 1) to a time of a schedule.

Times are the same bits on every machine: sums, products and quotients round alike everywhere, and the functions are
``pyfold._elementary``'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from pyfold._elementary import cos, exp, log, sqrt, tan
from pyfold.diffusion.schedule import Schedule


def _spread(schedule: Schedule, u: torch.Tensor) -> torch.Tensor:
    """From (0, 1) over the schedule's times; a discrete one gets integers, all alike."""
    if schedule.steps:
        return (u * schedule.steps).floor().clamp(0, schedule.steps - 1)
    return schedule.t_min + u * (schedule.t_max - schedule.t_min)


def _at_ratio(schedule: Schedule, ratio: torch.Tensor) -> torch.Tensor:
    t: torch.Tensor = schedule.time(ratio)
    return t.round() if schedule.steps else t


#: Numerators and denominators of the three parts of Wichura's normal quantile, lowest power first.
_CENTRE = (
    (3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
     4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3),
    (1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
     2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3),
)  # fmt: skip
_TAIL = (
    (1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
     1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
     1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9),
)  # fmt: skip
_FAR = (
    (6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
     2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7),
    (1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
     7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15),
)  # fmt: skip


def _quotient(part: tuple[tuple[float, ...], tuple[float, ...]], r: torch.Tensor) -> torch.Tensor:
    above, below = (torch.full_like(r, coefficients[-1]) for coefficients in part)
    for a, b in zip(reversed(part[0][:-1]), reversed(part[1][:-1]), strict=True):
        above, below = above * r + a, below * r + b
    return above / below


def normal_quantile(u: torch.Tensor) -> torch.Tensor:
    """Where the standard normal distribution reaches u in (0, 1): Wichura 1988 (algorithm AS 241), to 1e-15."""
    q = u - 0.5
    r = sqrt(-log(torch.minimum(u, 1 - u)))
    tail = torch.where(r <= 5, _quotient(_TAIL, r - 1.6), _quotient(_FAR, r - 5))
    return torch.where(q.abs() <= 0.425, q * _quotient(_CENTRE, 0.180625 - q * q), torch.where(q < 0, -tail, tail))


def uniform(schedule: Schedule, u: torch.Tensor) -> torch.Tensor:
    """All times alike."""
    return _spread(schedule, u)


def lognormal(schedule: Schedule, u: torch.Tensor, mean: float = -1.2, std: float = 1.2) -> torch.Tensor:
    """log(sigma / alpha) is normal (Karras et al. 2022, section 5)."""
    return _at_ratio(schedule, exp(mean + std * normal_quantile(u)))


def logit_normal(schedule: Schedule, u: torch.Tensor, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
    """The logit of the time is normal (Esser et al. 2024, eq. 19)."""
    return _spread(schedule, 1 / (1 + exp(-(mean + std * normal_quantile(u)))))


def mode(schedule: Schedule, u: torch.Tensor, scale: float = 1.29) -> torch.Tensor:
    """``1 - u - scale (cos^2(pi u / 2) - 1 + u)`` (Esser et al. 2024, eq. 20)."""
    return _spread(schedule, 1 - u - scale * (cos(math.pi / 2 * u) ** 2 - 1 + u))


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
        return shift - 2 * log(tan(ends[0] + u * (ends[1] - ends[0])))

    return _at_ratio(schedule, exp(-((1 - u) * log_snr(high) + u * log_snr(low)) / 2))


DENSITIES: dict[str, Callable[..., torch.Tensor]] = {
    density.__name__: density for density in (uniform, lognormal, logit_normal, mode, cosine_interpolated)
}
