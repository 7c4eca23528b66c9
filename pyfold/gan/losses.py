"""Losses of the two players, from the discriminator's logits."""

from __future__ import annotations

import torch
from torch.nn.functional import softplus


def non_saturating_d(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """The discriminator's ``mean softplus(-D(x)) + mean softplus(D(G(z)))`` (Goodfellow et al. 2014, eq. 1).

    Args:
        real, fake: logits of any shape.
    """
    return softplus(-real).mean() + softplus(fake).mean()


def non_saturating_g(fake: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
    """The generator's ``mean softplus(-D(G(z)))`` (Goodfellow et al. 2014, section 3); ``real`` is not used."""
    return softplus(-fake).mean()


def _paired(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    if real.shape != fake.shape:
        raise ValueError(f"real and fake must have the same shape, got {tuple(real.shape)} and {tuple(fake.shape)}")
    return real - fake


def relativistic_d(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """The discriminator's ``mean softplus(-(D(x) - D(G(z))))`` over pairs (Jolicoeur-Martineau 2018; Huang et al. 2024).

    Args:
        real, fake: logits of the same shape; the i-th of each are a pair.
    """
    return softplus(-_paired(real, fake)).mean()


def relativistic_g(fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """The generator's ``mean softplus(-(D(G(z)) - D(x)))`` over the same pairs."""
    return softplus(_paired(real, fake)).mean()


#: name -> (discriminator's loss(real, fake), generator's loss(fake, real))
LOSSES = {
    "non_saturating": (non_saturating_d, non_saturating_g),
    "relativistic": (relativistic_d, relativistic_g),
}
