"""Samplers as data: each is a rule that fills a table of ``affine_step`` coefficients, in float64.

A :class:`Plan` is such a table and the model's times; it does not change and can be shared. :func:`sample` runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pyfold.diffusion.predictions import convert
from pyfold.diffusion.schedules import Schedule
from pyfold.ops import INITIAL_STREAM, SAMPLER_STREAM, affine_step, affine_table, randn


@dataclass(frozen=True, eq=False)
class Plan:
    """A sampler's steps for one schedule, number of steps and kind of prediction.

    Attributes:
        name: the sampler.
        times: the model's time at each step, float64 [steps].
        rows: each step's coefficients by the names of ``pyfold.ops.AFFINE_STEP_COLUMNS``.
        history: how many earlier values of ``u`` a step looks back on.
        noisy: whether steps draw noise.
    """

    name: str
    times: np.ndarray
    rows: tuple[Mapping[str, float], ...]
    history: int = 0
    noisy: bool = False
    _on_device: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def on(self, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(coefficients float64 [steps, 25], times float32 [steps], counters int64 [steps]) on a device, made once."""
        device = torch.device(device)
        if device not in self._on_device:
            counters = torch.arange(len(self.rows), device=device)
            times = torch.tensor(self.times, dtype=torch.float32, device=device)
            self._on_device[device] = affine_table(self.rows, device), times, counters
        return self._on_device[device]


def _check(schedule: Schedule, steps: int, prediction: str, flow: bool) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise TypeError(f"steps must be an int, got {type(steps).__name__}")
    if schedule.is_flow != flow:
        kind = "a flow schedule" if flow else "a schedule with discrete times"
        raise ValueError(f"schedule must be {kind}, got {schedule.name}")
    if steps < 1 or (not flow and steps > schedule.steps):
        allowed = "at least 1" if flow else f"in [1, {schedule.steps}]"
        raise ValueError(f"steps must be {allowed}, got {steps}")
    convert(prediction, "x0", 0.6, 0.8)


def _leading(schedule: Schedule, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times n k, downwards, and alpha_bar at each and at the next; before time 0 there is no noise."""
    stride = schedule.steps // steps
    times = np.arange(steps - 1, -1, -1, dtype=np.int64) * stride
    alpha, _ = schedule.coefficients(times)
    previous = times - stride
    before, _ = schedule.coefficients(np.maximum(previous, 0))
    return times, alpha**2, np.where(previous < 0, 1.0, before**2)


def _clip(clip: float | None) -> dict[str, float]:
    if clip is None:
        return {}
    if not (clip > 0 and math.isfinite(clip)):
        raise ValueError(f"clip must be positive, got {clip}")
    return {"clip_min": -float(clip), "clip_max": float(clip)}


def ddpm(
    schedule: Schedule,
    steps: int = 1000,
    *,
    prediction: str = "epsilon",
    clip: float | None = 1.0,
    variance: str = "fixed_small",
) -> Plan:
    """Ancestral sampling from the posterior of the forward process (Ho et al. 2020, eq. 6, 7).

    Args:
        schedule: with discrete times.
        steps: every ``schedule.steps // steps``-th time is visited.
        prediction: what the model predicts.
        clip: bound on the predicted x0, or None.
        variance: "fixed_small" (the posterior's, eq. 7) or "fixed_large" (beta).
    """
    _check(schedule, steps, prediction, flow=False)
    if variance not in ("fixed_small", "fixed_large"):
        raise ValueError(f"variance must be 'fixed_small' or 'fixed_large', got {variance!r}")
    rows = []
    times, alpha_bars, previous_bars = _leading(schedule, steps)
    for n, (time, bar, before) in enumerate(zip(times, alpha_bars, previous_bars, strict=True)):
        p, q = convert(prediction, "x0", math.sqrt(bar), math.sqrt(1 - bar))
        beta = 1 - bar / before
        posterior = (1 - before) / (1 - bar) * beta
        rows.append(
            {
                "p": p,
                "q": q,
                **_clip(clip),
                "a": math.sqrt(1 - beta) * (1 - before) / (1 - bar),
                "c_x0": math.sqrt(before) * beta / (1 - bar),
                # The last step lands on the mean.
                "d1": math.sqrt(posterior if variance == "fixed_small" else beta) if time > 0 else 0.0,
                "n1": n,
            }
        )
    return Plan("ddpm", times.astype(np.float64), tuple(rows), noisy=True)


def ddim(
    schedule: Schedule,
    steps: int = 50,
    *,
    prediction: str = "epsilon",
    eta: float = 0.0,
    clip: float | None = 1.0,
) -> Plan:
    """Denoising diffusion implicit models (Song, Meng and Ermon 2021, eq. 12, 16).

    Args:
        schedule: with discrete times.
        steps: every ``schedule.steps // steps``-th time is visited.
        prediction: what the model predicts.
        eta: noise, from 0 (deterministic) to 1 (as much as ancestral sampling).
        clip: bound on the predicted x0, or None; epsilon stays the model's own.
    """
    _check(schedule, steps, prediction, flow=False)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    rows = []
    times, alpha_bars, previous_bars = _leading(schedule, steps)
    for n, (bar, before) in enumerate(zip(alpha_bars, previous_bars, strict=True)):
        alpha, sigma = math.sqrt(bar), math.sqrt(1 - bar)
        p, q = convert(prediction, "x0", alpha, sigma)
        r, s = convert(prediction, "epsilon", alpha, sigma)
        noise = eta * math.sqrt((1 - before) / (1 - bar) * (1 - bar / before))
        rows.append(
            {
                "p": p,
                "q": q,
                "r": r,
                "s": s,
                **_clip(clip),
                "c_x0": math.sqrt(before),
                "c_u": math.sqrt(max(1 - before - noise**2, 0.0)),
                "d1": noise,
                "n1": n,
            }
        )
    return Plan("ddim", times.astype(np.float64), tuple(rows), noisy=eta > 0)


def flow_euler(schedule: Schedule, steps: int = 28, *, prediction: str = "flow") -> Plan:
    """Euler's method on the flow ``dx/ds = eps - x0`` from noise to data (Lipman et al. 2023; Liu et al. 2022).

    Args:
        schedule: a flow schedule.
        steps: equal steps of the time before its shift.
        prediction: what the model predicts.
    """
    _check(schedule, steps, prediction, flow=True)
    times = np.linspace(1, 0, steps + 1, dtype=np.float64)
    alphas, sigmas = schedule.coefficients(times)
    rows = []
    for i in range(steps):
        # At pure noise a predicted epsilon says nothing of x0; its limit is the next best time.
        at = max(alphas[i], 1e-3) if prediction == "epsilon" else alphas[i]
        r, s = convert(prediction, "flow", at, sigmas[i])
        rows.append({"a": 1.0, "r": r, "s": s, "c_u": sigmas[i + 1] - sigmas[i]})
    return Plan("flow_euler", sigmas[:-1], tuple(rows))


SAMPLERS: dict[str, Callable[..., Plan]] = {"ddpm": ddpm, "ddim": ddim, "flow_euler": flow_euler}


def guided(plan: Plan, scale: float) -> Plan:
    """The plan for a model that returns (conditional, unconditional): classifier-free guidance (Ho and Salimans 2022)

    ``e = scale conditional + (1 - scale) unconditional`` as two coefficients of the same step.
    """
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    rows = tuple({**row, "g1": float(scale), "g2": 1.0 - scale} for row in plan.rows)
    return Plan(f"{plan.name}, guidance {scale:g}", plan.times, rows, plan.history, plan.noisy)


@torch.no_grad()
def sample(
    model: Callable[[torch.Tensor, torch.Tensor], torch.Tensor | tuple[torch.Tensor, ...]],
    plan: Plan,
    shape: Sequence[int],
    seeds: torch.Tensor | Sequence[int],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    x: torch.Tensor | None = None,
    callback: Callable[[int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Runs a plan from noise to samples; the same bits for every batch split, thread count and instruction set of the steps.

    The state is float32 throughout; a model in bfloat16 or float16 gets its input from the same pass. Nothing here waits
    for the device, so a captured loop is one CUDA graph.

    Args:
        model: ``model(x, t)`` with x [B, *shape] of ``dtype`` and t float32 [B] returns the plan's prediction, or a tuple
            of up to three for :func:`guided`.
        plan: from a sampler.
        shape: of one sample.
        seeds: int64 [B]; sample b depends on ``seeds[b]`` alone.
        device, dtype: where the model runs, and in what.
        x: start from this float32 state instead of noise.
        callback: called after each step with its number and the state, which it must not change.

    Returns:
        float32 [B, *shape].
    """
    device = torch.device(device)
    if not isinstance(seeds, torch.Tensor):
        seeds = torch.tensor(list(seeds), dtype=torch.int64)
    seeds = seeds.to(device)
    table, times, counters = plan.on(device)
    x = randn(seeds, shape, stream=INITIAL_STREAM, device=device) if x is None else x.to(device, torch.float32, copy=True)
    model_input = x if dtype == torch.float32 else x.to(dtype)
    history: list[torch.Tensor] = []
    for i in range(len(plan)):
        prediction = model(model_input, times[i].expand(len(seeds)))
        # The ring: the newest entry takes the memory of the oldest, which the same pass reads first.
        newest = None
        if plan.history:
            newest = history[-1] if len(history) == plan.history else torch.empty_like(x)
        affine_step(
            x,
            prediction,
            table,
            counters[i : i + 1],
            history=history,
            seeds=seeds if plan.noisy else None,
            stream=SAMPLER_STREAM,
            out=x,
            history_out=newest,
            next_input=None if dtype == torch.float32 else model_input,
        )
        if newest is not None:
            history = [newest, *history][: plan.history]
        if callback is not None:
            callback(i, x)
    return x
