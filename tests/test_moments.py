"""What samplers make of Gaussian data, exactly: the mean always, the variance as steps shrink."""

import inspect
import math
from functools import partial

import pytest
import torch
from moments import (
    BEYOND,
    COMPARED,
    MEAN,
    MEASURED_WITH,
    NAMES,
    ORDERS,
    PAGE,
    SCHEDULES,
    STARTED,
    VARIANCE,
    accepted,
    comparison,
    default_run,
    error_between,
    euler_maruyama,
    exact,
    moments,
    order_between,
    ratio_frame_error,
    reference_error,
    reference_variance,
    spread,
    started_order,
    variance_error,
)

from pyfold import diffusion
from pyfold.diffusion import SAMPLERS


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_is_exact(name):
    """At the sampler's defaults, on every schedule that it takes, whatever the number of model calls."""
    sampler = SAMPLERS[name]
    for label, schedule in accepted(name).items():
        for calls in (1, 2, 5, 10, 20):
            plan, points = default_run(name, schedule, calls)
            if name == "lcm":  # its boundary condition mixes x into x0
                plan = sampler(schedule, calls, prediction="x0", time_scaling=1e9)
            # dpm_fast ends where the schedule does, a little noise away from the data.
            end = points[-1].alpha if name == "dpm_fast" else 1.0
            assert moments(plan, schedule, points[0]).mean == pytest.approx(end * MEAN, abs=1e-6), (label, calls)


@pytest.mark.parametrize("name", COMPARED)
def test_the_variance_beside_the_reference_of_its_order(name):
    """At most twice its error at 20 calls, but where the table says why."""
    found = {
        label
        for label, schedule in accepted(name).items()
        if abs(variance_error(name, schedule, 20)) > 2 * abs(reference_error(name, schedule, 20))
    }
    assert found == set(BEYOND.get(name, ((), ""))[0])


# Why: the reasons in the table, each by what becomes of the error where the reason is taken away.


@pytest.mark.parametrize("name", ["ddpm", "euler_ancestral", "flow_ancestral"])
def test_ancestral_steps_have_twice_the_constant_of_euler_and_maruyama(name):
    schedule = SCHEDULES["flow" if name == "flow_ancestral" else "vp_linear"]()
    points = [schedule.at_ratio(10 * 0.005 ** (k / 384)) for k in range(385)]
    scheme = euler_maruyama(points) - exact(points[-1])
    assert error_between(name, 384, **MEASURED_WITH.get(name, {})) / scheme == pytest.approx(-2, abs=0.05)


#: Where straightness is the reason on one schedule, and something else on the others.
STRAIGHT = {"sa_solver_pece": ("trigflow",)}


@pytest.mark.parametrize("name", [name for name, (_, why) in BEYOND.items() if "straight" in why])
def test_flows_are_straight_in_the_references_frame_alone(name):
    """In the frame of sigma / alpha the reference errs more than each of them, on the same levels."""
    straight = {"deis": ("flow", "trigflow"), **STRAIGHT}.get(name, ("flow", "flow, shift 3"))
    for label in set(BEYOND[name][0]).intersection(straight):
        points = default_run(name, SCHEDULES[label](), 20)[1]
        assert abs(variance_error(name, SCHEDULES[label](), 20)) < abs(ratio_frame_error(points)), label


@pytest.mark.parametrize(
    ("name", "label", "times"), [("res_multistep", "sub_vp", 1.6), ("res_multistep", "trigflow", 1.7), ("unipc", "sub_vp", 1.9)]
)
def test_steps_were_too_long(name, label, times):
    schedule = SCHEDULES[label]()
    ratio = variance_error(name, schedule, 40) / reference_error(name, schedule, 40)
    assert ratio == pytest.approx(times, abs=0.05)


#: Without what is said to cost it: the options, and the most that is left, in parts of the default's or of the reference's.
WITHOUT = {
    "sa_solver": ({"tau": 0.0}, 0.2, math.inf),
    "sa_solver_pece": ({"tau": 0.0}, 0.21, 1.0),
    "flow_dpm2_ancestral": ({"eta": 0.0}, 0.16, 1.0),
    "lms": ({"starter": "runge_kutta"}, 0.2, 1.0),
    "edm_stochastic": ({"churn": 0.0}, 0.51, 1.1),
    "dpm2_ancestral": ({"eta": 0.0}, 0.25, 1.0),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_without_the_reason_the_error_is_small(name):
    options, of_default, of_reference = WITHOUT[name]
    for label in set(BEYOND[name][0]).difference(STRAIGHT.get(name, ())):
        schedule = SCHEDULES[label]()
        points = default_run(name, schedule, 20)[1]
        plan = SAMPLERS[name](schedule, len(points) - 1, prediction="x0", spacing=points, **options)
        left = abs(moments(plan, schedule, points[0]).variance - exact(points[-1]))
        assert left <= of_default * abs(variance_error(name, schedule, 20)), label
        assert left <= of_reference * abs(reference_error(name, schedule, 20)), label


@pytest.mark.parametrize(("name", "times"), [("dpm2_ancestral", 4), ("flow_dpm2_ancestral", 4.7)])
def test_ancestral_midpoints_have_so_many_times_the_constant_without_noise(name, times):
    assert error_between(name, 192) / error_between(name, 192, eta=0.0) == pytest.approx(times, abs=0.1)


@pytest.mark.parametrize("name", COMPARED)
def test_orders(name):
    """In the limit; SA-Solver's and unipc's come from above, their error having changed its sign."""
    adams = name in ("sa_solver", "sa_solver_pece")
    few = 768 if adams or name == "unipc" else 384
    measured = order_between(name, few, 2 * few, **MEASURED_WITH.get(name, {}))
    assert measured == pytest.approx(ORDERS[name], abs=0.7 if adams else 0.2)


@pytest.mark.parametrize(("name", "options", "order"), [case[1:] for case in STARTED], ids=[case[0] for case in STARTED])
def test_started_by_runge_kutta_a_multistep_method_has_its_full_order(name, options, order):
    assert started_order(name, 160, 320, starter="runge_kutta", **options) == pytest.approx(order, abs=0.35)
    assert started_order(name, 320, 640, **options) < order - 0.2


def test_the_page_is_what_is_measured():
    """docs/moments.md, its largest table, as ``python tests/moments.py --update`` writes it."""
    page = PAGE.read_text()
    missing = [line for line in comparison() if line not in page]
    assert not missing


def test_runge_kutta_starts_without_noise():
    schedule = SCHEDULES["vp_linear"]()
    with pytest.raises(ValueError, match="eta must be 0 for starter 'runge_kutta', got 1.0"):
        diffusion.dpmpp_multistep(schedule, 8, order=3, eta=1.0, starter="runge_kutta")
    with pytest.raises(ValueError, match="stochastic must be False"):
        diffusion.dpm_multistep(schedule, 8, stochastic=True, starter="runge_kutta")
    with pytest.raises(ValueError, match="starter must be 'lower_order' or 'runge_kutta', got 'euler'"):
        diffusion.lms(schedule, 8, starter="euler")


@pytest.mark.parametrize("name", ["heun", "dpm2_ancestral", "edm_stochastic", "lms", "unipc", "annealed_langevin", "deis"])
@pytest.mark.parametrize("label", ["zero terminal SNR", "trigflow", "flow"])
def test_defaults_work_from_pure_noise(name, label):
    """Whatever the model predicts; points of one's own that cannot be are refused with what works."""
    sampler, schedule = SAMPLERS[name], SCHEDULES[label]()
    plan = sampler(schedule, 10, prediction="epsilon")
    assert math.isfinite(sum(sum(row.values()) for row in plan.rows if "clip_min" not in row))
    points = diffusion.spacings.trailing(schedule, 10)
    assert points[0].alpha == 0
    with pytest.raises(ValueError, match=r"spacing must not start at pure noise .* 'karras'.*at_ratio\(999\)"):
        sampler(schedule, 10, prediction="epsilon", spacing=points)


def test_dpm_fast_spans_a_flow():
    """From next to pure noise, not from sigma .5, whose ratio to alpha is 1."""
    plan = diffusion.dpm_fast(diffusion.flow(), 20, prediction="x0")
    assert plan.points[0].ratio == pytest.approx(999.0)


@pytest.mark.parametrize("label", ["vp_linear", "edm", "flow", "trigflow"])
def test_consistency_has_its_own_law(label):
    """Each level's noise is new: what is left of the data's variance is that of E[x0 | x]."""
    schedule = SCHEDULES[label]()
    plan, points = default_run("consistency", schedule, 10)
    variance = exact(points[0])
    for here, there in zip(points, points[1:], strict=False):
        gain = here.alpha * VARIANCE / exact(here)
        variance = (there.alpha * gain) ** 2 * variance + there.sigma**2
    assert moments(plan, schedule, points[0]).variance == pytest.approx(variance, rel=1e-9)


@pytest.mark.parametrize("label", ["edm", "ve", "vp", "sub_vp", "vp_cosine", "zero terminal SNR"])
def test_annealed_langevin_has_its_own_law(label):
    """A warm particle at each level; at the defaults it ends within a fifth of the data's variance."""
    schedule = SCHEDULES[label]()
    points = SAMPLERS["annealed_langevin"].points(schedule, 50)
    plan = diffusion.annealed_langevin(schedule, 50, prediction="x0")
    variance = exact(points[0])
    for here, there in zip(points, points[1:], strict=False):
        for _ in range(5):
            pull = 0.5 * (here.sigma / spread(here)) ** 2
            variance = (1 - pull) ** 2 * variance + 2 * 0.5 * here.sigma**2
        gain = here.alpha * VARIANCE / exact(here)
        variance *= (there.alpha * gain if there.sigma == 0 else there.alpha / here.alpha) ** 2
    found = moments(plan, schedule, points[0]).variance
    assert found == pytest.approx(variance, rel=1e-9)
    assert abs(found / VARIANCE - 1) < 0.2


@pytest.mark.parametrize("name", COMPARED)
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
