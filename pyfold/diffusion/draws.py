"""Where on its trajectory a run draws noise: the address of a draw, which names the noise whatever else the run does.

An address is a counter ``n`` of a row (``n1`` to ``n3`` of ``pyfold.ops.AFFINE_STEP_COLUMNS``), a number below 2^53. Its low 32
bits are the level that the draw leads to, as the bits of a float32; what is above them tells the draws that lead to one level
apart. docs/noise.md has it to the bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from pyfold.diffusion.schedule import Point
from pyfold.ops import SAMPLER_STREAM

#: At the first visit of a level a step may draw so many times, at a later one so many, and so many visits may be.
FIRST_DRAWS, REVISIT_DRAWS = 2**20, 2**11
MOST_VISITS = FIRST_DRAWS // REVISIT_DRAWS + 1


def level_bits(ratio: Any) -> Any:
    """The bits of sigma / alpha rounded to float32: an int, or int64 of a float64 tensor."""
    if isinstance(ratio, torch.Tensor):
        return ratio.float().view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    with np.errstate(over="ignore"):
        return int(np.float32(ratio).view(np.uint32))


def address(ratio: Any, visit: int = 0, draw: int = 0) -> Any:
    """The counter of a draw.

    Args:
        ratio: sigma / alpha that the draw leads to; or a float64 tensor of one for each sample.
        visit: how often the run has been at that level before.
        draw: of the step that leads there, from 0.

    Raises:
        ValueError: more visits than 513 or draws than fit: 2^20 at a first visit, 2^11 at a later one.
    """
    if not 0 <= visit < MOST_VISITS:
        raise ValueError(f"a run may visit one level {MOST_VISITS} times, got visit {visit} of sigma / alpha {ratio:g}")
    most = REVISIT_DRAWS if visit else FIRST_DRAWS
    if not 0 <= draw < most:
        raise ValueError(f"a step may draw noise {most} times at this visit, got draw {draw} at sigma / alpha {ratio:g}")
    which = FIRST_DRAWS + REVISIT_DRAWS * (visit - 1) + draw if visit else draw
    return which << 32 | level_bits(ratio)


def stream_and_step(address: Any) -> dict[str, Any]:
    """``stream`` and ``step`` of :func:`pyfold.randn` and :func:`pyfold.add_noise` with which they draw what a step draws."""
    return {"stream": SAMPLER_STREAM + (address >> 32 << 11), "step": address & 0xFFFFFFFF}


class Addresses:
    """Addresses along one run, none of them twice.

    Args:
        before: points that the run has visited before it starts.
    """

    def __init__(self, before: Iterable[Point] = ()):
        self._visits = Counter(level_bits(p.ratio) for p in before)
        self._used: set[int] = set()
        self._at: int | None = None
        self._start_visit = 0

    def start(self, here: Point) -> None:
        """The run is at a point; where it is there already, this is no other visit."""
        if self._at is None:
            self._start_visit = self._arrive(here)
        elif self._at != level_bits(here.ratio):
            self._arrive(here)

    def _arrive(self, there: Point) -> int:
        self._at = level_bits(there.ratio)
        self._visits[self._at] += 1
        return self._visits[self._at] - 1

    def _free(self, ratio: float, visit: int, draw: int) -> int:
        # Churned levels are not counted as visits, so one may meet another level to all bits of a float32.
        found: int
        while (found := address(ratio, visit, draw)) in self._used:
            visit += 1
        self._used.add(found)
        return found

    def churn(self, to: Point) -> int:
        """Of noise that leads from the point where the run starts to more noise."""
        return self._free(to.ratio, self._start_visit, 0)

    def step(self, here: Point, there: Point, churned: Iterable[Point | None]) -> list[int]:
        """Of the draws of a step's stages; a stage that churns the end draws for that level, as a start's churn does."""
        self.start(here)
        visit = self._arrive(there)
        return [self._free((to or there).ratio, visit, 0 if to else draw) for draw, to in enumerate(churned)]
