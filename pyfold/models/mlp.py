"""Networks for points in the plane and other short vectors."""

from __future__ import annotations

import torch
from torch import nn

from pyfold.models.hub import Hub
from pyfold.models.layers import activation, time_embedding


class MLP(Hub, nn.Sequential):
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


class MLPDenoiser(Hub):
    """``model(x [B, D], t [B] in [0, 1])`` -> [B, D].

    Args:
        size: D.
        width, depth, activation: as for :class:`MLP`.
        second_time: ``model(x, t, r)``, as objectives of two times want it.
        smooth_time: low frequencies of the time alone, for consistency models, whose outputs at neighbouring times are
            compared.

    Example:
        >>> MLPDenoiser(2)(torch.zeros(5, 2), torch.linspace(0, 1, 5)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        size: int,
        width: int = 128,
        depth: int = 3,
        activation: str = "silu",
        *,
        second_time: bool = False,
        smooth_time: bool = False,
    ):
        super().__init__()
        self.time = time_embedding(64, width, second_time, smooth_time)
        self.first = nn.Linear(size, width)
        self.body = MLP(width, size, width, depth, activation)

    def forward(self, x: torch.Tensor, t: torch.Tensor, r: torch.Tensor | None = None) -> torch.Tensor:
        result: torch.Tensor = self.body(self.first(x) + (self.time(t) if r is None else self.time(t, r)))
        return result


class MLPCritic(Hub):
    """``model(x [B, D])`` -> logits [B].

    Args:
        size: D.
        width, depth, activation: as for :class:`MLP`.
    """

    def __init__(self, size: int, width: int = 128, depth: int = 3, activation: str = "leaky_relu"):
        super().__init__()
        self.body = MLP(size, 1, width, depth, activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.body(x).squeeze(1)
        return result


_act = activation
