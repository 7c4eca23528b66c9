"""Adversarial training: losses, penalties, dynamics of the game, augmentation and latent tools."""

from pyfold.gan import augment, dynamics, latent
from pyfold.gan.dynamics import DYNAMICS
from pyfold.gan.losses import (
    DIVERGENCES,
    LOSSES,
    BoundaryEquilibrium,
    energy_d,
    energy_g,
    hinge_d,
    least_squares_d,
    least_squares_g,
    minimax_g,
    non_saturating_d,
    non_saturating_g,
    relativistic_d,
    relativistic_g,
    wasserstein_d,
    wasserstein_g,
)
from pyfold.gan.monitor import GameMonitor, game_eigenvalues
from pyfold.gan.penalties import (
    LazyPenalty,
    dragan_penalty,
    functional_penalty,
    r1_penalty,
    r2_penalty,
    wgan_gp_penalty,
    with_spectral_norm,
    zero_centred_penalty,
)

__all__ = [
    "DIVERGENCES",
    "DYNAMICS",
    "LOSSES",
    "BoundaryEquilibrium",
    "GameMonitor",
    "LazyPenalty",
    "augment",
    "dragan_penalty",
    "dynamics",
    "energy_d",
    "energy_g",
    "functional_penalty",
    "game_eigenvalues",
    "hinge_d",
    "latent",
    "least_squares_d",
    "least_squares_g",
    "minimax_g",
    "non_saturating_d",
    "non_saturating_g",
    "r1_penalty",
    "r2_penalty",
    "relativistic_d",
    "relativistic_g",
    "wasserstein_d",
    "wasserstein_g",
    "wgan_gp_penalty",
    "with_spectral_norm",
    "zero_centred_penalty",
]
