"""Guidance as coefficients of the step: of several model outputs, of their sizes, or of the gradient of an energy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

import torch

from pyfold.diffusion.formulas import Form, M, X, clipped, formula
from pyfold.diffusion.plan import Plan
from pyfold.diffusion.predictions import PREDICTIONS, check_prediction, convert, determines_x0
from pyfold.diffusion.schedule import Point, Schedule
from pyfold.ops import AFFINE_STEP_COLUMNS
from pyfold.ops._tensors import accumulation

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

    Args:
        plan: from a sampler.
        scale: of the guidance; 1 is the conditional model alone.

    Returns:
        A plan of the same steps and draws.

    Raises:
        ValueError: scale is not finite.

    Example:
        >>> plan = guided(pyfold.diffusion.ddim(pyfold.diffusion.vp_linear(), 4), scale=7.5)
        >>> pyfold.diffusion.sample(lambda x, t: (x, x), plan, (2,), 3).shape
        torch.Size([1, 2])
    """
    _finite("scale", scale)
    rows = tuple({**row, "g1": float(scale), "g2": 1.0 - scale} for row in plan.rows)
    return replace(plan, name=f"{plan.name}, guidance {scale:g}", rows=rows)


def guided_plus_plus(plan: Plan, scale: float) -> Plan:
    """CFG++ for (conditional, unconditional): x0 from the guided output, the noise from the unconditional one.

    Chung et al. 2024, algorithm 2, where the scale is in [0, 1]. In a step ``alpha' x0 + k epsilon + differences`` the
    epsilon of ``k epsilon`` becomes the unconditional one; the differences that a multistep method extrapolates with, and its
    history, are of the guided output. That is one more term of the step, the unconditional output itself.

    That "k epsilon" is how the next state depends on the present one, all x0 known so far held: nothing that depends on what
    the plan keeps for later steps.

    Args:
        plan: of a sampler of one evaluation a step, without clip; its noise comes from seeds.
        scale: of the guidance.

    Returns:
        A plan of the same steps and draws.

    Raises:
        ValueError: a plan of several evaluations a step, with clip, learned variance or other guidance, one of
            epsilon that starts at pure noise, or one made by hand that does not say what its model predicts.
    """
    _finite("scale", scale)
    if plan.learned or plan.base_output is not None or len(plan.step_starts) != len(plan):
        raise ValueError(f"plan must be of a sampler of one evaluation a step, without learned variance, got {plan.name}")
    rows = []
    for row, here, kept in zip(plan.rows, plan.points, _of_present(plan), strict=True):
        # epsilon = (x - alpha x0) / sigma, and x0 = .. + q e.
        change = -kept * here.alpha * _x0_of(plan, here)["m"]
        through_u = bool(row.get("s")) and not row.get("t")
        column, of_x, of_e = ("c_u", row.get("r", 0.0), row["s"]) if through_u else ("c_x0", row["p"], row["q"])
        part = change / of_e
        changed = {"a": row.get("a", 0.0) + part * of_x, column: row.get(column, 0.0) - part, "a_base": change}
        rows.append({**row, **changed, "g1": float(scale), "g2": 1.0 - scale})
    return replace(plan, name=f"{plan.name}, CFG++ {scale:g}", rows=tuple(rows), base_output=1)


def _x0_of(plan: Plan, here: Point) -> Form:
    """x0 of the state and the model's output, whatever the plan's rows make of it."""
    if here.alpha == 0 and not determines_x0(plan.prediction):
        what = f"where {plan.prediction} says nothing of x0"
        raise ValueError(f"plan must not start at pure noise (alpha 0), {what}, got {plan.name}")
    of_x, of_model = convert(plan.prediction, "x0", here.alpha, here.sigma, plan.data_std)
    x0: Form = X * of_x + M * of_model
    return x0


def _of_present(plan: Plan) -> list[float]:
    """What of each next state is the present one, where it is written as that and all x0 so far."""
    result: list[float] = []
    past: list[Form] = []
    for i, (row, here) in enumerate(zip(plan.rows, plan.points, strict=True)):
        if clipped(row):
            raise ValueError(f"plan must be without clip, got {plan.name} with {row['clip_min']:g} to {row['clip_max']:g}")
        if row.get("g2"):
            raise ValueError(f"plan must be without other guidance, got {plan.name}")
        x0 = _x0_of(plan, here)
        # The model's output by x0 of this stage, and what was kept before by x and x0 of all stages.
        solved = {"m": (Form(**{f"x0 {i}": 1.0}) - X * x0["x"]) / x0["m"]}
        solved |= {f"h{j + 1}": form for j, form in enumerate(past)}
        after, u = (form.over(**solved) for form in formula(row))
        result.append(float(after["x"]))
        # x of before by x of after; a state that nothing is left of stays an unknown of its own.
        before = (X - after.without("x")) / after["x"] if after["x"] else Form(**{f"x {i}": 1.0})
        past = [form.over(x=before) for form in [u, *past][: plan.history]]
    return result


def guided_by_energy(plan: Plan, schedule: Schedule | None = None, prediction: str = "", weight: float = 1.0) -> Plan:
    """The plan for a model whose last output is grad U(x): the score becomes ``score - weight grad U`` (:func:`with_gradient`).

    With U = -log p(y | x) this is a classifier's guidance (Song et al. 2021, eq. 14; Dhariwal and Nichol 2021, section 4.2).

    That is ``epsilon + weight sigma grad U``, or the same change in the words of another prediction, as one more coefficient.

    Args:
        plan: from a sampler.
        schedule, prediction: the plan's own may be left out.
        weight: of the energy; an inverse temperature.

    Returns:
        A plan of the same steps and draws.

    Raises:
        ValueError: the plan has three model outputs already, was made for another prediction, or visits pure noise with
            another prediction than epsilon.
    """
    _finite("weight", weight)
    predicted = prediction or plan.prediction
    check_prediction("prediction", predicted)
    if plan.prediction not in ("", predicted):
        raise ValueError(f"prediction must be the plan's, {plan.prediction!r}, got {prediction!r}")
    data_std, rows = plan.data_std if schedule is None else schedule.data_std, []
    for row, point in zip(plan.rows, plan.points, strict=True):
        free = next((f"g{j}" for j in (2, 3) if not row.get(f"g{j}")), None)
        if free is None:
            raise ValueError(f"plan must have at most 2 model outputs, got {plan.name}")
        of_x0, of_epsilon = PREDICTIONS[predicted](point.alpha, point.sigma, data_std)
        if of_x0 and point.alpha == 0:
            raise ValueError(f"prediction must be 'epsilon' for a plan from pure noise, got {predicted!r}")
        change = of_epsilon - (of_x0 * point.ratio if of_x0 else 0.0)
        rows.append({**row, free: weight * point.sigma * change})
    return replace(plan, name=f"{plan.name}, energy {weight:g}", rows=tuple(rows))


def with_gradient(
    model: Callable[..., Any], energy: Callable[[torch.Tensor], torch.Tensor], schedule: Schedule | None = None
) -> Callable[..., Any]:
    """A model that also returns grad U, for :func:`guided_by_energy`.

    Args:
        model: ``model(x, t)``, one output or a tuple.
        energy: ``energy(x)`` is U of the state, [B], differentiable.
        schedule: needed where it scales the model's input (``edm()``): the state is found again from that and the time, and
            the gradient is with respect to the state.

    Returns:
        ``model(x, t)`` with the gradient [B, ...] behind its outputs.
    """

    def both(x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = model(x, t)
        state = x if schedule is None else schedule.state_of(x, t)
        with torch.enable_grad():
            at = state.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(energy(at).sum(), at)
        return (*outputs, gradient) if isinstance(outputs, tuple) else (outputs, gradient)

    return both


# --- adaptations: a reduction over each sample, then the step, its coefficients staying on the device


def _flat(value: torch.Tensor) -> torch.Tensor:
    """[B, N], half types in float32: what is reduced becomes a coefficient of the whole step."""
    return value.flatten(1).to(accumulation(value.dtype))


def _combined(rows: torch.Tensor, models: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """e of the step, flat [B, N]."""
    weights = [rows[:, _COLUMN[f"g{j + 1}"], None] for j in range(len(models))]
    return reduce(add, (w.to(m.dtype) * m for w, m in zip(weights, map(_flat, models), strict=True)))


def _scaled(rows: torch.Tensor, columns: tuple[str, ...], factor: torch.Tensor) -> torch.Tensor:
    rows = rows.clone()
    for name in columns:
        # A slice each: a list of columns would be copied to the device, which waits for it.
        rows[:, _COLUMN[name]] *= factor.to(rows.dtype)
    return rows


def rescale(strength: float = 0.7) -> Adaptation:
    """Guided output with the standard deviation of the conditional one, that much of it (Lin et al. 2024, eq. 14 to 16).

    Args:
        strength: in [0, 1]; 0 changes nothing.

    Returns:
        What ``sample(adapt=...)`` takes: it changes the rows of a step by what the model said.

    Raises:
        ValueError: strength is out of range.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], got {strength}")

    def adapt(rows: torch.Tensor, x: torch.Tensor, models: tuple[torch.Tensor, ...]) -> torch.Tensor:
        ratio = _flat(models[0]).std(1) / _combined(rows, models).std(1)
        return _scaled(rows, ("g1", "g2", "g3"), strength * ratio + 1 - strength)

    return adapt


def renorm(limit: float = 1.0) -> Adaptation:
    """Guided output no longer than ``limit`` times the conditional one (Qin et al. 2025, Lumina-Image 2.0).

    Args:
        limit: positive.

    Returns:
        What ``sample(adapt=...)`` takes: it changes the rows of a step by what the model said.

    Raises:
        ValueError: limit is not positive and finite.
    """
    if not 0 < limit < math.inf:
        raise ValueError(f"limit must be positive, got {limit}")

    def adapt(rows: torch.Tensor, x: torch.Tensor, models: tuple[torch.Tensor, ...]) -> torch.Tensor:
        ratio = _flat(models[0]).norm(dim=1) / _combined(rows, models).norm(dim=1)
        return _scaled(rows, ("g1", "g2", "g3"), (limit * ratio).clamp(max=1.0))

    return adapt


def dynamic_threshold(quantile: float = 0.995, least: float = 1.0, most: float = math.inf) -> Adaptation:
    """x0 clipped to the quantile of its absolute values and divided by it (Saharia et al. 2022, section 2.3).

    Args:
        quantile: in [0, 1].
        least, most: of the bound; ``least`` 1 leaves what lies in [-1, 1].

    Returns:
        What ``sample(adapt=...)`` takes: it changes the rows of a step by what the model said.

    Raises:
        ValueError: quantile is outside [0, 1], or not 0 < least <= most.
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile must be in [0, 1], got {quantile}")
    if not 0 < least <= most:
        raise ValueError(f"least and most must be 0 < least <= most, got {least} and {most}")

    def adapt(rows: torch.Tensor, x: torch.Tensor, models: tuple[torch.Tensor, ...]) -> torch.Tensor:
        state = _flat(x)
        p, q = (rows[:, _COLUMN[name], None].to(state.dtype) for name in ("p", "q"))
        x0 = (p * state + q * _combined(rows, models)).abs()
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
