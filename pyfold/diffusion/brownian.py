"""One Brownian path for any number of steps: a virtual tree whose nodes are counters, so nothing of it is stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from pyfold.diffusion.plan import Plan
from pyfold.diffusion.schedule import check_number
from pyfold.ops import add_noise, randn
from pyfold.ops._checks import as_seeds, check_seeds, seed_count

#: The stream of the path's nodes.
BROWNIAN_STREAM = 4


class BrownianPath:
    """W(t) of each sample for t in [low, high], a function of its seed and t alone (Li et al. 2020, section 4, algorithm 3).

    The path's ends are drawn first, then by halves what lies between (the Brownian bridge), which costs up to ``depth + 2``
    draws. Any two times that are further apart than ``resolution`` have the law of a Brownian motion; nearer ones share a draw.

    Args:
        seeds: int64 [B], ints of 64 bits, or keys, as in :func:`pyfold.randn`.
        shape: of one sample.
        low, high: the path's times; W(low) = 0.
        depth: halvings, from 0 to 28. Another depth is another path.
        dtype: float32 or float64.

    Raises:
        ValueError: low and high that are not finite or not rising, or a depth out of its range.

    Example:
        >>> path = BrownianPath(torch.tensor([7]), (2,), 0.0, 1.0)
        >>> bool((path(0.0) == 0).all())
        True
    """

    def __init__(
        self,
        seeds: torch.Tensor | Sequence[int] | int,
        shape: Sequence[int],
        low: float,
        high: float,
        *,
        depth: int = 28,
        dtype: torch.dtype = torch.float32,
    ):
        if not isinstance(seeds, torch.Tensor):
            seeds = as_seeds(seeds, 1, torch.device("cpu"))
        seeds = check_seeds(seeds, seed_count(seeds), seeds.device)
        if not isinstance(shape, Sequence) or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise TypeError(f"shape must be a sequence of ints from 0, got {shape!r}")
        low, high = check_number("low", low), check_number("high", high)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"low and high must be finite and low < high, got {low} and {high}")
        if not 0 <= depth <= 28:
            raise ValueError(f"depth must be in [0, 28], got {depth}")
        self.seeds, self.shape, self.low, self.high, self.depth, self.dtype = seeds, shape, low, high, depth, dtype
        self._latest: tuple[float, torch.Tensor] | None = None

    @property
    def resolution(self) -> float:
        """The distance below which two times may share a draw."""
        return float((self.high - self.low) / 2**self.depth)

    def _bridge(self, mean: torch.Tensor, std: float, node: int) -> torch.Tensor:
        bridged: torch.Tensor = add_noise(mean, 1.0, std, self.seeds, stream=BROWNIAN_STREAM, step=node)
        return bridged

    def __call__(self, t: float) -> torch.Tensor:
        """W(t) [B, *shape]."""
        if not self.low <= t <= self.high:
            raise ValueError(f"t must be in [{self.low:g}, {self.high:g}], got {t}")
        left, right = self.low, self.high
        at_right = randn(self.seeds, self.shape, stream=BROWNIAN_STREAM, step=0, dtype=self.dtype) * math.sqrt(right - left)
        at_left = torch.zeros_like(at_right)
        node = 1
        for _ in range(self.depth):
            if t in (left, right):
                break
            middle = (left + right) / 2
            at_middle = self._bridge((at_left + at_right) / 2, math.sqrt(right - left) / 2, node)
            # Children in the order of a heap.
            if t < middle:
                right, at_right, node = middle, at_middle, 2 * node
            else:
                left, at_left, node = middle, at_middle, 2 * node + 1
        if t in (left, right):
            return at_left if t == left else at_right
        part = (t - left) / (right - left)
        # One rounding an operation, so that the bits are the same on every machine; torch.lerp's are not.
        mean = at_left * (1 - part) + at_right * part
        return self._bridge(mean, math.sqrt((t - left) * (right - t) / (right - left)), node)

    def normal(self, start: float, end: float) -> torch.Tensor:
        """(W(start) - W(end)) / sqrt(|start - end|) [B, *shape], a standard normal.

        Raises:
            ValueError: times out of the path, or no further apart than its resolution.
        """
        if not abs(start - end) > self.resolution:
            raise ValueError(
                f"start and end must be more than {self.resolution:g} apart on a path of depth {self.depth}, "
                f"got {start} and {end}"
            )
        at_start = self._latest[1] if self._latest is not None and self._latest[0] == start else self(start)
        at_end = self(end)
        self._latest = end, at_end  # where the next step of a sampler starts
        return (at_start - at_end) / math.sqrt(abs(start - end))


def brownian_noise(
    plan: Plan,
    seeds: torch.Tensor,
    shape: Sequence[int],
    low: float,
    high: float,
    *,
    depth: int = 28,
    dtype: torch.dtype = torch.float32,
) -> Callable[[int], torch.Tensor]:
    """Noise for :func:`sample` that makes a seed's picture nearly the same for any number of steps.

    The noise of each stage is the increment of one :class:`BrownianPath` in sigma / alpha (as k-diffusion has it) to the next
    point, so more steps refine the same path (as the trees of Kidger et al. 2021 do).

    Args:
        plan: whose noise of a stage belongs to the way to the next point, such as ``euler_ancestral``, ``dpmpp_multistep``,
            ``dpmpp_sde``, ``seeds`` and ``ddpm``.
        low, high: sigma / alpha between which the path runs: the same for all numbers of steps that are to agree.
        seeds, shape, depth, dtype: of the path; the state's dtype.

    Returns:
        ``noise(stage)`` -> [B, *shape], as ``sample(noise=...)`` takes it.

    Raises:
        ValueError: when asked for a stage that goes to more noise, or out of [low, high].
    """
    path = BrownianPath(seeds, shape, low, high, depth=depth, dtype=dtype)
    times = [min(max(p.ratio, low), high) for p in plan.points] + [low]

    def noise(stage: int) -> torch.Tensor:
        start, end = times[stage], times[stage + 1]
        if start <= end:
            raise ValueError(f"plan must go to less noise at stage {stage}, between low and high, got {start:g} to {end:g}")
        return path.normal(start, end)

    return noise
