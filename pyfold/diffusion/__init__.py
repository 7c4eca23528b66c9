"""Schedules, spacings, predictions, samplers and the training loss, on the fused ops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyfold.diffusion import formulas, rl, serve, spacings
from pyfold.diffusion.brownian import BROWNIAN_STREAM, BrownianPath, brownian_noise
from pyfold.diffusion.densities import DENSITIES
from pyfold.diffusion.guidance import (
    dynamic_threshold,
    guided,
    guided_by_energy,
    guided_plus_plus,
    renorm,
    rescale,
    with_gradient,
)
from pyfold.diffusion.loop import inpaint, sample
from pyfold.diffusion.objectives import (
    AnyFlowLoss,
    ECMLoss,
    MeanFlowLoss,
    NoisedInterval,
    NoisedPair,
    SCMLoss,
    ShortcutLoss,
    any_flow_weighting,
    with_next_time,
)
from pyfold.diffusion.plan import Plan
from pyfold.diffusion.predictions import PREDICTIONS, convert
from pyfold.diffusion.samplers import SAMPLERS, Attempt, ddim_inverse, dpm_adaptive, sampler
from pyfold.diffusion.schedule import Point, Schedule
from pyfold.diffusion.schedules import (
    SCHEDULES,
    edm,
    flow,
    flow_for_length,
    from_alpha_bar,
    from_betas,
    sub_vp,
    trigflow,
    ve,
    vp,
    vp_cosine,
    vp_exp,
    vp_laplace,
    vp_linear,
    vp_scaled_linear,
    vp_sigmoid,
    zero_terminal_snr,
)
from pyfold.diffusion.spacings import SPACINGS
from pyfold.diffusion.training import TIME_STREAM, Noised, TrainingLoss, self_condition
from pyfold.diffusion.weightings import WEIGHTINGS

if TYPE_CHECKING:
    from pyfold.diffusion.samplers import Sampler

    def __getattr__(name: str) -> Sampler:
        """Samplers, by their names in the table."""

else:
    globals().update(SAMPLERS)

__all__ = [
    "BROWNIAN_STREAM",
    "DENSITIES",
    "PREDICTIONS",
    "SAMPLERS",
    "SCHEDULES",
    "SPACINGS",
    "TIME_STREAM",
    "WEIGHTINGS",
    "AnyFlowLoss",
    "Attempt",
    "BrownianPath",
    "ECMLoss",
    "MeanFlowLoss",
    "Noised",
    "NoisedInterval",
    "NoisedPair",
    "Plan",
    "Point",
    "SCMLoss",
    "Schedule",
    "ShortcutLoss",
    "TrainingLoss",
    "any_flow_weighting",
    "brownian_noise",
    "convert",
    "ddim_inverse",
    "dpm_adaptive",
    "dynamic_threshold",
    "edm",
    "flow",
    "flow_for_length",
    "formulas",
    "from_alpha_bar",
    "from_betas",
    "guided",
    "guided_by_energy",
    "guided_plus_plus",
    "inpaint",
    "renorm",
    "rescale",
    "rl",
    "sample",
    "sampler",
    "self_condition",
    "serve",
    "spacings",
    "sub_vp",
    "trigflow",
    "ve",
    "vp",
    "vp_cosine",
    "vp_exp",
    "vp_laplace",
    "vp_linear",
    "vp_scaled_linear",
    "vp_sigmoid",
    "with_gradient",
    "with_next_time",
    "zero_terminal_snr",
    *SAMPLERS,
]
