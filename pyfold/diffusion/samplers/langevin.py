"""Langevin dynamics: a particle in the potential -log p at a noise level, held warm; cooled level by level it generates."""

from __future__ import annotations

import math
from itertools import pairwise

from pyfold.diffusion.plan import Builder, Plan
from pyfold.diffusion.samplers.ancestral import Spacing, ancestral_split
from pyfold.diffusion.schedules import Schedule
from pyfold.diffusion.spacings import choose_points


def annealed_langevin(
    schedule: Schedule,
    steps: int = 50,
    *,
    prediction: str = "epsilon",
    correctors: int = 5,
    step_size: float = 0.1,
    predictor: bool = False,
    clip: float | None = None,
    spacing: Spacing = "exponential",
) -> Plan:
    """``x' = x + step sigma^2 score + sigma sqrt(2 step) noise``, some times at each level (Song and Ermon 2019, algorithm 1).

    With ``predictor`` a step of ancestral sampling leads from level to level, and this corrects it (Song et al. 2021,
    algorithm 1); without, x itself is taken for a sample of the next level. The last evaluation takes the remaining noise off.

    Args:
        schedule, steps, prediction, clip, spacing: as for :func:`pyfold.diffusion.euler`; ``steps`` levels.
        correctors: Langevin steps at each level, at least 1.
        step_size: relative to sigma^2, in (0, 1]; score_sde's signal-to-noise ratio r is ``step_size = r^2`` for scores of
            their expected size.
        predictor: whether to step between the levels.
    """
    if not isinstance(correctors, int) or isinstance(correctors, bool):
        raise TypeError(f"correctors must be an int, got {type(correctors).__name__}")
    if correctors < 1:
        raise ValueError(f"correctors must be at least 1, got {correctors}")
    if not 0 < step_size <= 1:
        raise ValueError(f"step_size must be in (0, 1], got {step_size}")
    build = Builder(schedule, prediction, clip, "epsilon")
    points = choose_points(schedule, steps, spacing)
    if points[0].alpha == 0:
        raise ValueError("spacing must not start at pure noise (alpha 0), where there is nothing to correct")
    for here, there in pairwise(points):
        for _ in range(correctors):
            build.stage(here, a=1.0, c_u=-step_size * here.sigma, noise=math.sqrt(2 * step_size) * here.sigma)
        if there.sigma == 0:
            build.stage(here, c_x0=there.alpha)
        elif predictor:
            down, up = ancestral_split(here, there, 1.0)
            build.stage(here, c_x0=there.alpha, c_u=there.alpha * down, noise=there.alpha * up)
        else:
            build.rescale(there.alpha / here.alpha)
    return build.plan("annealed_langevin")
