"""diffusers' continuous schedulers under their own names, with pyfold's arithmetic.

Each class is a subclass of diffusers' of the same name: configuration, ``from_pretrained``, ``from_config``, compatible
classes, ``set_timesteps`` and its tables are theirs. ``step``, ``add_noise``, ``scale_noise``, ``get_velocity`` and
``scale_model_input`` are one pass of :func:`pyfold.affine_step` each, with coefficients in float64 that are computed once for
a table and stay on the device. A pipeline takes one as it takes theirs::

    from pyfold.adapters.diffusers import EulerAncestralDiscreteScheduler
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)

Assign it so: some pipelines (DDIMPipeline) make a scheduler of diffusers' from the one that their constructor is given. A
pipeline that was saved with one of these loads where ``pyfold.adapters.diffusers`` has been imported.

With ``generator=`` the noise is torch's, drawn as diffusers draws it. After ``pipe.scheduler.set_seeds([7, 8, 9])``, or with
``seeds=`` given to a step, it is made inside the kernel: a function of the sample's seed and the noise level that the draw
leads to, the same for every batch split, device and start (docs/noise.md). An int means that the samples count from it.

Differences, all where theirs is an error, or not a number, or rounding:

- ``fixed_large_log`` of DDPM is what its name says; a step to zero noise of UniPC's bh1 and of DEIS is the limit.
- Orders without a stochastic formula raise a ValueError, and so does a prediction that says nothing about x0 at its level, such
  as epsilon's where zero terminal SNR has left no signal.
- Half-precision samples do not round the schedule.

Classes that the installed diffusers lacks are not here, nor are its discrete schedulers (tokens, masks).
"""

from pyfold._requirements import need

need("diffusers", "diffusers")

# ruff: noqa: E402

# What diffusers' loader looks for beside a class of another package.
from diffusers import SchedulerMixin as SchedulerMixin

from pyfold.adapters.diffusers._discrete import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    ConsistencyDecoderScheduler,
    DDIMInverseScheduler,
    DDIMParallelScheduler,
    DDIMScheduler,
    DDPMParallelScheduler,
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    IPNDMScheduler,
    LCMScheduler,
    PNDMScheduler,
    RePaintScheduler,
    TCDScheduler,
    UnCLIPScheduler,
)
from pyfold.adapters.diffusers._flow import (
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    HeliosDMDScheduler,
    HeliosScheduler,
    LTXEulerAncestralRFScheduler,
    MiniMaxH3Scheduler,
    PiflowScheduler,
    RFD4ProteinaScheduler,
    SCMScheduler,
)
from pyfold.adapters.diffusers._multistep import (
    CosineDPMSolverMultistepScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepInverseScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)
from pyfold.adapters.diffusers._score import (
    ScoreSdeVeScheduler,
    ScoreSdeVpScheduler,
)
from pyfold.adapters.diffusers._seeded import seeded as seeded
from pyfold.adapters.diffusers._sigmas import (
    CMStochasticIterativeScheduler,
    DPMSolverSDEScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KarrasVeScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
)

__all__ = [
    "CMStochasticIterativeScheduler",
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "ConsistencyDecoderScheduler",
    "CosineDPMSolverMultistepScheduler",
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DDPMWuerstchenScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMapEulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "HeliosDMDScheduler",
    "HeliosScheduler",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KarrasVeScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "LTXEulerAncestralRFScheduler",
    "MiniMaxH3Scheduler",
    "PNDMScheduler",
    "PiflowScheduler",
    "RFD4ProteinaScheduler",
    "RePaintScheduler",
    "SASolverScheduler",
    "SCMScheduler",
    "ScoreSdeVeScheduler",
    "ScoreSdeVpScheduler",
    "TCDScheduler",
    "UnCLIPScheduler",
    "UniPCMultistepScheduler",
]

# What the installed diffusers has not is not here either.
for _name in [name for name in __all__ if globals()[name]._absent]:
    __all__.remove(_name)
    del globals()[_name]
