"""Fused diffusion steps and space-folding activations for PyTorch."""

from pyfold import _library
from pyfold._library import config, show_config
from pyfold._version import __version__

_library.load()

from pyfold import diffusion, folding, gan, nn, ops  # noqa: E402
from pyfold.ops import add_noise, affine_step, denoising_loss, fold, kaleidoscope, mse_loss, randn, seed_of  # noqa: E402

__all__ = [
    "__version__",
    "add_noise",
    "affine_step",
    "config",
    "denoising_loss",
    "diffusion",
    "fold",
    "folding",
    "gan",
    "kaleidoscope",
    "mse_loss",
    "nn",
    "ops",
    "randn",
    "seed_of",
    "show_config",
]
