"""Noise schedules, discrete and continuous, by the names that they were published under."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from pyfold._elementary import asinh, atan, exp, log, log_plus_one, one_minus_exp, power, sin, sqrt
from pyfold.diffusion.schedule import Schedule, check_number, check_range, check_steps

# --- discrete schedules


def from_alpha_bar(name: str, alpha_bar: np.ndarray) -> Schedule:
    """Variance preserving, from alpha^2 at each training time.

    Args:
        name: of the schedule, in messages and ``repr``.
        alpha_bar: alpha^2 at each training time, the first least noisy: [steps], falling, in [0, 1).

    Returns:
        The schedule.
    """
    alpha_bar = np.asarray(alpha_bar, np.float64)
    return Schedule(name, len(alpha_bar), np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar))


def from_betas(betas: Sequence[float] | np.ndarray, name: str = "from_betas") -> Schedule:
    """Variance preserving, ``alpha^2 = prod (1 - beta)`` (Ho et al. 2020, section 2), from betas of your own.

    Args:
        betas: the variance of each step, in (0, 1); 1 is allowed for the last (zero terminal signal).
        name: of the schedule, in messages and ``repr``.

    Returns:
        The schedule.

    Raises:
        ValueError: betas is empty, or one is out of its range.
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or len(betas) == 0:
        raise ValueError(f"betas must be a list of at least one number, got shape {betas.shape}")
    bad = np.flatnonzero(~((betas > 0) & (betas < 1)) & ~((betas == 1) & (np.arange(len(betas)) == len(betas) - 1)))
    if len(bad):
        raise ValueError(f"betas must be in (0, 1), got {betas[bad[0]]} at {bad[0]}")
    return from_alpha_bar(name, np.cumprod(1 - betas))


def _betas_on_range(name: str, shape: Callable[[np.ndarray], np.ndarray], steps: int, start: float, end: float) -> Schedule:
    check_steps(steps)
    for which, value in (("beta_start", start), ("beta_end", end)):
        check_range(which, value, 0, 1)
    betas = shape(np.linspace(0, 1, steps, dtype=np.float64))
    if not betas.min() > 0:
        raise ValueError(f"beta_start and beta_end must give betas above 0, got {start} and {end}")
    return from_betas(betas, name)


def vp_linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Variance preserving, betas on a line (Ho et al. 2020, section 4).

    Args:
        steps: training times.
        beta_start, beta_end: variance of the first and the last step, each in (0, 1).

    Returns:
        The schedule.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> round(float(vp_linear().alphas[0] ** 2), 6)  # 1 - beta of the first step
        0.9999
    """
    return _betas_on_range("vp_linear", lambda u: beta_start + (beta_end - beta_start) * u, steps, beta_start, beta_end)


def vp_scaled_linear(steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Schedule:
    """Variance preserving, square roots of the betas on a line (Rombach et al. 2022); Stable Diffusion's by default.

    Args:
        steps, beta_start, beta_end: as for :func:`vp_linear`, whose errors are these too.

    Returns:
        The schedule.
    """
    start, end = (check_range(name, value, 0, 1) for name, value in (("beta_start", beta_start), ("beta_end", beta_end)))
    root, width = math.sqrt(start), math.sqrt(end) - math.sqrt(start)
    return _betas_on_range("vp_scaled_linear", lambda u: (root + width * u) ** 2, steps, beta_start, beta_end)


def vp_sigmoid(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Variance preserving, betas on a sigmoid from -6 to 6 (Xu et al. 2022, GeoDiff).

    Args:
        steps, beta_start, beta_end: as for :func:`vp_linear`, whose errors are these too.

    Returns:
        The schedule.
    """

    def shape(u: np.ndarray) -> np.ndarray:
        betas: np.ndarray = beta_start + (beta_end - beta_start) / (1 + np.exp(6 - 12 * u))
        return betas

    return _betas_on_range("vp_sigmoid", shape, steps, beta_start, beta_end)


def _from_alpha_bar_curve(name: str, alpha_bar: Callable[[np.ndarray], np.ndarray], steps: int, max_beta: float) -> Schedule:
    check_steps(steps)
    check_range("max_beta", max_beta, 0, 1)
    values = alpha_bar(np.arange(steps + 1, dtype=np.float64) / steps)
    return from_betas(np.minimum(1 - values[1:] / values[:-1], max_beta), name)


def vp_cosine(steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """Variance preserving, alpha_bar a squared cosine (Nichol and Dhariwal 2021, eq. 17).

    Args:
        steps: training times.
        offset: keeps the first betas from vanishing.
        max_beta: bound on the last betas.

    Returns:
        The schedule.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not 0 <= check_number("offset", offset) < 1:
        raise ValueError(f"offset must be in [0, 1), got {offset}")
    return _from_alpha_bar_curve("vp_cosine", lambda t: np.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2, steps, max_beta)


def vp_exp(steps: int = 1000, rate: float = 12.0, max_beta: float = 0.999) -> Schedule:
    """Variance preserving, ``alpha_bar = exp(-rate t)``: constant betas in the SDE of Song et al. 2021, eq. 11.

    Args:
        steps: training times, at least 1.
        rate: of the exponent, in (0, 700).
        max_beta: bound on the betas, in (0, 1).

    Returns:
        The schedule.

    Raises:
        ValueError: an argument is out of its range.
    """
    check_range("rate", rate, 0, 700)
    return _from_alpha_bar_curve("vp_exp", lambda t: np.exp(-rate * t), steps, max_beta)


def vp_laplace(steps: int = 1000, max_beta: float = 0.999) -> Schedule:
    """Variance preserving, noise levels at the quantiles of a Laplace density (Hang et al. 2024), as diffusers has it:

    ``alpha_bar = sqrt(s / (1 + s))`` with ``s = exp(-sign(1/2 - t) log(1 - 2 |1/2 - t| + 1e-6) / 2)``.

    Args:
        steps: training times, at least 1.
        max_beta: bound on the betas, in (0, 1).

    Returns:
        The schedule.

    Raises:
        ValueError: an argument is out of its range.
    """

    def alpha_bar(t: np.ndarray) -> np.ndarray:
        snr = np.exp(-0.5 * np.copysign(1, 0.5 - t) * np.log(1 - 2 * np.abs(0.5 - t) + 1e-6))
        root: np.ndarray = np.sqrt(snr / (1 + snr))
        return root

    return _from_alpha_bar_curve("vp_laplace", alpha_bar, steps, max_beta)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """A discrete schedule shifted and scaled to end in pure noise (Lin et al. 2024, algorithm 1).

    Args:
        schedule: with discrete times.

    Returns:
        The schedule.

    Raises:
        ValueError: the schedule is continuous.
    """
    if not schedule.steps:
        raise ValueError(f"schedule must have discrete times, got {schedule.name}")
    first, last = schedule.alphas[0], schedule.alphas[-1]
    return from_alpha_bar(f"{schedule.name}, zero terminal snr", ((schedule.alphas - last) * first / (first - last)) ** 2)


# --- continuous schedules


def vp(beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3) -> Schedule:
    """The variance preserving SDE with a linear rate, t in [t_min, 1] (Song et al. 2021, eq. 33).

    Args:
        beta_min, beta_max: the rate at t = 0 and at t = 1, 0 < beta_min < beta_max.
        t_min: the first time, in (0, 1), where sigma is not yet 0.

    Returns:
        The schedule.

    Raises:
        ValueError: an argument is out of its range.
    """
    return _sde("vp", beta_min, beta_max, t_min, lambda m: sqrt(one_minus_exp(2 * m)), lambda r: log_plus_one(r**2) / 2)


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3) -> Schedule:
    """The sub-VP SDE: as ``vp``, with sigma = 1 - alpha^2 (Song et al. 2021, eq. 29).

    Args:
        beta_min, beta_max, t_min: as for :func:`vp`, whose errors are these too.

    Returns:
        The schedule.
    """
    return _sde("sub_vp", beta_min, beta_max, t_min, lambda m: one_minus_exp(2 * m), lambda r: asinh(r / 2))


def _sde(
    name: str,
    beta_min: float,
    beta_max: float,
    t_min: float,
    sigma: Callable[[torch.Tensor], torch.Tensor],
    depth: Callable[[torch.Tensor], torch.Tensor],
) -> Schedule:
    """From sigma of ``m = -log alpha = (beta_max - beta_min) t^2 / 4 + beta_min t / 2``, and m of the ratio."""
    check_range("beta_min", beta_min, 0, math.inf)
    check_range("beta_max", beta_max, beta_min, math.inf)
    check_range("t_min", t_min, 0, 1)
    slope = beta_max - beta_min

    def curve(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        m = slope * t**2 / 4 + beta_min * t / 2
        return exp(-m), sigma(m)

    def inverse(ratio: torch.Tensor) -> torch.Tensor:
        m = depth(ratio)
        return 4 * m / (beta_min + sqrt(beta_min**2 + 4 * slope * m))

    return Schedule(name, curve=curve, inverse=inverse, t_min=t_min)


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Schedule:
    """The variance exploding SDE: alpha = 1, ``sigma = sigma_min (sigma_max / sigma_min)^t`` (Song et al. 2021, eq. 31).

    Args:
        sigma_min, sigma_max: the noise at t = 0 and at t = 1, 0 < sigma_min < sigma_max.

    Returns:
        The schedule.

    Raises:
        ValueError: an argument is out of its range.
    """
    check_range("sigma_min", sigma_min, 0, math.inf)
    check_range("sigma_max", sigma_max, sigma_min, math.inf)
    spread = math.log(sigma_max / sigma_min)
    curve = lambda t: (torch.ones_like(t), sigma_min * exp(spread * t))  # noqa: E731
    return Schedule("ve", curve=curve, inverse=lambda r: log(r / sigma_min) / spread, scales_input=True)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, data_std: float = 0.5) -> Schedule:
    """alpha = 1, sigma = t; the model sees x scaled to unit variance and ``log(sigma) / 4``, and trains at log-normal sigmas
    (Karras et al. 2022, table 1).

    Args:
        sigma_min, sigma_max: the ends of time, 0 < sigma_min < sigma_max.
        data_std: standard deviation of the data, by which the preconditioning scales.

    Returns:
        The schedule.

    Raises:
        ValueError: an argument is out of its range.
    """
    check_range("sigma_min", sigma_min, 0, math.inf)
    check_range("sigma_max", sigma_max, sigma_min, math.inf)
    check_range("data_std", data_std, 0, math.inf)
    return Schedule(
        "edm",
        curve=lambda t: (torch.ones_like(t), t),
        inverse=lambda ratio: ratio,
        t_min=sigma_min,
        t_max=sigma_max,
        data_std=data_std,
        time_input="log_sigma",
        scales_input=True,
        even_spacing="karras",
        training_density="lognormal",
    )


def trigflow(data_std: float = 0.5, t_min: float = 0.0) -> Schedule:
    """``x_t = cos(t) x0 + sin(t) data_std eps`` for t in [t_min, pi / 2] (Lu and Song 2025, section 3).

    Args:
        data_std: standard deviation of the data.
        t_min: the first time, at least 0.

    Returns:
        The schedule.

    Raises:
        ValueError: an argument is out of its range.
    """
    check_range("data_std", data_std, 0, math.inf)
    # cos(t), and exactly 0 at the end.
    curve = lambda t: (sin(math.pi / 2 - t), sin(t) * data_std)  # noqa: E731
    return Schedule(
        "trigflow",
        curve=curve,
        inverse=lambda ratio: atan(ratio / data_std),
        t_min=t_min,
        t_max=math.pi / 2,
        data_std=data_std,
    )


def flow(shift: float = 1.0, *, exponent: float = 1.0) -> Schedule:
    """Flow matching on straight lines, ``x_t = (1 - s) x0 + s eps`` (Lipman et al. 2023; Liu et al. 2022).

    Args:
        shift: ``s = shift / (shift + (1 / t - 1)^exponent)``, that is ``shift t / (1 + (shift - 1) t)`` (Esser et al. 2024,
            eq. 23) for exponent 1; more than 1 spends more of the time at high noise.
        exponent: in the formula above.

    Returns:
        The schedule.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not 0 < check_number("shift", shift) < math.inf:
        raise ValueError(f"shift must be positive, got {shift}")
    check_range("exponent", exponent, 0, math.inf)

    def curve(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        s = shift * t / (1 + (shift - 1) * t) if exponent == 1 else shift / (shift + power(1 / t - 1, exponent))
        return 1 - s, s

    def inverse(ratio: torch.Tensor) -> torch.Tensor:
        return 1 / (1 + power(shift / ratio, 1 / exponent))

    return Schedule("flow", shift=float(shift), curve=curve, inverse=inverse, time_input="sigma")


def flow_for_length(
    length: int, *, base: tuple[int, float] = (256, 0.5), top: tuple[int, float] = (4096, 1.15), exponent: float = 1.0
) -> Schedule:
    """A flow whose shift ``exp(mu)`` follows the number of image tokens, mu on a line through two points, as Flux does it
    (the shift: Esser et al. 2024, eq. 23).

    Args:
        length: the model's sequence length, at least 1.
        base, top: (length, mu) of the two points.
        exponent: as in :func:`flow`.

    Returns:
        The schedule.

    Raises:
        ValueError: length is not a whole number from 1 on.
    """
    check_steps(length, 2**53, "length")
    slope = (top[1] - base[1]) / (top[0] - base[0])
    return flow(math.exp(base[1] + slope * (length - base[0])), exponent=exponent)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    schedule.__name__: schedule
    for schedule in (
        vp_linear,
        vp_scaled_linear,
        vp_cosine,
        vp_sigmoid,
        vp_laplace,
        vp_exp,
        flow,
        vp,
        sub_vp,
        ve,
        edm,
        trigflow,
    )
}
