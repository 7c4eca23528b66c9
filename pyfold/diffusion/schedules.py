"""Noise schedules: alpha and sigma of ``x_t = alpha x0 + sigma eps`` as functions of the time, in float64.

A discrete schedule is a table over training times 0, 1, ..., T - 1; times between them interpolate the logarithm of the
noise-to-signal ratio. A continuous one is a formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch

Curve = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Point(NamedTuple):
    """A time of a schedule and its coefficients."""

    t: float
    alpha: float
    sigma: float

    @property
    def ratio(self) -> float:
        """The noise-to-signal ratio sigma / alpha, which EDM and k-diffusion call sigma."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def lam(self) -> float:
        """log(alpha / sigma), half the logarithm of the signal-to-noise ratio."""
        return math.log(self.alpha / self.sigma) if self.alpha and self.sigma else math.copysign(math.inf, self.alpha - 0.5)


@dataclass(frozen=True, eq=False)
class Schedule:
    """A curve of (alpha, sigma), and how a model wants to be told where on it x lies.

    Attributes:
        name: how it was made.
        steps: number of discrete training times; 0 for a continuous schedule.
        alphas, sigmas: float64 [steps] of a discrete schedule, empty for a continuous one.
        shift: of a flow schedule.
        curve: of a continuous schedule, (alpha, sigma) of float64 times, the ratio sigma / alpha rising with the time.
        inverse: the time of a ratio sigma / alpha; without it the curve is searched.
        t_min, t_max: ends of a continuous schedule.
        data_std: standard deviation of the data that the model's prediction "F" is scaled for.
        time_input: what the model is told: "t", "sigma" (flow), or "log_sigma" (EDM's c_noise, ``log(sigma) / 4``).
        scales_input: whether the model sees ``x / sqrt(alpha^2 data_std^2 + sigma^2)`` instead of x.
        even_spacing: the spacing that stands for equal steps of the time where samplers default to those ("trailing"): equal
            steps of sigma itself would leave all but one of them at high noise.
    """

    name: str
    steps: int = 0
    alphas: np.ndarray = field(default_factory=lambda: np.zeros(0))
    sigmas: np.ndarray = field(default_factory=lambda: np.zeros(0))
    shift: float = 1.0
    curve: Curve | None = None
    inverse: Callable[[torch.Tensor], torch.Tensor] | None = None
    t_min: float = 0.0
    t_max: float = 1.0
    data_std: float = 1.0
    time_input: str = "t"
    scales_input: bool = False
    even_spacing: str = "trailing"
    _on_device: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def is_flow(self) -> bool:
        """Whether the time that the model is told is sigma of straight lines, alpha + sigma = 1."""
        return self.time_input == "sigma"

    def coefficients(self, t: Any) -> tuple[Any, Any]:
        """(alpha, sigma) at times t.

        Args:
            t: a float64 NumPy array or a torch tensor (then float64 of the same shape and device come back): in
                [0, steps - 1] of a discrete schedule, in [t_min, t_max] of a continuous one.
        """
        if not isinstance(t, torch.Tensor):
            alpha, sigma = self.coefficients(torch.from_numpy(np.atleast_1d(np.asarray(t, np.float64))))
            return alpha.numpy().reshape(np.shape(t))[()], sigma.numpy().reshape(np.shape(t))[()]
        t = t.to(torch.float64)
        return self.curve(t) if self.curve is not None else self._interpolate(t)

    def _tables(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        if device not in self._on_device:
            with np.errstate(divide="ignore"):
                log_ratio = np.log(self.sigmas) - np.log(self.alphas)
            self._on_device[device] = tuple(torch.from_numpy(c).to(device) for c in (self.alphas, self.sigmas, log_ratio))
        return self._on_device[device]

    def _interpolate(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alphas, sigmas, log_ratio = self._tables(t.device)
        below = t.floor().clamp(0, self.steps - 1).to(torch.int64)
        above = (below + 1).clamp(max=self.steps - 1)
        part = t - below
        # One rounding an operation: the bits of torch.lerp depend on the machine.
        ratio = ((1 - part) * log_ratio[below] + part * log_ratio[above]).exp()
        alpha = torch.where(t == below, alphas[below], (1 + ratio**2).rsqrt())
        return alpha, torch.where(t == below, sigmas[below], ratio * alpha)

    def time(self, ratio: Any) -> Any:
        """The time of a noise-to-signal ratio, limited to the schedule's; a float64 NumPy array or a torch tensor."""
        if not isinstance(ratio, torch.Tensor):
            t = self.time(torch.from_numpy(np.atleast_1d(np.asarray(ratio, np.float64))))
            return t.numpy().reshape(np.shape(ratio))[()]
        ratio = ratio.to(torch.float64)
        if self.curve is None:
            log_ratio = self._tables(ratio.device)[2]
            above = torch.searchsorted(log_ratio, ratio.log()).clamp(1, self.steps - 1)
            low, high = log_ratio[above - 1], log_ratio[above]
            return above - 1 + ((ratio.log() - low) / (high - low)).clamp(0, 1)
        if self.inverse is not None:
            return self.inverse(ratio).clamp(self.t_min, self.t_max)
        low, high = torch.full_like(ratio, self.t_min), torch.full_like(ratio, self.t_max)
        for _ in range(80):
            middle = (low + high) / 2
            alpha, sigma = self.curve(middle)
            below = sigma < ratio * alpha
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def at(self, t: float) -> Point:
        """The point at a time of the schedule."""
        low, high = (0, self.steps - 1) if self.steps else (self.t_min, self.t_max)
        if not low <= t <= high:
            raise ValueError(f"t must be in [{low:g}, {high:g}] for schedule {self.name}, got {t}")
        alpha, sigma = self.coefficients(float(t))
        return Point(float(t), float(alpha), float(sigma))

    def at_ratio(self, ratio: float) -> Point:
        """The point of a noise-to-signal ratio: exactly that ratio, at the time nearest to it."""
        if not ratio >= 0:
            raise ValueError(f"ratio sigma / alpha must be from 0, got {ratio}")
        if ratio == 0:
            return self.clean()
        t = float(self.time(ratio))
        if math.isinf(ratio):
            return self.at(t)
        # Off the curve's ends, and in its rounding, the ratio counts; the curve gives the scale.
        scale = 1.0 if self.scales_input else math.hypot(*self.coefficients(t)) / math.hypot(1.0, ratio)
        return Point(t, scale, ratio * scale)

    def clean(self) -> Point:
        """No noise at all, which no discrete time is: where sampling ends."""
        return Point(0.0 if self.steps else self.t_min, 1.0, 0.0)

    def model_time(self, t: Any, alpha: Any, sigma: Any) -> Any:
        """What the model is told at a time; numbers or tensors."""
        if self.time_input == "log_sigma":
            ratio = sigma / alpha
            return (ratio.log() if isinstance(ratio, torch.Tensor) else math.log(ratio)) / 4
        return sigma if self.time_input == "sigma" else t

    def input_scale(self, alpha: Any, sigma: Any) -> Any:
        """c_in: what x is multiplied with before the model sees it; numbers or tensors."""
        return ((alpha * self.data_std) ** 2 + sigma**2) ** -0.5 if self.scales_input else 1.0 + 0.0 * alpha

    def state_of(self, x: torch.Tensor, model_time: torch.Tensor) -> torch.Tensor:
        """The state [B, ...] of the input x that the model is given at a time [B]."""
        if not self.scales_input:
            return x
        sigma = (4 * model_time.to(torch.float64)).exp()
        scale = self.input_scale(torch.ones_like(sigma), sigma).to(x.dtype)
        return x / scale.reshape(-1, *[1] * (x.dim() - 1))

    def start_std(self, point: Point) -> float:
        """Standard deviation of the noise that sampling starts from: sigma, or of unit data where variance is preserved."""
        return point.sigma if self.scales_input else math.hypot(point.alpha, point.sigma)


def check_schedule(schedule: Schedule) -> Schedule:
    """A Schedule, not the name of one."""
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be a pyfold.diffusion.Schedule, got {type(schedule).__name__}")
    return schedule


# --- discrete schedules


#: A table of more is a mistake, and would fill the memory.
MOST_STEPS = 1_000_000


def check_steps(steps: int, most: int = MOST_STEPS, name: str = "steps") -> None:
    """An int from 1 to ``most``."""
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise TypeError(f"{name} must be an int, got {type(steps).__name__}")
    if not 1 <= steps <= most:
        raise ValueError(f"{name} must be in [1, {most}], got {steps}")


def check_number(name: str, value: Any) -> float:
    """A real number of Python or NumPy; NaN and infinities are ranges' to refuse."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return float(value) if abs(value) < 1e300 else math.copysign(math.inf, value)


def _check_range(name: str, value: float, low: float, high: float) -> float:
    """In the open interval (low, high), so neither NaN nor infinite."""
    if not low < check_number(name, value) < high:
        raise ValueError(f"{name} must be in ({low:g}, {high:g}), got {value}")
    return float(value)


def from_alpha_bar(name: str, alpha_bar: np.ndarray) -> Schedule:
    """Variance preserving, from alpha^2 at each training time."""
    alpha_bar = np.asarray(alpha_bar, np.float64)
    return Schedule(name, len(alpha_bar), np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar))


def from_betas(betas: Sequence[float] | np.ndarray, name: str = "from_betas") -> Schedule:
    """Variance preserving, ``alpha^2 = prod (1 - beta)`` (Ho et al. 2020, section 2), from betas of your own.

    Args:
        betas: the variance of each step, in (0, 1); 1 is allowed for the last (zero terminal signal).
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
        _check_range(which, value, 0, 1)
    return from_betas(shape(np.linspace(0, 1, steps, dtype=np.float64)), name)


def vp_linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Variance preserving, betas on a line (Ho et al. 2020, section 4).

    Args:
        steps: training times.
        beta_start, beta_end: variance of the first and the last step, each in (0, 1).
    """
    return _betas_on_range("vp_linear", lambda u: beta_start + (beta_end - beta_start) * u, steps, beta_start, beta_end)


def vp_scaled_linear(steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Schedule:
    """Variance preserving, square roots of the betas on a line (Rombach et al. 2022); Stable Diffusion's by default."""
    start, end = (_check_range(name, value, 0, 1) for name, value in (("beta_start", beta_start), ("beta_end", beta_end)))
    root, width = math.sqrt(start), math.sqrt(end) - math.sqrt(start)
    return _betas_on_range("vp_scaled_linear", lambda u: (root + width * u) ** 2, steps, beta_start, beta_end)


def vp_sigmoid(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Variance preserving, betas on a sigmoid from -6 to 6 (Xu et al. 2022, GeoDiff)."""

    def shape(u):
        return beta_start + (beta_end - beta_start) / (1 + np.exp(6 - 12 * u))

    return _betas_on_range("vp_sigmoid", shape, steps, beta_start, beta_end)


def _from_alpha_bar_curve(name: str, alpha_bar: Callable[[np.ndarray], np.ndarray], steps: int, max_beta: float) -> Schedule:
    check_steps(steps)
    _check_range("max_beta", max_beta, 0, 1)
    values = alpha_bar(np.arange(steps + 1, dtype=np.float64) / steps)
    return from_betas(np.minimum(1 - values[1:] / values[:-1], max_beta), name)


def vp_cosine(steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """Variance preserving, alpha_bar a squared cosine (Nichol and Dhariwal 2021, eq. 17).

    Args:
        steps: training times.
        offset: keeps the first betas from vanishing.
        max_beta: bound on the last betas.
    """
    if not 0 <= check_number("offset", offset) < 1:
        raise ValueError(f"offset must be in [0, 1), got {offset}")
    return _from_alpha_bar_curve("vp_cosine", lambda t: np.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2, steps, max_beta)


def vp_exp(steps: int = 1000, rate: float = 12.0, max_beta: float = 0.999) -> Schedule:
    """Variance preserving, ``alpha_bar = exp(-rate t)``: constant betas."""
    _check_range("rate", rate, 0, 700)
    return _from_alpha_bar_curve("vp_exp", lambda t: np.exp(-rate * t), steps, max_beta)


def vp_laplace(steps: int = 1000, max_beta: float = 0.999) -> Schedule:
    """Variance preserving, noise levels at the quantiles of a Laplace density (Hang et al. 2024), as diffusers has it:

    ``alpha_bar = sqrt(s / (1 + s))`` with ``s = exp(-sign(1/2 - t) log(1 - 2 |1/2 - t| + 1e-6) / 2)``.
    """

    def alpha_bar(t):
        snr = np.exp(-0.5 * np.copysign(1, 0.5 - t) * np.log(1 - 2 * np.abs(0.5 - t) + 1e-6))
        return np.sqrt(snr / (1 + snr))

    return _from_alpha_bar_curve("vp_laplace", alpha_bar, steps, max_beta)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """A discrete schedule shifted and scaled to end in pure noise (Lin et al. 2024, algorithm 1)."""
    if not schedule.steps:
        raise ValueError(f"schedule must have discrete times, got {schedule.name}")
    first, last = schedule.alphas[0], schedule.alphas[-1]
    return from_alpha_bar(f"{schedule.name}, zero terminal snr", ((schedule.alphas - last) * first / (first - last)) ** 2)


# --- continuous schedules


def vp(beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3) -> Schedule:
    """The variance preserving SDE with a linear rate, t in [t_min, 1] (Song et al. 2021, eq. 33)."""
    return _sde("vp", beta_min, beta_max, t_min, lambda m: _one_minus_exp(2 * m).sqrt(), lambda r: _log_plus_one(r**2) / 2)


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3) -> Schedule:
    """The sub-VP SDE: as ``vp``, with sigma = 1 - alpha^2 (Song et al. 2021, eq. 29)."""
    return _sde("sub_vp", beta_min, beta_max, t_min, lambda m: _one_minus_exp(2 * m), lambda r: (r / 2).asinh())


def _log_plus_one(x: torch.Tensor) -> torch.Tensor:
    """``log(1 + x)``, to the last bits near 0 too (Kahan); those of torch.log1p depend on the machine."""
    whole = 1 + x
    return torch.where((whole == 1) | x.isinf(), x, whole.log() * (x / (whole - 1)))


def _one_minus_exp(x: torch.Tensor) -> torch.Tensor:
    """``1 - exp(-x)``, to the last bits near 0 too; those of torch.expm1 depend on the machine."""
    return (x / 2).tanh() * (1 + (-x).exp())


def _sde(
    name: str,
    beta_min: float,
    beta_max: float,
    t_min: float,
    sigma: Callable[[torch.Tensor], torch.Tensor],
    depth: Callable[[torch.Tensor], torch.Tensor],
) -> Schedule:
    """From sigma of ``m = -log alpha = (beta_max - beta_min) t^2 / 4 + beta_min t / 2``, and m of the ratio."""
    _check_range("beta_min", beta_min, 0, math.inf)
    _check_range("beta_max", beta_max, beta_min, math.inf)
    _check_range("t_min", t_min, 0, 1)
    slope = beta_max - beta_min

    def curve(t):
        m = slope * t**2 / 4 + beta_min * t / 2
        return (-m).exp(), sigma(m)

    def inverse(ratio):
        m = depth(ratio)
        return 4 * m / (beta_min + (beta_min**2 + 4 * slope * m).sqrt())

    return Schedule(name, curve=curve, inverse=inverse, t_min=t_min)


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Schedule:
    """The variance exploding SDE: alpha = 1, ``sigma = sigma_min (sigma_max / sigma_min)^t`` (Song et al. 2021, eq. 31)."""
    _check_range("sigma_min", sigma_min, 0, math.inf)
    _check_range("sigma_max", sigma_max, sigma_min, math.inf)
    spread = math.log(sigma_max / sigma_min)
    curve = lambda t: (torch.ones_like(t), sigma_min * (spread * t).exp())  # noqa: E731
    return Schedule("ve", curve=curve, inverse=lambda r: (r / sigma_min).log() / spread, scales_input=True)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, data_std: float = 0.5) -> Schedule:
    """alpha = 1, sigma = t; the model sees x scaled to unit variance and ``log(sigma) / 4`` (Karras et al. 2022, table 1)."""
    _check_range("sigma_min", sigma_min, 0, math.inf)
    _check_range("sigma_max", sigma_max, sigma_min, math.inf)
    _check_range("data_std", data_std, 0, math.inf)
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
    )


def trigflow(data_std: float = 0.5, t_min: float = 0.0) -> Schedule:
    """``x_t = cos(t) x0 + sin(t) data_std eps`` for t in [t_min, pi / 2] (Lu and Song 2025, section 3)."""
    _check_range("data_std", data_std, 0, math.inf)
    # cos(t), and exactly 0 at the end.
    curve = lambda t: ((math.pi / 2 - t).sin(), t.sin() * data_std)  # noqa: E731
    return Schedule(
        "trigflow",
        curve=curve,
        inverse=lambda ratio: (ratio / data_std).atan(),
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
    """
    if not 0 < check_number("shift", shift) < math.inf:
        raise ValueError(f"shift must be positive, got {shift}")
    _check_range("exponent", exponent, 0, math.inf)

    def curve(t):
        s = shift * t / (1 + (shift - 1) * t) if exponent == 1 else shift / (shift + (1 / t - 1) ** exponent)
        return 1 - s, s

    def inverse(ratio):
        return 1 / (1 + (shift / ratio) ** (1 / exponent))

    return Schedule("flow", shift=float(shift), curve=curve, inverse=inverse, time_input="sigma")


def flow_for_length(
    length: int, *, base: tuple[int, float] = (256, 0.5), top: tuple[int, float] = (4096, 1.15), exponent: float = 1.0
) -> Schedule:
    """A flow whose shift ``exp(mu)`` follows the number of image tokens, mu on a line through two points, as Flux does it.

    Args:
        length: the model's sequence length, at least 1.
        base, top: (length, mu) of the two points.
        exponent: as in :func:`flow`.
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
