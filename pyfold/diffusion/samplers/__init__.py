"""Samplers: each is a rule of formulas, declared once, that makes plans in float64.

A rule writes states in the schedule's own scale, ``x = alpha x0 + sigma eps``, from the step's two points ``here`` and
``there`` and the points before; X0, EPSILON, FLOW and U stand for what the model's output means. Every rule keeps a state of
constant x0 exact, so a coefficient of x0 is ``alpha' - a alpha`` where a is that of x.
"""

from __future__ import annotations

from pyfold.diffusion.samplers import correctors as correctors
from pyfold.diffusion.samplers import exponential as exponential
from pyfold.diffusion.samplers import langevin as langevin
from pyfold.diffusion.samplers import linear as linear
from pyfold.diffusion.samplers import runge_kutta as runge_kutta
from pyfold.diffusion.samplers import stochastic as stochastic
from pyfold.diffusion.samplers import two_times as two_times
from pyfold.diffusion.samplers._declare import SAMPLERS, Past, Sampler, sampler
from pyfold.diffusion.samplers.adaptive import Attempt, dpm_adaptive
from pyfold.diffusion.samplers.ancestral import ddim_inverse

__all__ = ["SAMPLERS", "Attempt", "Past", "Sampler", "ddim_inverse", "dpm_adaptive", "sampler"]
