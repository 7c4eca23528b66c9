"""Samplers of models that go from one time to another in one step."""

from __future__ import annotations

from pyfold.diffusion.formulas import Step
from pyfold.diffusion.samplers._declare import Past, sampler
from pyfold.diffusion.samplers.runge_kutta import flow_euler
from pyfold.diffusion.schedule import Point


@sampler(
    1,
    source="Geng et al. 2025, eq. 12",
    keeps="flow",
    spacing="trailing",
    prediction="flow",
    schedules="flow",
    on_sigmas=False,
)
def flow_map(here: Point, there: Point, past: Past) -> Step:
    """``x_r = x_t - (t - r) u(x_t, t, r)``: Euler's step, exact where u is the mean of the velocity over [r, t].

    The model is told r by :func:`pyfold.diffusion.with_next_time`.
    """
    return flow_euler.rule(here, there, past)  # type: ignore[return-value]
