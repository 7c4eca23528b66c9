"""A small U-Net for denoising images (Ronneberger et al. 2015; Ho et al. 2020, appendix B)."""

from __future__ import annotations

import torch
from torch import nn

from pyfold.models.hub import Hub
from pyfold.models.layers import activation, levels, time_embedding, zeros_


class _Block(nn.Module):
    """Two convolutions with a residual path, shifted and scaled by the time."""

    def __init__(self, inputs: int, outputs: int, time_width: int, act: str):
        super().__init__()
        self.norm1, self.act1 = nn.GroupNorm(8, inputs), activation(act, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(time_width, 2 * outputs)
        self.norm2, self.act2 = nn.GroupNorm(8, outputs), activation(act, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        zeros_(self.conv2)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        h = self.conv1(self.act1(self.norm1(x)))
        scale, shift = self.time(time)[:, :, None, None].chunk(2, 1)
        h = self.norm2(h) * (1 + scale) + shift
        result: torch.Tensor = self.skip(x) + self.conv2(self.act2(h))
        return result


class UNet(Hub):
    """``model(x [B, C, S, S], t [B] in [0, 1])`` -> [B, C, S, S].

    Args:
        channels: of the image.
        size: its side; 4 to 7 times a power of two.
        width: channels of the first level, a multiple of 8; each level down doubles them, up to four times.
        activation: a name of ``pyfold.models.ACTIVATIONS``.
        second_time: for ``model(x, t, r)``, r [B] in [0, 1], as objectives of two times want it.
        smooth_time: for low frequencies of the time alone, for consistency models, whose outputs at neighbouring times are
            compared.

    Example:
        >>> UNet(1, 8, width=8)(torch.zeros(2, 1, 8, 8), torch.tensor([0.0, 1.0])).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        size: int,
        width: int = 32,
        activation: str = "silu",
        *,
        second_time: bool = False,
        smooth_time: bool = False,
    ):
        super().__init__()
        act = activation
        if width % 8:
            raise ValueError(f"width must be a multiple of 8, got {width}")
        widths = [width * min(2**i, 4) for i in range(levels(size) + 1)]
        time = 4 * width
        self.time = time_embedding(width, time, second_time, smooth_time)
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList(_Block(widths[max(i - 1, 0)], w, time, act) for i, w in enumerate(widths))
        self.middle = _Block(widths[-1], widths[-1], time, act)
        pairs = list(zip(reversed(widths), [*reversed(widths[:-1]), width], strict=True))
        self.up = nn.ModuleList(_Block(2 * w, below, time, act) for w, below in pairs)
        self.norm, self.last = nn.GroupNorm(8, width), nn.Conv2d(width, channels, 3, padding=1)
        zeros_(self.last)

    def forward(self, x: torch.Tensor, t: torch.Tensor, r: torch.Tensor | None = None) -> torch.Tensor:
        time = self.time(t) if r is None else self.time(t, r)
        h, kept = self.first(x), []
        for i, block in enumerate(self.down):
            h = block(nn.functional.avg_pool2d(h, 2) if i else h, time)
            kept.append(h)
        h = self.middle(h, time)
        for i, block in enumerate(self.up):
            if i:
                h = nn.functional.interpolate(h, scale_factor=2, mode="nearest")
            h = block(torch.cat([h, kept.pop()], 1), time)
        result: torch.Tensor = self.last(nn.functional.silu(self.norm(h)))
        return result
