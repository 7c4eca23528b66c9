"""What samplers make of Gaussian data, exactly: the mean always, the variance as steps shrink."""

import inspect
import math
from functools import partial

import pytest
import torch
from moments import MEAN, SCHEDULES, VARIANCE, default_points, euler_maruyama, moments, reference_variance, steps_for

from pyfold import diffusion
from pyfold.diffusion import SAMPLERS

NAMES = [name for name, sampler in SAMPLERS.items() if not sampler.alias_of]
#: Their law is another: new noise on x0 at each level, or a particle at a temperature.
OF_THEIR_OWN = ("lcm", "tcd", "consistency", "annealed_langevin")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def accepted(name):
    sampler = SAMPLERS[name]
    for label, make in SCHEDULES.items():
        schedule = make()
        if sampler.schedules == "flow" and not schedule.is_flow:
            continue
        if sampler.schedules == "discrete" and not schedule.steps:
            continue
        yield label, schedule


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_is_exact(name):
    """At the sampler's defaults, whatever the schedule and the number of model calls."""
    sampler, runs = SAMPLERS[name], 0
    refusals: list[str] = []
    if name == "lcm":
        sampler = partial(sampler, time_scaling=1e9)  # its boundary condition mixes x into x0
    for label, schedule in accepted(name):
        for calls in (1, 2, 5, 10, 20):
            try:
                steps = steps_for(sampler, schedule, calls)
                if "spacing" in inspect.signature(sampler).parameters:
                    points = default_points(sampler, schedule, steps)
                    plan = sampler(schedule, steps, prediction="x0", spacing=points)
                else:
                    plan = sampler(schedule, steps, prediction="x0")
                    points = plan.points
            except ValueError as refused:
                refusals.append(str(refused))
                continue
            # dpm_fast ends where the schedule does, a little noise away from the data.
            end = schedule.at_ratio(diffusion.spacings.span(schedule, None, None)[0]).alpha if name == "dpm_fast" else 1.0
            assert moments(plan, schedule, points[0]).mean == pytest.approx(end * MEAN, abs=1e-6), (label, calls)
            runs += 1
    assert runs
    assert all("spacing" in text or "schedule" in text for text in refusals), refusals


@pytest.mark.parametrize("name", [n for n in NAMES if n not in OF_THEIR_OWN])
def test_the_variance_is_right_in_the_limit(name):
    """More steps make it better, down to what the last step takes off too much."""
    sampler = SAMPLERS[name]
    schedule = SCHEDULES["flow" if sampler.schedules == "flow" else "vp_linear"]()
    errors = []
    for steps in (80, 160, 320):
        given = {} if "spacing" not in inspect.signature(sampler).parameters else {"spacing": "trailing"}
        if given and sampler.schedules == "any":
            given = {"spacing": partial(diffusion.spacings.exponential, sigma_min=0.01)}
        plan = sampler(schedule, steps, prediction="x0", **({"clip": None} | given))
        errors.append(abs(moments(plan, schedule, plan.points[0]).variance / VARIANCE - 1))
    assert errors[-1] < 0.04, errors
    if (
        name == "flow_sde"
    ):  # the rate of its noise has no bound at the noisy end: it creeps, from 0.6 % at 320 to 0.4 % at 1,280
        return
    assert errors[-1] < max(0.6 * errors[0], 1e-3), errors


def test_res_multistep_with_noise_has_order_2():
    """The slope is taken over the previous step as it was aimed: over the distance to the last point it is of order 1."""
    schedule, errors = SCHEDULES["edm"](), []
    for steps in (40, 80, 160):
        plan = diffusion.res_multistep(schedule, steps, prediction="x0", eta=1.0)
        errors.append(moments(plan, schedule, plan.points[0]).variance - VARIANCE)
    assert math.log2(errors[0] / errors[1]) > 1.9 and math.log2(errors[1] / errors[2]) > 1.9
    # Divided by the distance to the last point, 20 steps at the defaults gave 12.1.
    plan = diffusion.res_multistep(schedule, 20, prediction="x0", eta=1.0)
    assert moments(plan, schedule, plan.points[0]).variance == pytest.approx(0.787, abs=0.001)


@pytest.mark.parametrize("name", ["euler", "euler_ancestral", "unipc", "deis", "lms", "dpmpp_multistep"])
def test_defaults_suit_edm(name):
    """Equal steps of sigma leave all but one of them at high noise: a variance of .014 for .49 at 20 steps."""
    schedule, sampler = SCHEDULES["edm"](), SAMPLERS[name]
    plan = sampler(schedule, 20, prediction="x0")
    assert 0.25 < moments(plan, schedule, plan.points[0]).variance < 0.75
    trailing = sampler(schedule, 20, prediction="x0", spacing="trailing")
    assert moments(trailing, schedule, trailing.points[0]).variance < 0.05


@pytest.mark.parametrize("method", ["heun", "euler", "dpm2"])
def test_no_churn_after_the_last_step(method):
    """A table that ends above zero hands over at its own level of noise, not above it."""
    schedule = SCHEDULES["edm"]()
    points = diffusion.spacings.karras(schedule, 120)[:90]
    end = points[-1]
    assert 0.05 < end.ratio < 50  # where churn is wanted
    exact = VARIANCE + end.ratio**2
    plan = diffusion.edm_stochastic(schedule, 89, prediction="x0", spacing=points, method=method, noise_scale=1.0)
    assert not any(plan.rows[-1].get(d) for d in ("d1", "d2", "d3"))
    if method != "euler":  # of order 1, whose own error is as large here
        assert moments(plan, schedule, points[0]).variance == pytest.approx(exact, rel=0.05)


def test_references():
    """Euler, Heun and DPM-Solver-3 by their orders, and Euler-Maruyama by its own recursion."""
    schedule = SCHEDULES["vp_linear"]()
    points = [schedule.at_ratio(10 * (0.05 / 10) ** (k / 40)) for k in range(41)]
    end = points[-1].alpha ** 2 * VARIANCE + points[-1].sigma ** 2
    errors = [abs(reference_variance(order, False, schedule, points) - end) for order in (1, 2, 3)]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    plan = diffusion.euler_ancestral(schedule, 40, prediction="x0", spacing=points)
    ancestral = moments(plan, schedule, points[0]).variance
    assert abs(euler_maruyama(points) - end) < 0.2 and abs(ancestral - end) < 0.2
