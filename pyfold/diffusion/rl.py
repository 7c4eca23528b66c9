"""Reinforcement learning on samplers: stochastic steps with their log-probabilities, and rollouts that are seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch

from pyfold.diffusion.formulas import EPSILON, X0, N, Step
from pyfold.diffusion.loop import initial_noise
from pyfold.diffusion.plan import Plan
from pyfold.diffusion.samplers._declare import Past, sampler
from pyfold.diffusion.samplers.ancestral import flow_grpo_rate, flow_sde_step
from pyfold.diffusion.schedule import Point
from pyfold.ops import AFFINE_STEP_COLUMNS, affine_step, mse_loss
from pyfold.ops._tensors import accumulation

__all__ = ["log_prob", "policy_cps", "policy_sde", "replay"]

_D1 = AFFINE_STEP_COLUMNS.index("d1")
Outputs = torch.Tensor | Sequence[torch.Tensor]


@sampler(
    10,
    source='Liu et al. 2025, Flow-GRPO, eq. 9 (rate "flow_grpo"); Xue et al. 2025, DanceGRPO (rate "dance_grpo")',
    keeps="flow",
    spacing="trailing",
    prediction="flow",
    schedules="flow",
    listed=False,
    noise_level=(0.0, math.inf),
    rate=("flow_grpo", "dance_grpo"),
    texts={
        "noise_level": "a, of the noise s a square root of time.",
        "rate": "s is ``a sqrt(sigma / (1 - sigma))`` of Flow-GRPO, or a throughout of DanceGRPO.",
    },
)
def policy_sde(here: Point, there: Point, past: Past, *, noise_level: float = 0.7, rate: str = "flow_grpo") -> Step:
    """Euler-Maruyama on an SDE with the flow's marginals, every step with noise: so the last step is part of the policy too.

    ``x' = x + (v + s^2 / (2 sigma) (x + (1 - sigma) v)) dt + s sqrt(-dt) noise``; at pure noise the next point's
    ``sigma / (1 - sigma)`` stands for the infinite one.
    """
    return flow_sde_step(here, there, flow_grpo_rate(here, there, noise_level) if rate == "flow_grpo" else noise_level**2)


@sampler(
    10,
    source="Wang and Yu 2025, Flow-CPS",
    keeps="epsilon",
    spacing="trailing",
    prediction="flow",
    schedules="flow",
    listed=False,
    noise_level=(0.0, 1.0),
    texts={"noise_level": "eta: 0 is the flow, 1 all noise new."},
)
def policy_cps(here: Point, there: Point, past: Past, *, noise_level: float = 0.7) -> Step:
    """``x' = alpha' x0 + sigma' (cos(eta pi / 2) epsilon + sin(eta pi / 2) noise)``, the last step without noise.

    Signal and noise keep the shares that the schedule gives them.
    """
    angle = noise_level * math.pi / 2
    kept, new = there.sigma * math.cos(angle), there.sigma * math.sin(angle)
    return Step(X0 * there.alpha + EPSILON * kept + N * new)


def log_prob(
    plan: Plan, x: torch.Tensor, models: Outputs, index: torch.Tensor, after: torch.Tensor, *, reduce: str = "mean"
) -> torch.Tensor:
    """log density [B] of the transition from x to ``after``, a Gaussian around the step without its noise
    (Black et al. 2024, section 4.2).

    Differentiable in ``models``. A step without noise has no density, its value is NaN. In float32 or wider whatever the
    state's dtype, the squares summed in a fixed order: a sample's value does not depend on its batch.

    Args:
        plan: of one noise a step and no history.
        x, after: [B, ...]. models: the model's output at x, or several. index: int64 [1] or [B], the stages.
        reduce: "mean" over the sample's elements, as Flow-GRPO, DanceGRPO and CPS have it (ratios do not depend on the
            resolution), or "sum".

    Returns:
        [B], in float32 or wider.

    Raises:
        ValueError: another plan, or another word.

    Example:
        >>> plan = policy_sde(pyfold.diffusion.flow(), 4)
        >>> x, output, index = torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0])
        >>> bool(log_prob(plan, x, output, index, x) > log_prob(plan, x, output, index, x + 1))  # nearer to the mean
        True
    """
    if reduce not in ("mean", "sum"):
        raise ValueError(f"reduce must be 'mean' or 'sum', got {reduce!r}")
    if plan.history or any(row.get(d) for row in plan.rows for d in ("d2", "d3")):
        raise ValueError(f"log_prob needs a plan of one noise a step and no history, got {plan.name}")
    table = plan.on(x.device)[0]
    wide = accumulation(x.dtype)
    mean = affine_step(x.to(wide), models, table, index)
    std = table[index.expand(x.shape[0]), _D1].to(wide)
    squares: torch.Tensor = mse_loss(mean, after.to(wide))
    value = -squares / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
    value = torch.where(std > 0, value, torch.nan)
    return value if reduce == "mean" else value * x[0].numel()


@torch.no_grad()
def replay(
    model: Callable[[torch.Tensor, torch.Tensor], Outputs],
    plan: Plan,
    shape: Sequence[int],
    seeds: torch.Tensor | Sequence[int] | int,
    *,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[int, torch.Tensor, Outputs, torch.Tensor]]:
    """The states of a rollout, made anew from its seeds: a rollout that is kept is its seeds and its plan, no trajectories.

    Under the policy that drew it the bits are the same, in any split or order of the samples, where the model's outputs are.

    Args:
        model, plan, shape, seeds, device: as for :func:`pyfold.diffusion.sample`. Samplers without a history.

    Returns:
        An iterator of (stage, x, the model's output at x, the state after), of each stage in turn.

    Raises:
        ValueError: a plan with a history, churn or scaled input.
    """
    if plan.history or plan.start_churn or plan.scales_input:
        raise ValueError(f"plan must have no history, no churn and no scaled input to be replayed, got {plan.name}")
    x, of_seeds = initial_noise(shape, seeds, plan.start_std, torch.device(device), torch.float32)
    for i, (time, index) in enumerate(plan.stages(x.device, len(x))):
        models = model(x, time)
        after = plan.step(x, models, index, seeds=of_seeds, stage=i)
        yield i, x, models, after
        x = after
