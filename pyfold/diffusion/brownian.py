"""One Brownian path for any number of steps: a virtual tree whose nodes are counters, so nothing of it is stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from pyfold.diffusion.plan import Plan
from pyfold.ops import add_noise, randn

#: The stream of the path's nodes.
BROWNIAN_STREAM = 4


class BrownianPath:
    """W(t) of each sample for t in [low, high], a function of its seed and t alone (Li et al. 2020, section 4, algorithm 3).

    The path's ends are drawn first, then by halves what lies between (the Brownian bridge); ``W(t)`` costs ``depth + 2`` draws,
    and times within one of the ``2^depth`` smallest parts share their last.

    Args:
        seeds: int64 [B]. shape: of one sample.
        low, high: the path's times; W(low) = 0.
        depth: halvings, from 0 to 28.
        dtype: float32 or float64.
    """

    def __init__(
        self,
        seeds: torch.Tensor,
        shape: Sequence[int],
        low: float,
        high: float,
        *,
        depth: int = 12,
        dtype: torch.dtype = torch.float32,
    ):
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"low and high must be finite and low < high, got {low} and {high}")
        if not 0 <= depth <= 28:
            raise ValueError(f"depth must be in [0, 28], got {depth}")
        self.seeds, self.shape, self.low, self.high, self.depth, self.dtype = seeds, shape, low, high, depth, dtype

    def _bridge(self, mean: torch.Tensor, std: float, node: int) -> torch.Tensor:
        return add_noise(mean, 1.0, std, self.seeds, stream=BROWNIAN_STREAM, step=node)

    def __call__(self, t: float) -> torch.Tensor:
        """W(t) [B, *shape]."""
        if not self.low <= t <= self.high:
            raise ValueError(f"t must be in [{self.low:g}, {self.high:g}], got {t}")
        left, right = self.low, self.high
        at_right = randn(self.seeds, self.shape, stream=BROWNIAN_STREAM, step=0, dtype=self.dtype) * math.sqrt(right - left)
        at_left = torch.zeros_like(at_right)
        node = 1
        for _ in range(self.depth):
            middle = (left + right) / 2
            at_middle = self._bridge((at_left + at_right) / 2, math.sqrt(right - left) / 2, node)
            # Children in the order of a heap.
            if t < middle:
                right, at_right, node = middle, at_middle, 2 * node
            else:
                left, at_left, node = middle, at_middle, 2 * node + 1
        part = (t - left) / (right - left)
        return self._bridge(torch.lerp(at_left, at_right, part), math.sqrt((t - left) * (right - t) / (right - left)), node)


def brownian_noise(
    plan: Plan,
    seeds: torch.Tensor,
    shape: Sequence[int],
    low: float,
    high: float,
    *,
    depth: int = 12,
    dtype: torch.dtype = torch.float32,
) -> Callable[[int], torch.Tensor]:
    """Noise for :func:`sample` that makes a seed's picture nearly the same for any number of steps.

    The noise of each stage is the increment of one :class:`BrownianPath` in sigma / alpha (as k-diffusion has it) to the next
    point, so more steps refine the same path.

    Args:
        plan: whose noise of a stage belongs to the way to the next point, such as ``euler_ancestral``, ``dpmpp_multistep``,
            ``dpmpp_sde``, ``seeds`` and ``ddpm``.
        low, high: sigma / alpha between which the path runs: the same for all numbers of steps that are to agree.
        seeds, shape, depth, dtype: of the path; the state's dtype.
    """
    path = BrownianPath(seeds, shape, low, high, depth=depth, dtype=dtype)
    times = [min(max(p.ratio, low), high) for p in plan.points] + [low]

    def noise(stage: int) -> torch.Tensor:
        start, end = times[stage], times[stage + 1]
        if start <= end:
            raise ValueError(f"plan must go to less noise at stage {stage}, between low and high, got {start:g} to {end:g}")
        return (path(start) - path(end)) / math.sqrt(start - end)

    return noise
