"""What a noise schedule is: alpha and sigma of ``x_t = alpha x0 + sigma eps`` as functions of the time, in float64.

A discrete schedule is a table over training times 0, 1, ..., T - 1; times between them interpolate the logarithm of the
noise-to-signal ratio. A continuous one is a formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch

from pyfold._elementary import exp, log, sqrt

Curve = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

#: sigma / alpha from which sampling starts where a sampler, or what the model predicts, needs some signal: a flow's sigma .999.
NEARLY_PURE = 999.0


class Point(NamedTuple):
    """A time of a schedule and its coefficients.

    Attributes:
        t: the time, in the schedule's own unit.
        alpha, sigma: of ``x = alpha x0 + sigma eps`` there.

    Example:
        >>> from pyfold.diffusion import Point
        >>> Point(0.25, alpha=0.75, sigma=0.25).ratio == 0.25 / 0.75
        True
    """

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
        training_density: the density of training times that it was published with, a name in ``pyfold.diffusion.DENSITIES``;
            :class:`pyfold.diffusion.TrainingLoss` draws by it where it is given none.
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
    training_density: str = "uniform"
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

    def __post_init__(self) -> None:
        # Made at once, for the compiler does not trace NumPy; and anew, for a schedule made by replace has other values.
        object.__setattr__(self, "_on_device", {})
        if self.steps:
            with np.errstate(divide="ignore"):
                log_ratio = np.log(self.sigmas) - np.log(self.alphas)
            tables = tuple(torch.from_numpy(np.array(c, np.float64)) for c in (self.alphas, self.sigmas, log_ratio))
            self._on_device[torch.device("cpu")] = tables

    def _tables(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        made: tuple[torch.Tensor, ...] | None = self._on_device.get(device)
        if made is None:
            made = tuple(c.to(device) for c in self._on_device[torch.device("cpu")])
            if not torch.compiler.is_compiling():
                self._on_device[device] = made
        return made

    def _interpolate(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alphas, sigmas, log_ratio = self._tables(t.device)
        below = t.floor().clamp(0, self.steps - 1).to(torch.int64)
        above = (below + 1).clamp(max=self.steps - 1)
        part = t - below
        # One rounding an operation: the bits of torch.lerp depend on the machine.
        ratio = exp((1 - part) * log_ratio[below] + part * log_ratio[above])
        alpha = torch.where(t == below, alphas[below], 1 / sqrt(1 + ratio**2))
        return alpha, torch.where(t == below, sigmas[below], ratio * alpha)

    def time(self, ratio: Any) -> Any:
        """The time of a noise-to-signal ratio, limited to the schedule's; a float64 NumPy array or a torch tensor."""
        if not isinstance(ratio, torch.Tensor):
            t = self.time(torch.from_numpy(np.atleast_1d(np.asarray(ratio, np.float64))))
            return t.numpy().reshape(np.shape(ratio))[()]
        ratio = ratio.to(torch.float64)
        if self.curve is None:
            log_ratio = self._tables(ratio.device)[2]
            wanted = log(ratio)
            above = torch.searchsorted(log_ratio, wanted).clamp(1, self.steps - 1)
            low, high = log_ratio[above - 1], log_ratio[above]
            return above - 1 + ((wanted - low) / (high - low)).clamp(0, 1)
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
        return self.at_times([t])[0]

    def at_times(self, times: Iterable[float]) -> list[Point]:
        """The points at some times of the schedule."""
        times = list(times)
        low, high = (0, self.steps - 1) if self.steps else (self.t_min, self.t_max)
        for t in times:
            if not low <= t <= high:
                raise ValueError(f"t must be in [{low:g}, {high:g}] for schedule {self.name}, got {t}")
        alphas, sigmas = self.coefficients(np.array(times, np.float64))
        return [Point(float(t), alpha, sigma) for t, alpha, sigma in zip(times, alphas.tolist(), sigmas.tolist(), strict=True)]

    def at_ratio(self, ratio: float) -> Point:
        """The point of a noise-to-signal ratio: exactly that ratio, at the time nearest to it."""
        return self.at_ratios([ratio])[0]

    def at_ratios(self, ratios: Iterable[float]) -> list[Point]:
        """The points of some noise-to-signal ratios."""
        ratios = list(ratios)
        for ratio in ratios:
            if not ratio >= 0:
                raise ValueError(f"ratio sigma / alpha must be from 0, got {ratio}")
        times = self.time(np.array(ratios, np.float64))
        alphas, sigmas = self.coefficients(times)
        each = zip(ratios, times.tolist(), alphas.tolist(), sigmas.tolist(), strict=True)
        return [self._of_ratio(float(ratio), *at) for ratio, *at in each]

    def _of_ratio(self, ratio: float, t: float, alpha: float, sigma: float) -> Point:
        """With the time nearest to the ratio, and alpha and sigma there."""
        if ratio == 0:
            return self.clean()
        if math.isinf(ratio):
            return Point(t, alpha, sigma)
        # Off the curve's ends, and in its rounding, the ratio counts; the curve gives the scale.
        scale = 1.0 if self.scales_input else math.hypot(alpha, sigma) / math.hypot(1.0, ratio)
        return Point(t, scale, ratio * scale)

    def clean(self) -> Point:
        """No noise at all, which no discrete time is: where sampling ends."""
        return Point(0.0 if self.steps else self.t_min, 1.0, 0.0)

    def model_time(self, t: Any, alpha: Any, sigma: Any) -> Any:
        """What the model is told at a time; numbers or tensors."""
        if self.time_input == "log_sigma":
            ratio = sigma / alpha
            return (log(ratio) if isinstance(ratio, torch.Tensor) else math.log(ratio)) / 4
        return sigma if self.time_input == "sigma" else t

    def input_scale(self, alpha: Any, sigma: Any) -> Any:
        """c_in: what x is multiplied with before the model sees it; numbers or tensors."""
        if not self.scales_input:
            return 1.0 + 0.0 * alpha
        square = (alpha * self.data_std) ** 2 + sigma**2
        return 1 / sqrt(square) if isinstance(square, torch.Tensor) else square**-0.5

    def state_of(self, x: torch.Tensor, model_time: torch.Tensor) -> torch.Tensor:
        """The state [B, ...] of the input x that the model is given at a time [B]."""
        if not self.scales_input:
            return x
        sigma = exp(4 * model_time.to(torch.float64))
        scale: torch.Tensor = self.input_scale(torch.ones_like(sigma), sigma).to(x.dtype)
        return x / scale.reshape(-1, *[1] * (x.dim() - 1))

    def start_std(self, point: Point) -> float:
        """Standard deviation of the noise that sampling starts from: sigma, or of unit data where variance is preserved."""
        return point.sigma if self.scales_input else math.hypot(point.alpha, point.sigma)


def check_schedule(schedule: Schedule) -> Schedule:
    """A Schedule, not the name of one."""
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be a pyfold.diffusion.Schedule, got {type(schedule).__name__}")
    return schedule


# --- checks


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
    number = float(value)
    return number if abs(number) < 1e300 else math.copysign(math.inf, number)


def check_range(name: str, value: float, low: float, high: float) -> float:
    """In the open interval (low, high), so neither NaN nor infinite."""
    if not low < check_number(name, value) < high:
        raise ValueError(f"{name} must be in ({low:g}, {high:g}), got {value}")
    return float(value)
