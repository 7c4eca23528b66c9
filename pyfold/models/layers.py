"""Parts that the reference networks share."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from pyfold._torch_private import CONVOLUTIONS
from pyfold.nn import Fold
from pyfold.ops import FOLDS

TORCH_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
#: Folds that a name and the number of channels describe; householder's angles learn.
FOLD_ACTIVATIONS = tuple(kind for kind, fold in FOLDS.items() if fold.named)
ACTIVATIONS = (*TORCH_ACTIVATIONS, *FOLD_ACTIVATIONS)


def activation(name: str, channels: int) -> nn.Module:
    """An activation by name; one of torch's, or a fold of the channel dimension 1.

    Args:
        name: a fold, or one of torch's; an unknown name is an error that lists them.
        channels: of the input, for folds with parameters.

    Returns:
        The module.

    Raises:
        ValueError: an unknown name.
    """
    if name in FOLD_ACTIVATIONS:
        return Fold(name, channels)
    if name not in TORCH_ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(map(repr, ACTIVATIONS))}, got {name!r}")
    return TORCH_ACTIVATIONS[name]()


def orthogonal_(module: nn.Module, gain: float = 1.0) -> nn.Module:
    """Gives every linear and convolution layer an orthogonal weight times ``gain`` (Saxe et al. 2014) and no bias, in place.

    Args:
        module: whose layers start anew; returned.
        gain: all singular values of a weight, with a convolution's seen as [out, in * kernel].

    Returns:
        The module.

    Example:
        >>> layer = orthogonal_(torch.nn.Linear(4, 4, bias=False), gain=2.0)
        >>> bool(torch.allclose(layer.weight @ layer.weight.T, 4 * torch.eye(4), atol=1e-5))
        True
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, *CONVOLUTIONS)):
            nn.init.orthogonal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def zeros_(layer: nn.Module) -> None:
    """A layer's weight and bias become 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class Scaled(nn.Module):
    """``model(scale x)``: a network whose input comes in larger or smaller numbers than it likes.

    Args:
        model: of x.
        scale: what x is multiplied with.
    """

    def __init__(self, model: nn.Module, scale: float):
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.model(self.scale * x)
        return y


#: Highest frequency of a time that models are differentiated in, or compared at two values of.
SMOOTH = 30.0


class TimeEmbedding(nn.Module):
    """Sines and cosines of t in [0, 1] at geometric frequencies (Vaswani et al. 2017, section 3.5), then a small MLP.

    Args:
        channels: sines and cosines together. width: of the result [B, width].
        highest: frequency; the embedding's derivative in t grows with it.
    """

    frequencies: torch.Tensor

    def __init__(self, channels: int, width: int, highest: float = 1000.0):
        super().__init__()
        frequencies = torch.exp(torch.linspace(0, math.log(highest), channels // 2))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        phase = t[:, None].to(self.frequencies.dtype) * self.frequencies
        features = torch.cat([phase.sin(), phase.cos()], 1)
        result: torch.Tensor = self.mlp(features.to(next(self.mlp.parameters()).dtype))
        return result


class TwoTimesEmbedding(nn.Module):
    """The sum of embeddings of t and of t - r (Geng et al. 2025, section 4.3), at low frequencies: they are differentiated.

    Args:
        channels, width, highest: as for :class:`TimeEmbedding`.
    """

    def __init__(self, channels: int, width: int, highest: float = SMOOTH):
        super().__init__()
        self.end, self.interval = (TimeEmbedding(channels, width, highest) for _ in range(2))

    def forward(self, t: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.end(t) + self.interval(t - r)
        return result


def time_embedding(channels: int, width: int, second_time: bool, smooth: bool) -> nn.Module:
    """Of one time or of two; ``smooth`` for low frequencies, which two times have in any case."""
    if second_time:
        return TwoTimesEmbedding(channels, width)
    return TimeEmbedding(channels, width, SMOOTH) if smooth else TimeEmbedding(channels, width)


def levels(size: int) -> int:
    """How often an image halves until its side is 4 to 7."""
    count = 0
    while size > 7 and size % 2 == 0:
        size //= 2
        count += 1
    if size > 7 or size < 4:
        raise ValueError(f"size must be 4 to 7 times a power of two, got {size * 2**count}")
    return count
