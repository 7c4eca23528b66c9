"""Samplers: each is a rule that fills a table of ``affine_step`` coefficients in float64, and fits on a screen.

They write states in the schedule's own scale, ``x = alpha x0 + sigma eps``. Every rule keeps a state of constant x0 exact,
so a coefficient of x0 is ``alpha' - a alpha`` where a is that of x; ``here`` and ``there`` are the step's two points.
"""

from __future__ import annotations

from collections.abc import Callable

from pyfold.diffusion.plan import Plan
from pyfold.diffusion.samplers.adaptive import Attempt, dpm_adaptive
from pyfold.diffusion.samplers.ancestral import (
    consistency,
    ddim,
    ddim_inverse,
    ddpm,
    euler_ancestral,
    flow_ancestral,
    flow_sde,
    lcm,
    tcd,
)
from pyfold.diffusion.samplers.correctors import sa_solver, unipc
from pyfold.diffusion.samplers.exponential import (
    dpm_fast,
    dpm_multistep,
    dpm_singlestep,
    dpmpp_multistep,
    dpmpp_singlestep,
    res_multistep,
)
from pyfold.diffusion.samplers.langevin import annealed_langevin
from pyfold.diffusion.samplers.linear import deis, gradient_estimation, ipndm, lms, plms
from pyfold.diffusion.samplers.runge_kutta import dpm2, dpm2_ancestral, edm_stochastic, euler, flow_euler, flow_heun, heun
from pyfold.diffusion.samplers.stochastic import dpmpp_2s_ancestral, dpmpp_sde, er_sde, seeds

SAMPLERS: dict[str, Callable[..., Plan]] = {
    sampler.__name__: sampler
    for sampler in (
        ddpm,
        ddim,
        flow_euler,
        flow_heun,
        flow_ancestral,
        flow_sde,
        euler,
        euler_ancestral,
        heun,
        edm_stochastic,
        dpm2,
        dpm2_ancestral,
        dpm_singlestep,
        dpmpp_singlestep,
        dpm_fast,
        dpm_multistep,
        dpmpp_multistep,
        dpmpp_2s_ancestral,
        dpmpp_sde,
        res_multistep,
        lms,
        deis,
        ipndm,
        plms,
        gradient_estimation,
        unipc,
        sa_solver,
        er_sde,
        seeds,
        annealed_langevin,
        lcm,
        tcd,
        consistency,
    )
}

__all__ = ["SAMPLERS", "Attempt", "ddim_inverse", "dpm_adaptive", *SAMPLERS]
