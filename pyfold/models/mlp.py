"""Networks for points in the plane and other short vectors."""

from __future__ import annotations

import torch
from torch import nn

from pyfold.models.layers import TimeEmbedding, activation


class MLP(nn.Sequential):
    """Linear layers with an activation between them; [B, inputs] -> [B, outputs].

    Args:
        inputs, outputs, width: sizes.
        depth: hidden layers.
        activation: a name of ``pyfold.models.ACTIVATIONS``.
    """

    def __init__(self, inputs: int, outputs: int, width: int = 128, depth: int = 3, activation: str = "silu"):
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.Linear(inputs if i == 0 else width, width), _act(activation, width)]
        super().__init__(*layers, nn.Linear(width, outputs))


class MLPDenoiser(nn.Module):
    """``model(x [B, D], t [B] in [0, 1])`` -> [B, D]; arguments as for :class:`MLP`."""

    def __init__(self, size: int, width: int = 128, depth: int = 3, activation: str = "silu"):
        super().__init__()
        self.time = TimeEmbedding(64, width)
        self.first = nn.Linear(size, width)
        self.rest = MLP(width, size, width, depth, activation)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.rest(self.first(x) + self.time(t))
        return result


class MLPCritic(nn.Module):
    """``model(x [B, D])`` -> logits [B]; arguments as for :class:`MLP`."""

    def __init__(self, size: int, width: int = 128, depth: int = 3, activation: str = "leaky_relu"):
        super().__init__()
        self.body = MLP(size, 1, width, depth, activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.body(x).squeeze(1)
        return result


_act = activation
