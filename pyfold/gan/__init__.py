"""Losses and penalties of adversarial training."""

from pyfold.gan import augment, latent
from pyfold.gan.losses import LOSSES, non_saturating_d, non_saturating_g, relativistic_d, relativistic_g
from pyfold.gan.penalties import functional_penalty, r1_penalty, r2_penalty

__all__ = [
    "LOSSES",
    "augment",
    "functional_penalty",
    "latent",
    "non_saturating_d",
    "non_saturating_g",
    "r1_penalty",
    "r2_penalty",
    "relativistic_d",
    "relativistic_g",
]
