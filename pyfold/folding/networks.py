"""Networks whose folding is known in closed form."""

from __future__ import annotations

import torch
from torch import nn

from pyfold.nn import Fold


def _linear(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))
    return layer


def tent_network(depth: int) -> nn.Sequential:
    """The tent map ``T(x) = 1 - |2x - 1|`` of [0, 1], ``depth`` times, one abs fold each; [B, 1] -> [B, 1], float64.

    After Telgarsky 2016, section 2.1, who writes it with ReLU.

    It has ``2^depth`` linear pieces on [0, 1], and ``chi = 1 - depth / (2^depth - 1)`` from 0 to 1.

    Args:
        depth: how often it is folded, at least 1.

    Returns:
        The network.

    Raises:
        ValueError: a depth below 1.

    Example:
        >>> tent_network(2)(torch.tensor([[0.25], [0.5]], dtype=torch.float64)).flatten().tolist()
        [1.0, 0.0]
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    return nn.Sequential(*(m for _ in range(depth) for m in (_linear([[2]], [-1]), Fold("abs"), _linear([[-1]], [1]))))


def sawtooth_network(teeth: int, layers: int) -> nn.Sequential:
    """``teeth`` linear pieces from 0 to 1 and back by as many ReLUs, ``layers`` times; [B, 1] -> [B, 1], float64.

    It has ``teeth^layers`` linear pieces on [0, 1] (Montufar et al. 2014, section 2.3).

    Args:
        teeth: pieces of one layer.
        layers: how often they are folded onto each other.

    Returns:
        The network.

    Raises:
        ValueError: less than one tooth or layer.
    """
    if teeth < 1 or layers < 1:
        raise ValueError(f"teeth and layers must be at least 1, got {teeth} and {layers}")
    # Slope teeth at first, then it turns at each k / teeth.
    weight = [[float(teeth)] * teeth, [-float(k) for k in range(teeth)]]
    turns = [1.0] + [2.0 * (-1) ** k for k in range(1, teeth)]

    def one() -> tuple[nn.Module, ...]:
        return _linear([[w] for w in weight[0]], weight[1]), nn.ReLU(), _linear([turns], [0.0])

    return nn.Sequential(*(m for _ in range(layers) for m in one()))
