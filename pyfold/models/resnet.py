"""A residual generator and discriminator without normalisation, for relativistic pairing with R1 and R2.

After the description of R3GAN in Huang et al. 2024 (configuration E): residual blocks 1x1 - grouped 3x3 - 1x1 with an
inverted bottleneck, an activation after the first two convolutions, no normalisation, bilinear resampling at the transitions,
a learned basis at the start of the generator and a depthwise convolution over the last square of the discriminator. Depth is
tamed as in Fixup (Zhang et al. 2019): a branch's weights are scaled by ``depth^(-1/4)``, and its last convolution starts at 0.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import interpolate

from pyfold.models.hub import Hub
from pyfold.models.layers import activation, levels

#: What keeps the second moment of normal input; folds keep it themselves.
_GAINS = {"relu": math.sqrt(2), "leaky_relu": math.sqrt(2 / (1 + 0.2**2))}


def _init(layer: nn.Linear | nn.Conv2d, gain: float) -> nn.Module:
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    with torch.no_grad():
        layer.weight.mul_(gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ResidualBlock(nn.Module):
    """``x + branch(x)`` [B, C, S, S]; the identity until training moves it.

    Args:
        channels: in and out, a multiple of ``group``.
        depth: residual blocks of the whole network, for the size of the first weights.
        activation: a name of ``pyfold.models.ACTIVATIONS``.
        expansion: width of the 3x3 convolution by ``channels``.
        group: channels in one of its groups.
    """

    def __init__(self, channels: int, depth: int, activation: str, expansion: int = 2, group: int = 8):
        super().__init__()
        if channels % group:
            raise ValueError(f"width must be a multiple of {group}, got {channels} channels")
        inner = expansion * channels
        gain = _GAINS.get(activation, 1.0) * depth**-0.25
        self.branch = nn.Sequential(
            _init(nn.Conv2d(channels, inner, 1), gain),
            _act(activation, inner),
            _init(nn.Conv2d(inner, inner, 3, padding=1, groups=inner // group), gain),
            _act(activation, inner),
            _init(nn.Conv2d(inner, channels, 1, bias=False), 0.0),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.branch(x)
        return result


class _Resample(nn.Module):
    """Twice or half the side, bilinearly, after (up) or before (down) a 1x1 convolution where the channels change."""

    def __init__(self, before: int, after: int, up: bool):
        super().__init__()
        self.up = up
        self.project = _init(nn.Conv2d(before, after, 1, bias=False), 1.0) if before != after else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.up:
            return interpolate(self.project(x), scale_factor=2, mode="bilinear", align_corners=False)
        result: torch.Tensor = self.project(interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False))
        return result


def _widths(size: int, width: int) -> list[int]:
    return [width * min(2**i, 4) for i in range(levels(size) + 1)]


class ResNetGenerator(Hub):
    """``model(z [B, latent])`` -> images [B, channels, size, size], not bounded.

    Args:
        channels, size: of the image; the side is 4 to 7 times a power of two.
        latent: size of the code.
        width: channels at full resolution, a multiple of 8; each halving of the side doubles them, up to four times.
        activation: a name of ``pyfold.models.ACTIVATIONS``.
        blocks: residual blocks at each resolution.

    Example:
        >>> ResNetGenerator(1, 16, latent=8, width=8)(torch.randn(2, 8)).shape
        torch.Size([2, 1, 16, 16])
    """

    def __init__(
        self, channels: int, size: int, latent: int = 64, width: int = 32, activation: str = "leaky_relu", blocks: int = 2
    ):
        super().__init__()
        widths = _widths(size, width)[::-1]
        base, depth = size // 2 ** (len(widths) - 1), blocks * len(widths)
        self.basis = nn.Parameter(torch.randn(widths[0], base, base))
        self.project = _init(nn.Linear(latent, widths[0], bias=False), 1.0)
        layers: list[nn.Module] = []
        for i, w in enumerate(widths):
            layers += [_Resample(widths[i - 1], w, up=True)] if i else []
            layers += [ResidualBlock(w, depth, activation) for _ in range(blocks)]
        self.body = nn.Sequential(*layers, _init(nn.Conv2d(width, channels, 1), 1.0))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.body(self.basis * self.project(z)[:, :, None, None])
        return result


class ResNetDiscriminator(Hub):
    """``model(x [B, channels, size, size])`` -> logits [B].

    Args:
        channels, size, width, activation, blocks: as for :class:`ResNetGenerator`.
    """

    def __init__(self, channels: int, size: int, width: int = 32, activation: str = "leaky_relu", blocks: int = 2):
        super().__init__()
        widths = _widths(size, width)
        base, depth = size // 2 ** (len(widths) - 1), blocks * len(widths)
        layers: list[nn.Module] = [_init(nn.Conv2d(channels, width, 1), 1.0)]
        for i, w in enumerate(widths):
            layers += [_Resample(widths[i - 1], w, up=False)] if i else []
            layers += [ResidualBlock(w, depth, activation) for _ in range(blocks)]
        last = widths[-1]
        head = [_init(nn.Conv2d(last, last, base, groups=last, bias=False), 1.0), nn.Flatten(), _init(nn.Linear(last, 1), 1.0)]
        self.body = nn.Sequential(*layers, *head)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.body(x).squeeze(1)
        return result


_act = activation
