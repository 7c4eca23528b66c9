"""Every sampler's loop beside diffusers' class: the model's output is ready, so that what is timed is the sampler alone.

``vs diffusers`` is theirs over ours with the plan run by ``pyfold.diffusion.sample``; ``vs adapter`` says what it costs to keep
diffusers' interface (``pyfold.adapters.diffusers``, seeded noise).
"""

import diffusers
import pytest
import torch
from conftest import SIZES

import pyfold.adapters.diffusers as adapters
from pyfold import diffusion

STEPS = 12
VP = diffusion.vp_linear()
FLOW = diffusion.flow()
#: row -> (plan, class of diffusers, its settings)
SAMPLERS = {
    "DDPM": (diffusion.ddpm(VP, STEPS), "DDPMScheduler", {}),
    "DDIM": (diffusion.ddim(VP, STEPS), "DDIMScheduler", {}),
    "DDIM, eta 1": (diffusion.ddim(VP, STEPS, eta=1.0), "DDIMScheduler", {}),
    "Euler": (diffusion.euler(VP, STEPS), "EulerDiscreteScheduler", {}),
    "Euler ancestral": (diffusion.euler_ancestral(VP, STEPS), "EulerAncestralDiscreteScheduler", {}),
    "Heun": (diffusion.heun(VP, STEPS), "HeunDiscreteScheduler", {}),
    "DPM++ 2M": (diffusion.dpmpp_multistep(VP, STEPS, order=2), "DPMSolverMultistepScheduler", {}),
    "DPM++ 3M": (diffusion.dpmpp_multistep(VP, STEPS, order=3), "DPMSolverMultistepScheduler", {"solver_order": 3}),
    "DPM++ 2M SDE": (
        diffusion.dpmpp_multistep(VP, STEPS, order=2, eta=1.0),
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++"},
    ),
    "UniPC 2": (diffusion.unipc(VP, STEPS, order=2), "UniPCMultistepScheduler", {}),
    "DEIS 2": (diffusion.deis(VP, STEPS, order=2), "DEISMultistepScheduler", {}),
    "LMS 4": (diffusion.lms(VP, STEPS), "LMSDiscreteScheduler", {}),
    "SA-Solver": (diffusion.sa_solver(VP, STEPS), "SASolverScheduler", {}),
    "LCM": (diffusion.lcm(VP, STEPS), "LCMScheduler", {}),
    "TCD": (diffusion.tcd(VP, STEPS), "TCDScheduler", {}),
    "flow Euler": (diffusion.flow_euler(FLOW, STEPS), "FlowMatchEulerDiscreteScheduler", {}),
}


#: What a row's step is asked for.
ASKED = {"DDIM, eta 1": {"eta": 1.0}}


def loop(scheduler, x, model, asked, seeds=None):
    """A whole run. In between, the scheduler is put back to where set_timesteps left it, its tables kept."""
    start = dict(vars(scheduler))

    def run():
        for name, value in start.items():
            setattr(scheduler, name, list(value) if isinstance(value, list) else value)
        state = x
        if seeds is not None:
            scheduler.set_seeds(seeds)
        for t in scheduler.timesteps:
            state = scheduler.step(model, t, state, return_dict=False, **asked)[0]
        return state

    return run


@pytest.mark.parametrize("size", ["1x4x64x64", "8x3x256x256"])
@pytest.mark.parametrize("row", SAMPLERS)
def test_loop_step(compare, row, size):
    plan, name, settings = SAMPLERS[row]
    shape = SIZES[size]
    generator = torch.Generator().manual_seed(0)
    x, model = (torch.randn(shape, generator=generator) for _ in range(2))
    theirs, adapted = (getattr(package, name)(**settings) for package in (diffusers, adapters))
    for scheduler in (theirs, adapted):
        scheduler.set_timesteps(STEPS)
    seeds = torch.arange(shape[0])
    forms = {
        "pyfold": lambda: diffusion.sample(lambda x, t: model, plan, shape[1:], seeds, x=x),
        "adapter": loop(adapted, x, model, ASKED.get(row, {}), seeds),
        "diffusers": loop(theirs, x, model, ASKED.get(row, {})),
    }
    compare(f"{row}, {len(plan)} stages, loop step", size, forms, budget=1.0)
