"""Rows of whole sampling loops beside diffusers' class and k-diffusion's function: the model's output is ready, so that what is
timed is the sampler alone. "adapter" is diffusers' interface kept by ``pyfold.adapters.diffusers``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pyfold import diffusion
from pyfold.bench.rows import IMAGES, Case, Form, Setting, row
from pyfold.diffusion import spacings

STEPS = 12
VP = diffusion.vp_linear()
FLOW = diffusion.flow()
#: row -> (plan, class of diffusers, its settings, what its step is asked for, function of k-diffusion)
SAMPLERS: dict[str, tuple[Callable[[], diffusion.Plan], str | None, dict[str, Any], dict[str, Any], str | None]] = {
    "DDPM": (lambda: diffusion.ddpm(VP, STEPS), "DDPMScheduler", {}, {}, None),
    "DDIM": (lambda: diffusion.ddim(VP, STEPS), "DDIMScheduler", {}, {}, None),
    "DDIM, eta 1": (lambda: diffusion.ddim(VP, STEPS, eta=1.0), "DDIMScheduler", {}, {"eta": 1.0}, None),
    "Euler": (lambda: diffusion.euler(VP, STEPS), "EulerDiscreteScheduler", {}, {}, "sample_euler"),
    "Euler ancestral": (
        lambda: diffusion.euler_ancestral(VP, STEPS),
        "EulerAncestralDiscreteScheduler",
        {},
        {},
        "sample_euler_ancestral",
    ),
    "Heun": (lambda: diffusion.heun(VP, STEPS), "HeunDiscreteScheduler", {}, {}, "sample_heun"),
    "DPM2": (lambda: diffusion.dpm2(VP, STEPS), "KDPM2DiscreteScheduler", {}, {}, "sample_dpm_2"),
    "DPM2 ancestral": (
        lambda: diffusion.dpm2_ancestral(VP, STEPS),
        "KDPM2AncestralDiscreteScheduler",
        {},
        {},
        "sample_dpm_2_ancestral",
    ),
    "DPM++ 2S ancestral": (lambda: diffusion.dpmpp_2s_ancestral(VP, STEPS), None, {}, {}, "sample_dpmpp_2s_ancestral"),
    "DPM++ singlestep 2": (
        lambda: diffusion.dpmpp_singlestep(VP, STEPS, order=2),
        "DPMSolverSinglestepScheduler",
        {"lower_order_final": True},
        {},
        None,
    ),
    "PLMS": (lambda: diffusion.plms(VP, STEPS), "PNDMScheduler", {"skip_prk_steps": True}, {}, None),
    "iPNDM": (lambda: diffusion.ipndm(VP, STEPS), "IPNDMScheduler", {}, {}, None),
    "ER-SDE 3": (lambda: diffusion.er_sde(VP, STEPS), None, {}, {}, None),
    "SEEDS 2": (lambda: diffusion.seeds_2(VP, STEPS), None, {}, {}, None),
    "EDM stochastic": (lambda: diffusion.edm_stochastic(diffusion.edm(), STEPS), None, {}, {}, None),
    "DPM++ 2M": (
        lambda: diffusion.dpmpp_multistep(VP, STEPS, order=2),
        "DPMSolverMultistepScheduler",
        {},
        {},
        "sample_dpmpp_2m",
    ),
    "DPM++ 3M": (
        lambda: diffusion.dpmpp_multistep(VP, STEPS, order=3),
        "DPMSolverMultistepScheduler",
        {"solver_order": 3},
        {},
        None,
    ),
    "DPM++ 2M SDE": (
        lambda: diffusion.dpmpp_multistep(VP, STEPS, order=2, eta=1.0),
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++"},
        {},
        "sample_dpmpp_2m_sde",
    ),
    "UniPC 2": (lambda: diffusion.unipc(VP, STEPS, order=2), "UniPCMultistepScheduler", {}, {}, None),
    "DEIS 2": (lambda: diffusion.deis(VP, STEPS, order=2), "DEISMultistepScheduler", {}, {}, None),
    "LMS 4": (lambda: diffusion.lms(VP, STEPS), "LMSDiscreteScheduler", {}, {}, "sample_lms"),
    "SA-Solver": (lambda: diffusion.sa_solver(VP, STEPS), "SASolverScheduler", {}, {}, None),
    "LCM": (lambda: diffusion.lcm(VP, STEPS), "LCMScheduler", {}, {}, None),
    "TCD": (lambda: diffusion.tcd(VP, STEPS), "TCDScheduler", {}, {}, None),
    "flow Euler": (lambda: diffusion.flow_euler(FLOW, STEPS), "FlowMatchEulerDiscreteScheduler", {}, {}, None),
    "flow Heun": (lambda: diffusion.flow_heun(FLOW, STEPS), "FlowMatchHeunDiscreteScheduler", {}, {}, None),
    "flow SDE": (lambda: diffusion.flow_sde(FLOW, STEPS), None, {}, {}, None),
}


def diffusers_loop(
    scheduler: Any,
    start: Callable[[], torch.Tensor],
    model: Callable[..., Any],
    asked: dict[str, Any],
    seeds: torch.Tensor | None = None,
) -> Form:
    """A whole run from ``start()``. In between, the scheduler is put back to where set_timesteps left it, its tables kept."""
    if hasattr(scheduler, "is_scale_input_called"):
        scheduler.is_scale_input_called = True  # else it warns; scaling the input is no part of the step
    fresh = dict(vars(scheduler))

    def run() -> torch.Tensor:
        for name, value in fresh.items():
            setattr(scheduler, name, list(value) if isinstance(value, list) else value)
        state = start()
        if seeds is not None:
            scheduler.set_seeds(seeds)
        for t in scheduler.timesteps:
            state = scheduler.step(model(state, t), t, state, return_dict=False, **asked)[0]
        return state

    return run


def _add_loop_row(name: str) -> None:
    make, scheduler, options, asked, function = SAMPLERS[name]

    @row(f"{name}, {STEPS} steps", "loops", dtypes=(torch.float32,), shapes={k: IMAGES[k] for k in ("small", "middle")})
    def loop(s: Setting) -> Case:
        x, output = s.tensors(2)
        plan, seeds = make(), s.seeds()
        model = lambda x, t, **_: output  # noqa: E731
        forms: dict[str, Form | None] = {
            "pyfold": lambda: diffusion.sample(model, plan, s.shape[1:], seeds, x=x, device=s.device)
        }
        if s.peers.diffusers and scheduler:
            import pyfold.adapters.diffusers as adapters

            theirs, adapted = (getattr(package, scheduler)(**options) for package in (s.peers.diffusers, adapters))
            for each in (theirs, adapted):
                each.set_timesteps(STEPS, device=s.device)
            forms["adapter"] = diffusers_loop(adapted, lambda: x, model, asked, seeds)
            forms["diffusers"] = diffusers_loop(theirs, lambda: x, model, asked)
        # A Brownian tree of torchsde's takes seconds for a loop at the larger size.
        if s.peers.k_diffusion and function and (s.level == "small" or not function.endswith("_sde")):
            sampler = getattr(s.peers.k_diffusion, function)
            ratios = [p.ratio for p in spacings.karras(VP, STEPS)]
            sigmas = torch.tensor([*ratios[:STEPS], 0.0], dtype=s.dtype, device=s.device)
            start = x * sigmas[0]
            forms["k-diffusion"] = lambda: sampler(model, start, sigmas, disable=True)
        return Case(forms)


for _name in SAMPLERS:
    _add_loop_row(_name)
