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
``seeds=`` given to a step, it is made inside the kernel: a function of the sample's seed and the step, the same for every
batch split and device. An int means that the samples count from it.

Differences, all where theirs is an error or not a number: ``fixed_large_log`` of DDPM is what its name says; orders without a
stochastic formula raise; a step to zero noise of UniPC's bh1 and of DEIS is the limit; half-precision samples do not round the
schedule. The discrete schedulers of diffusers (tokens, masks) are not here.
"""

# What diffusers' loader looks for beside a class of another package.
from diffusers import SchedulerMixin

from pyfold.adapters.diffusers import _discrete, _flow, _multistep, _score, _sigmas
from pyfold.adapters.diffusers._discrete import *
from pyfold.adapters.diffusers._flow import *
from pyfold.adapters.diffusers._multistep import *
from pyfold.adapters.diffusers._score import *
from pyfold.adapters.diffusers._sigmas import *

__all__ = sorted(name for module in (_discrete, _flow, _multistep, _score, _sigmas) for name in module.__all__)
