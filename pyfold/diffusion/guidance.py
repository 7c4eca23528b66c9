"""Guidance as coefficients of the step: of several model outputs, of their sizes, or of the gradient of an energy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from pyfold.diffusion.plan import Plan
from pyfold.diffusion.predictions import PREDICTIONS
from pyfold.diffusion.schedules import Schedule
from pyfold.ops import AFFINE_STEP_COLUMNS

_COLUMN = {name: i for i, name in enumerate(AFFINE_STEP_COLUMNS)}

#: Changes each sample's coefficients, float64 [B, 25], by what the model said: (rows, x, models) -> rows, on the device.
Adaptation = Callable[[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]], torch.Tensor]


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def guided(plan: Plan, scale: float) -> Plan:
    """The plan for a model that returns (conditional, unconditional): classifier-free guidance (Ho and Salimans 2022)

    ``e = scale conditional + (1 - scale) unconditional`` as two coefficients of the same step.
    """
    _finite("scale", scale)
    rows = tuple({**row, "g1": float(scale), "g2": 1.0 - scale} for row in plan.rows)
    return replace(plan, name=f"{plan.name}, guidance {scale:g}", rows=rows, _on_device={})


def guided_plus_plus(plan: Plan, scale: float) -> Plan:
    """CFG++ for (conditional, unconditional): x0 from the guided output, the noise from the unconditional one.

    Chung et al. 2024, algorithm 2, where the scale is in [0, 1]. In a step ``alpha' x0 + k epsilon + differences`` the
    epsilon of ``k epsilon`` becomes the unconditional one; the differences that a multistep method extrapolates with, and its
    history, are of the guided output. That is one more term of the step, the unconditional output itself.

    Args:
        plan: of a sampler of one evaluation a step, without clip; its noise comes from seeds.
        scale: of the guidance.
    """
    _finite("scale", scale)
    if plan.learned or plan.base_output is not None or len(plan.begins) != len(plan):
        raise ValueError(f"plan must be of a sampler of one evaluation a step, without learned variance, got {plan.name}")
    rows = []
    for row, here in zip(plan.rows, plan.points, strict=True):
        if not (row.get("clip_min", -math.inf) == -math.inf and row.get("clip_max", math.inf) == math.inf):
            raise ValueError(f"plan must be without clip, got {plan.name} with {row['clip_min']:g} to {row['clip_max']:g}")
        if here.alpha == 0:
            raise ValueError(f"plan must not start at pure noise (alpha 0), where nothing is known of x0, got {plan.name}")
        of_u = sum(row.get(name, 0.0) for name in ("c_u", "b1", "b2", "b3", "b4"))
        kept = row.get("a", 0.0) * here.sigma + (0.0 if plan.remembers == "x0" else of_u)
        # epsilon = .. x + slope times what stands in this column, which is r x + s e.
        if plan.remembers == "x0" or not row.get("s"):
            column, slope, r, s = "c_x0", -here.alpha / here.sigma, row["p"], row["q"]
        else:
            slope = 1.0 if plan.remembers == "epsilon" else here.alpha / (here.alpha + here.sigma)
            column, r, s = "c_u", row.get("r", 0.0), row["s"]
        changed = {
            "a": row.get("a", 0.0) + kept * slope * r,
            column: row.get(column, 0.0) - kept * slope,
            "a_base": kept * slope * s,
        }
        rows.append({**row, **changed, "g1": float(scale), "g2": 1.0 - scale})
    name = f"{plan.name}, CFG++ {scale:g}"
    return replace(plan, name=name, rows=tuple(rows), base_output=1, _on_device={})


def guided_by_energy(plan: Plan, schedule: Schedule, prediction: str, weight: float = 1.0) -> Plan:
    """The plan for a model whose last output is grad U(x): the score becomes ``score - weight grad U`` (:func:`with_gradient`).

    That is ``epsilon + weight sigma grad U``, or the same change in the words of another prediction, as one more coefficient.

    Raises:
        ValueError: the plan has three model outputs already, or visits pure noise with another prediction than epsilon.
    """
    _finite("weight", weight)
    rows = []
    for row, point in zip(plan.rows, plan.points, strict=True):
        free = next((f"g{j}" for j in (2, 3) if not row.get(f"g{j}")), None)
        if free is None:
            raise ValueError(f"plan must have at most 2 model outputs, got {plan.name}")
        of_x0, of_epsilon = PREDICTIONS[prediction](point.alpha, point.sigma, schedule.data_std)
        if of_x0 and point.alpha == 0:
            raise ValueError(f"prediction must be 'epsilon' for a plan from pure noise, got {prediction!r}")
        change = of_epsilon - (of_x0 * point.ratio if of_x0 else 0.0)
        rows.append({**row, free: weight * point.sigma * change})
    return replace(plan, name=f"{plan.name}, energy {weight:g}", rows=tuple(rows), _on_device={})


def with_gradient(model: Callable[..., Any], energy: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    """A model that also returns grad U, for :func:`guided_by_energy`; ``energy(x)`` is U of each sample [B], differentiable.

    U is of the model's input; scale it there where the schedule scales that.
    """

    def both(x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = model(x, t)
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(energy(at).sum(), at)
        return (*outputs, gradient) if isinstance(outputs, tuple) else (outputs, gradient)

    return both


# --- adaptations: a reduction over each sample, then the step, its coefficients staying on the device


def _combined(rows: torch.Tensor, models: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """e of the step, flat [B, N]."""
    weights = [rows[:, _COLUMN[f"g{j + 1}"], None] for j in range(len(models))]
    return sum(w.to(m.dtype) * m.flatten(1) for w, m in zip(weights, models, strict=True))


def _scaled(rows: torch.Tensor, columns: tuple[str, ...], factor: torch.Tensor) -> torch.Tensor:
    rows = rows.clone()
    for name in columns:
        # A slice each: a list of columns would be copied to the device, which waits for it.
        rows[:, _COLUMN[name]] *= factor.to(rows.dtype)
    return rows


def rescale(strength: float = 0.7) -> Adaptation:
    """Guided output with the standard deviation of the conditional one, that much of it (Lin et al. 2024, eq. 14 to 16)."""
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], got {strength}")

    def adapt(rows, x, models):
        ratio = models[0].flatten(1).std(1) / _combined(rows, models).std(1)
        return _scaled(rows, ("g1", "g2", "g3"), strength * ratio + 1 - strength)

    return adapt


def renorm(limit: float = 1.0) -> Adaptation:
    """Guided output no longer than ``limit`` times the conditional one (Lumina-Image 2.0)."""
    if not 0 < limit < math.inf:
        raise ValueError(f"limit must be positive, got {limit}")

    def adapt(rows, x, models):
        ratio = models[0].flatten(1).norm(dim=1) / _combined(rows, models).norm(dim=1)
        return _scaled(rows, ("g1", "g2", "g3"), (limit * ratio).clamp(max=1.0))

    return adapt


def dynamic_threshold(quantile: float = 0.995, least: float = 1.0, most: float = math.inf) -> Adaptation:
    """x0 clipped to the quantile of its absolute values and divided by it (Saharia et al. 2022, section 2.3).

    Args:
        quantile: in (0, 1].
        least, most: of the bound; ``least`` 1 leaves what lies in [-1, 1].
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must be in (0, 1], got {quantile}")
    if not 0 < least <= most:
        raise ValueError(f"least and most must be 0 < least <= most, got {least} and {most}")

    def adapt(rows, x, models):
        p, q = (rows[:, _COLUMN[name], None].to(x.dtype) for name in ("p", "q"))
        x0 = (p * x.flatten(1) + q * _combined(rows, models)).abs()
        # The k-th value, interpolated as torch.quantile does it, which refuses large inputs.
        rank = quantile * (x0.shape[1] - 1)
        below = math.floor(rank)
        ordered = x0.sort(dim=1).values
        part, low, high = rank - below, ordered[:, below], ordered[:, min(below + 1, x0.shape[1] - 1)]
        # One rounding an operation: the bits of torch.lerp depend on the machine.
        bound = ((1 - part) * low + part * high).clamp(least, most)
        rows = _scaled(rows, ("c_x0", "t"), 1 / bound)
        rows[:, _COLUMN["clip_min"]] = -bound.to(rows.dtype)
        rows[:, _COLUMN["clip_max"]] = bound.to(rows.dtype)
        return rows

    return adapt
