"""Noise schedules: alpha and sigma of ``x_t = alpha x0 + sigma eps`` as functions of the model's time, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class Schedule:
    """A schedule of ``steps`` discrete times 0, 1, ... or, with ``steps == 0``, of all times in [0, 1].

    Attributes:
        name: how it was made.
        steps: number of discrete training times; 0 for a continuous schedule.
        alphas, sigmas: float64 [steps] of a discrete schedule, empty for a continuous one.
        shift: of a flow schedule, ``t -> shift t / (1 + (shift - 1) t)`` (Esser et al. 2024, eq. 23).
    """

    name: str
    steps: int = 0
    alphas: np.ndarray = field(default_factory=lambda: np.zeros(0))
    sigmas: np.ndarray = field(default_factory=lambda: np.zeros(0))
    shift: float = 1.0
    _on_device: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def is_flow(self) -> bool:
        return self.steps == 0

    def coefficients(self, t: Any) -> tuple[Any, Any]:
        """(alpha, sigma) at model times t.

        Args:
            t: a float64 NumPy array or a torch tensor (then float64 of the same shape and device come back): integers in
                [0, steps) of a discrete schedule, reals in [0, 1] of a continuous one.
        """
        if self.is_flow:
            t = t.to(torch.float64) if isinstance(t, torch.Tensor) else np.asarray(t, np.float64)
            sigma = self.shift * t / (1 + (self.shift - 1) * t)
            return 1 - sigma, sigma
        if not isinstance(t, torch.Tensor):
            index = np.asarray(t).astype(np.int64)
            return self.alphas[index], self.sigmas[index]
        if t.device not in self._on_device:
            self._on_device[t.device] = tuple(torch.from_numpy(c).to(t.device) for c in (self.alphas, self.sigmas))
        alphas, sigmas = self._on_device[t.device]
        index = t.to(torch.int64)
        return alphas[index], sigmas[index]


def _from_betas(name: str, betas: np.ndarray) -> Schedule:
    alpha_bar = np.cumprod(1 - np.asarray(betas, np.float64))
    return Schedule(name, len(alpha_bar), np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar))


def _check_steps(steps: int) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise TypeError(f"steps must be an int, got {type(steps).__name__}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")


def vp_linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Variance preserving, betas on a line (Ho et al. 2020, section 4).

    Args:
        steps: training times.
        beta_start, beta_end: variance of the first and the last step, each in (0, 1).
    """
    _check_steps(steps)
    for name, value in (("beta_start", beta_start), ("beta_end", beta_end)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must be in (0, 1), got {value}")
    return _from_betas("vp_linear", np.linspace(beta_start, beta_end, steps, dtype=np.float64))


def vp_cosine(steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """Variance preserving, alpha_bar a squared cosine (Nichol and Dhariwal 2021, eq. 17).

    Args:
        steps: training times.
        offset: keeps the first betas from vanishing.
        max_beta: bound on the last betas.
    """
    _check_steps(steps)
    if not 0 <= offset < 1:
        raise ValueError(f"offset must be in [0, 1), got {offset}")
    if not 0 < max_beta < 1:
        raise ValueError(f"max_beta must be in (0, 1), got {max_beta}")
    t = np.arange(steps + 1, dtype=np.float64) / steps
    alpha_bar = np.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return _from_betas("vp_cosine", np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], max_beta))


def flow(shift: float = 1.0) -> Schedule:
    """Flow matching on straight lines, ``x_t = (1 - s) x0 + s eps`` (Lipman et al. 2023; Liu et al. 2022).

    Args:
        shift: ``s = shift t / (1 + (shift - 1) t)``; more than 1 spends more of the time at high noise.
    """
    if not (shift > 0 and math.isfinite(shift)):
        raise ValueError(f"shift must be positive, got {shift}")
    return Schedule("flow", shift=float(shift))


SCHEDULES = {"vp_linear": vp_linear, "vp_cosine": vp_cosine, "flow": flow}
