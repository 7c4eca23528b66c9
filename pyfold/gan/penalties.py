"""Zero-centred gradient penalties (Mescheder, Geiger and Nowozin 2018, eq. 9, 10), with their factor one half."""

from __future__ import annotations

from collections.abc import Callable

import torch


def _gradient_penalty(logits: torch.Tensor, samples: torch.Tensor, gamma: float, name: str) -> torch.Tensor:
    if not samples.requires_grad:
        raise ValueError(f"{name} must require a gradient before the discriminator sees them: {name}.requires_grad_()")
    if not logits.requires_grad:
        raise ValueError(f"logits must be the discriminator's output for {name}, got a tensor without a graph")
    if gamma < 0:
        raise ValueError(f"gamma must not be negative, got {gamma}")
    (gradient,) = torch.autograd.grad(logits.sum(), samples, create_graph=True)
    return gamma / 2 * gradient.float().square().flatten(1).sum(1).mean()


def r1_penalty(logits: torch.Tensor, real: torch.Tensor, gamma: float) -> torch.Tensor:
    """``gamma / 2 E |grad D(x)|^2`` over real samples.

    Args:
        logits: D(real), one or more for each sample.
        real: [B, ...], requiring a gradient before the discriminator saw them.
        gamma: the weight; note the half that comes with it.
    """
    return _gradient_penalty(logits, real, gamma, "real")


def r2_penalty(logits: torch.Tensor, fake: torch.Tensor, gamma: float) -> torch.Tensor:
    """``gamma / 2 E |grad D(G(z))|^2`` over generated samples, detached from the generator; arguments as for R1."""
    return _gradient_penalty(logits, fake, gamma, "fake")


def functional_penalty(
    discriminator: Callable[[torch.Tensor], torch.Tensor], samples: torch.Tensor, gamma: float
) -> torch.Tensor:
    """R1 or R2 by ``torch.func.grad``: the form that ``torch.compile(fullgraph=True)`` takes, double backward included."""
    gradient = torch.func.grad(lambda x: discriminator(x).sum())(samples)
    return gamma / 2 * gradient.float().square().flatten(1).sum(1).mean()
