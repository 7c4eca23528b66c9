"""Convolutional generator and discriminator for small images, after the guidelines of Radford, Metz and Chintala 2016.

Strides instead of pooling, no hidden dense layers, tanh at the end of the generator, and, with ``normalise``, batch
normalisation everywhere but at the generator's output and the discriminator's input, with weights that start at N(0, 0.02^2).
Without it (the default) the discriminator sees each sample by itself, as R1, R2 and gradient penalties ask.
"""

from __future__ import annotations

import torch
from torch import nn

from pyfold.models.hub import Hub
from pyfold.models.layers import activation, levels


def _norm(normalise: bool, channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels)] if normalise else []


def _init(layer: nn.Module) -> None:
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class Generator(Hub):
    """``model(z [B, latent])`` -> images [B, channels, size, size] in [-1, 1].

    Args:
        channels, size: of the image; the side is 4 to 7 times a power of two.
        latent: size of the code.
        width: channels at full resolution; each halving of the side doubles them, up to four times.
        activation: a name of ``pyfold.models.ACTIVATIONS``.
        normalise: batch normalisation and the paper's first weights; upsampling is then by fractional strides, as there.

    Example:
        >>> Generator(3, 32, latent=16, width=8)(torch.randn(2, 16)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self, channels: int, size: int, latent: int = 32, width: int = 32, activation: str = "relu", normalise: bool = False
    ):
        super().__init__()
        ups = levels(size)
        widths = [width * min(2**i, 4) for i in range(ups, -1, -1)]
        self.base = size // 2**ups
        self.project = nn.Linear(latent, widths[0] * self.base**2)
        layers: list[nn.Module] = [*_norm(normalise, widths[0]), _act(activation, widths[0])]
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            if normalise:
                layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
            else:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, padding=1)]
            layers += [*_norm(normalise, after), _act(activation, after)]
        layers += [nn.Conv2d(width, width, 3, padding=1), *_norm(normalise, width), _act(activation, width)]
        self.body = nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1), nn.Tanh())
        if normalise:
            self.apply(_init)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.body(self.project(z).unflatten(1, (-1, self.base, self.base)))
        return result


class Discriminator(Hub):
    """``model(x [B, channels, size, size])`` -> logits [B].

    Args:
        channels, size, width, activation, normalise: as for :class:`Generator`.
    """

    def __init__(self, channels: int, size: int, width: int = 32, activation: str = "leaky_relu", normalise: bool = False):
        super().__init__()
        downs = levels(size)
        widths = [width * min(2**i, 4) for i in range(downs + 1)]
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), _act(activation, width)]
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), *_norm(normalise, after), _act(activation, after)]
        layers += [nn.Conv2d(widths[-1], widths[-1], 3, padding=1), *_norm(normalise, widths[-1]), _act(activation, widths[-1])]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * (size // 2**downs) ** 2, 1))
        if normalise:
            self.apply(_init)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.body(x).squeeze(1)
        return result


_act = activation
