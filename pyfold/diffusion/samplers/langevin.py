"""Langevin dynamics: a particle in the potential -log p at a noise level, held warm; cooled level by level it generates."""

from __future__ import annotations

import math
from dataclasses import replace

from pyfold.diffusion.formulas import X0, N, Step, U, X
from pyfold.diffusion.samplers._declare import Past, Steps, sampler
from pyfold.diffusion.samplers.ancestral import euler_ancestral
from pyfold.diffusion.schedule import Point


@sampler(
    50,
    source="Song and Ermon 2019, algorithm 1; with predictor Song et al. 2021, algorithm 1",
    keeps="epsilon",
    spacing="exponential",
    needs_signal=True,  # at pure noise there is nothing to correct
    on_sigmas=False,
    steps_are="levels.",
    correctors=(1, 10**6),
    step_size=(0.0, 1.0, "above"),
    texts={
        "correctors": "Langevin steps at each level.",
        "step_size": "relative to sigma^2; score_sde's signal-to-noise ratio r is ``step_size = 2 r^2`` for scores of their "
        "expected size. The variance settles at ``V / (1 - step_size sigma^2 / (2 V))`` where V is right, and too small a "
        "step has no time to settle: with the other defaults .1 ends at 1.5 to 2.6 times the data's variance, .5 at 1.2.",
        "predictor": "whether a step of ancestral sampling leads from level to level, and this corrects it; else x itself is "
        "taken for a sample of the next level.",
    },
)
def annealed_langevin(
    here: Point,
    there: Point,
    past: Past,
    *,
    correctors: int = 5,
    step_size: float = 0.5,
    predictor: bool = False,
) -> Steps:
    """``x' = x + step sigma^2 score + sigma sqrt(2 step) noise``, some times at each level.

    The last evaluation takes the remaining noise off.
    """
    corrector = Step(X - U * (step_size * here.sigma) + N * (math.sqrt(2 * step_size) * here.sigma), starts=True)
    if there.sigma and not predictor:
        scaled = replace(corrector, prev=corrector.prev * (there.alpha / here.alpha))
        return [corrector] * (correctors - 1) + [scaled]
    last = Step(X0 * there.alpha) if there.sigma == 0 else euler_ancestral.rule(here, there, past)
    return [corrector] * correctors + [replace(last, starts=True)]  # type: ignore[type-var, list-item]
