"""Losses of the two players, from what the discriminator says of real and generated samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import relu, softplus


def non_saturating_d(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """The discriminator's ``mean softplus(-D(x)) + mean softplus(D(G(z)))`` (Goodfellow et al. 2014, eq. 1).

    Args:
        real, fake: logits of any shape.

    Returns:
        0-d, of the logits' dtype.

    Example:
        >>> non_saturating_d(torch.zeros(8), torch.zeros(8)).item()  # twice log 2: it cannot tell
        1.3862943649291992
    """
    return softplus(-real).mean() + softplus(fake).mean()


def non_saturating_g(fake: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
    """The generator's ``mean softplus(-D(G(z)))`` (Goodfellow et al. 2014, section 3); ``real`` is not used.

    Args:
        fake: logits of generated samples, of any shape.
        real: not used; here so that all generator losses are called alike.

    Returns:
        0-d, of the logits' dtype.
    """
    return softplus(-fake).mean()


def _paired(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    if real.shape != fake.shape:
        raise ValueError(f"real and fake must have the same shape, got {tuple(real.shape)} and {tuple(fake.shape)}")
    return real - fake


def relativistic_d(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """The discriminator's ``mean softplus(-(D(x) - D(G(z))))`` over pairs (Jolicoeur-Martineau 2018; Huang et al. 2024).

    Args:
        real, fake: logits of the same shape; the i-th of each are a pair.

    Returns:
        0-d, of the logits' dtype.

    Raises:
        ValueError: the shapes differ.
    """
    return softplus(-_paired(real, fake)).mean()


def relativistic_g(fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """The generator's ``mean softplus(-(D(G(z)) - D(x)))`` over the same pairs (Jolicoeur-Martineau 2018).

    Args:
        fake, real: logits of the same shape; the i-th of each are a pair.

    Returns:
        0-d, of the logits' dtype.

    Raises:
        ValueError: the shapes differ.
    """
    return softplus(_paired(real, fake)).mean()


def minimax_g(fake: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
    """The generator's ``mean log(1 - sigmoid(D(G(z)))) = -mean softplus(D(G(z)))`` (Goodfellow et al. 2014, eq. 1).

    Its gradient fades where the discriminator is sure; :func:`non_saturating_g` is what trains in practice.

    Args:
        fake: logits of generated samples, of any shape.
        real: not used; here so that all generator losses are called alike.

    Returns:
        0-d, of the logits' dtype.
    """
    return -softplus(fake).mean()


def least_squares_d(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """``(mean (D(x) - 1)^2 + mean D(G(z))^2) / 2`` (Mao et al. 2017, eq. 9).

    Args:
        real, fake: logits of any shape.

    Returns:
        0-d, of the logits' dtype.
    """
    return ((real - 1).square().mean() + fake.square().mean()) / 2


def least_squares_g(fake: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
    """``mean (D(G(z)) - 1)^2 / 2`` (Mao et al. 2017, eq. 9).

    Args:
        fake: logits of generated samples, of any shape.
        real: not used; here so that all generator losses are called alike.

    Returns:
        0-d, of the logits' dtype.
    """
    return (fake - 1).square().mean() / 2


def wasserstein_d(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """``mean D(G(z)) - mean D(x)`` for a 1-Lipschitz D (Arjovsky, Chintala and Bottou 2017, eq. 2).

    Args:
        real, fake: logits of any shape.

    Returns:
        0-d, of the logits' dtype.
    """
    return fake.mean() - real.mean()


def wasserstein_g(fake: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
    """``-mean D(G(z))`` (Arjovsky, Chintala and Bottou 2017, algorithm 1).

    Args:
        fake: logits of generated samples, of any shape.
        real: not used; here so that all generator losses are called alike.

    Returns:
        0-d, of the logits' dtype.
    """
    return -fake.mean()


def hinge_d(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """``mean max(0, 1 - D(x)) + mean max(0, 1 + D(G(z)))`` (Lim and Ye 2017); the generator's loss is Wasserstein's.

    Args:
        real, fake: logits of any shape.

    Returns:
        0-d, of the logits' dtype.
    """
    return relu(1 - real).mean() + relu(1 + fake).mean()


@dataclass(frozen=True)
class Divergence:
    """An f-divergence as a game (Nowozin, Cseke and Tomioka 2016, eq. 6): ``max_T E_p[T] - E_q[f*(T)]``, T = g_f(logit).

    Attributes:
        activation: ``g_f``, from the discriminator's output to the domain of ``f*`` (table 6).
        conjugate: ``f*(g_f(logit))`` as a function of the logit, simplified so that nothing overflows before it must.
        optimum: the logit of the best discriminator from the log ratio ``log p(x) / q(x)``; there the game's value is the
            divergence.
    """

    activation: Callable[[torch.Tensor], torch.Tensor]
    conjugate: Callable[[torch.Tensor], torch.Tensor]
    optimum: Callable[[torch.Tensor], torch.Tensor]

    def d_loss(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """``-(mean g_f(D(x)) - mean f*(g_f(D(G(z)))))``; its negative is a lower bound of the divergence."""
        return self.conjugate(fake).mean() - self.activation(real).mean()

    def g_loss(self, fake: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
        """``-mean f*(g_f(D(G(z))))``."""
        return -self.conjugate(fake).mean()


#: f-divergences by name; ``jensen_shannon`` is twice the usual one, as in the paper's table 1.
DIVERGENCES = {
    "kl": Divergence(lambda v: v, lambda v: (v - 1).exp(), lambda r: r + 1),
    "reverse_kl": Divergence(lambda v: -(-v).exp(), lambda v: v - 1, lambda r: r),
    "pearson": Divergence(lambda v: v, lambda v: v.square() / 4 + v, lambda r: 2 * r.expm1()),
    "squared_hellinger": Divergence(lambda v: -(-v).expm1(), lambda v: v.expm1(), lambda r: r / 2),
    "jensen_shannon": Divergence(
        lambda v: math.log(2) - softplus(-v), lambda v: softplus(v) - math.log(2), lambda r: r
    ),
}  # fmt: skip


def energy_d(real: torch.Tensor, fake: torch.Tensor, margin: float = 1.0) -> torch.Tensor:
    """EBGAN's ``mean E(x) + mean max(0, margin - E(G(z)))`` (Zhao, Mathieu and LeCun 2017, eq. 1).

    Args:
        real, fake: energies, not logits: the reconstruction errors of an auto-encoding discriminator.
        margin: the energy above which a generated sample no longer counts, positive.

    Returns:
        0-d, of the logits' dtype.

    Raises:
        ValueError: margin is not positive.
    """
    if not margin > 0:
        raise ValueError(f"margin must be positive, got {margin}")
    return real.mean() + relu(margin - fake).mean()


def energy_g(fake: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
    """``mean E(G(z))`` (Zhao, Mathieu and LeCun 2017, eq. 2).

    Args:
        fake: energies of generated samples, of any shape.
        real: not used; here so that all generator losses are called alike.

    Returns:
        0-d, of the logits' dtype.
    """
    return fake.mean()


class BoundaryEquilibrium(torch.nn.Module):
    """BEGAN's losses and the controller that holds its players in balance (Berthelot, Schumm and Metz 2017, section 3.3).

    A module whose only state is ``k``: ``state_dict`` holds it, and ``.to`` moves it.

    Args:
        diversity: gamma, the wanted ratio ``E(G(z)) / E(x)`` of reconstruction errors, in (0, 1].
        rate: lambda_k, how fast ``k`` follows.

    Attributes:
        k: how much the discriminator cares for generated samples, in [0, 1]; a 0-d buffer.
    """

    k: torch.Tensor

    def __init__(self, diversity: float = 0.5, rate: float = 1e-3):
        super().__init__()
        if not 0 < diversity <= 1:
            raise ValueError(f"diversity must be in (0, 1], got {diversity}")
        if not 0 < rate < float("inf"):
            raise ValueError(f"rate must be positive and finite, got {rate}")
        self.diversity, self.rate = diversity, rate
        self.register_buffer("k", torch.zeros(()))

    def d_loss(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """``mean E(x) - k mean E(G(z))``."""
        self.k = self.k.to(real.device)
        return real.mean() - self.k * fake.mean()

    def g_loss(self, fake: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
        """``mean E(G(z))``."""
        return fake.mean()

    @torch.no_grad()
    def update(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """Moves ``k`` after a step and returns the measure of convergence ``E(x) + |gamma E(x) - E(G(z))|``.

        A batch whose energies are not finite leaves ``k`` as it is; the measure shows it.
        """
        error = self.diversity * real.float().mean() - fake.float().mean()
        moved = (self.k.to(real.device) + self.rate * error).clamp(0, 1)
        self.k = torch.where(error.isfinite(), moved, self.k.to(real.device))
        return real.mean() + error.abs()


#: name -> (discriminator's loss(real, fake), generator's loss(fake, real)), all from logits.
LOSSES = {
    "non_saturating": (non_saturating_d, non_saturating_g),
    "relativistic": (relativistic_d, relativistic_g),
    "minimax": (non_saturating_d, minimax_g),
    "least_squares": (least_squares_d, least_squares_g),
    "wasserstein": (wasserstein_d, wasserstein_g),
    "hinge": (hinge_d, wasserstein_g),
    **{name: (divergence.d_loss, divergence.g_loss) for name, divergence in DIVERGENCES.items()},
}
