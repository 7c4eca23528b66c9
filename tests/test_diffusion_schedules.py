"""Schedules, their inverses and spacings, predictions and their conversions."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyfold import diffusion
from pyfold.diffusion import PREDICTIONS, SCHEDULES, SPACINGS, spacings

ALL = {name: make() for name, make in SCHEDULES.items()}
ALL["flow 3"] = diffusion.flow(3.0)
ALL["flow 2, exponent"] = diffusion.flow(2.0, exponent=0.7)
ALL["zero terminal snr"] = diffusion.zero_terminal_snr(diffusion.vp_scaled_linear())
ALL["from_betas"] = diffusion.from_betas(np.linspace(1e-3, 0.1, 50))


def ends(schedule):
    return (0.0, schedule.steps - 1.0) if schedule.steps else (schedule.t_min, schedule.t_max)


@pytest.mark.parametrize("name", ALL)
def test_noise_rises_and_time_inverts_it(name):
    schedule = ALL[name]
    low, high = ends(schedule)
    t = np.linspace(low, high, 2001)[:-1] if name == "zero terminal snr" else np.linspace(low, high, 2001)
    if name == "zero terminal snr":
        t = t[t <= schedule.steps - 2]
    alpha, sigma = schedule.coefficients(t)
    with np.errstate(divide="ignore"):
        ratio = sigma / alpha
    assert (np.diff(ratio) > 0).all()
    inner = (ratio > 0) & (ratio < 1e6)
    np.testing.assert_allclose(schedule.time(ratio[inner]), t[inner], rtol=1e-8, atol=1e-9 * high)
    # The same from torch, scalars included.
    on_torch = schedule.coefficients(torch.from_numpy(t))
    assert np.array_equal(on_torch[0].numpy(), alpha) and np.array_equal(on_torch[1].numpy(), sigma)
    middle = schedule.at((low + high) / 2)
    assert (middle.alpha, middle.sigma) == tuple(schedule.coefficients((low + high) / 2))
    back = schedule.at_ratio(middle.ratio)
    np.testing.assert_allclose(back, middle, rtol=1e-9)
    assert schedule.at_ratio(0.0) == schedule.clean()
    assert (schedule.clean().alpha, schedule.clean().sigma) == (1.0, 0.0)


@pytest.mark.parametrize("name", ["vp", "sub_vp", "ve", "edm", "trigflow", "flow", "flow 2, exponent"])
def test_search_finds_what_the_inverse_does(name):
    schedule = ALL[name]
    searched = diffusion.Schedule("searched", curve=schedule.curve, t_min=schedule.t_min, t_max=schedule.t_max)
    ratio = np.geomspace(0.02, 20.0, 50)
    np.testing.assert_allclose(searched.time(ratio), schedule.time(ratio), rtol=1e-9, atol=1e-12)


def test_formulas_of_the_continuous_schedules():
    t = np.linspace(0.05, 0.95, 7)
    integral = 0.1 * t + 19.9 * t**2 / 2
    alpha, sigma = diffusion.vp().coefficients(t)
    np.testing.assert_allclose(alpha, np.exp(-integral / 2), rtol=1e-13)
    np.testing.assert_allclose(sigma, np.sqrt(1 - np.exp(-integral)), rtol=1e-13)
    np.testing.assert_allclose(diffusion.sub_vp().coefficients(t)[1], 1 - np.exp(-integral), rtol=1e-13)
    np.testing.assert_allclose(diffusion.ve().coefficients(t)[1], 0.01 * 5000.0**t, rtol=1e-12)
    np.testing.assert_allclose(diffusion.flow(2.0).coefficients(t)[1], 2 * t / (1 + t), rtol=1e-14)
    alpha, sigma = diffusion.trigflow(0.7).coefficients(t)
    np.testing.assert_allclose([alpha, sigma], [np.cos(t), 0.7 * np.sin(t)], rtol=1e-14)


def test_a_schedule_made_from_another_leaves_it():
    schedule = diffusion.vp_linear()
    other = replace(schedule, alphas=schedule.alphas**2, sigmas=schedule.sigmas**2)
    for made in (schedule, other):
        assert made.coefficients(torch.tensor(500.0))[0].item() == pytest.approx(made.alphas[500], rel=1e-9)
    assert other.alphas[500] < 0.9 * schedule.alphas[500]


def test_zero_terminal_snr_keeps_the_first_and_ends_in_noise():
    before, after = diffusion.vp_linear(), diffusion.zero_terminal_snr(diffusion.vp_linear())
    assert after.alphas[0] == pytest.approx(before.alphas[0], rel=1e-14)
    assert (after.alphas[-1], after.sigmas[-1]) == (0.0, 1.0)
    assert after.at(999).ratio == math.inf and after.at(999).lam == -math.inf


@pytest.mark.parametrize("wanted", PREDICTIONS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_conversions_in_both_directions(prediction, wanted):
    rng = np.random.default_rng(3)
    x0, eps = rng.normal(size=(2, 100))
    for alpha, sigma, std in ((0.8, 0.6, 1.0), (0.3, 0.7, 0.5), (1.0, 40.0, 0.5), (0.01, 0.9999, 2.0)):
        x = alpha * x0 + sigma * eps
        ratio = sigma / alpha
        norm = math.hypot(ratio, std)
        c_skip, c_out = std**2 / norm**2, ratio * std / norm
        f = (x0 - c_skip * x / alpha) / c_out
        values = {
            "epsilon": eps,
            "x0": x0,
            "v": alpha * eps - sigma * x0,
            "flow": eps - x0,
            "score": -eps / sigma,
            "F": f,
            "trigflow": -f,
        }
        assert set(values) == set(PREDICTIONS)
        for a, b in ((prediction, wanted), (wanted, prediction)):
            r, s = diffusion.convert(a, b, alpha, sigma, std)
            scale = np.abs(values[b]).max() * max(1.0, ratio, 1 / ratio)
            np.testing.assert_allclose(r * x + s * values[a], values[b], atol=1e-12 * scale)


def test_trigflow_prediction_is_the_velocity():
    """data_std F = dx / dt on the circle (Lu and Song 2025)."""
    schedule, x0, z = diffusion.trigflow(0.5), 0.8, -0.3
    t = 0.6
    point = schedule.at(t)
    x = point.alpha * x0 + point.sigma * z
    velocity = math.cos(t) * 0.5 * z - math.sin(t) * x0
    r, s = diffusion.convert("trigflow", "x0", point.alpha, point.sigma, 0.5)
    assert r * x + s * velocity / 0.5 == pytest.approx(x0, rel=1e-12)


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("name", SPACINGS)
def test_spacings(name, final):
    schedule = diffusion.vp_linear()
    options = {"offset": 1} if name == "leading" else {"t_min": 2e-3} if name == "vp_uniform" else {}
    if name in ("linspace", "karras", "exponential", "polyexponential", "beta", "laplace", "kl_optimal"):
        # They visit the last level themselves.
        final = "zero"
    points = SPACINGS[name](schedule, 10, final=final, **options)
    assert len(points) == 11
    ratios = [p.ratio for p in points]
    assert ratios == sorted(ratios, reverse=True)
    assert points[-1] == (schedule.clean() if final == "zero" else schedule.at(0))
    assert all(p.alpha**2 + p.sigma**2 == pytest.approx(1, rel=1e-12) for p in points)


def test_beta_spacing_against_scipy():
    from scipy import stats

    u = np.linspace(0, 1, 33)
    for a, b in ((0.6, 0.6), (0.5, 2.0), (3.0, 1.0)):
        np.testing.assert_allclose(spacings.beta_quantiles(u, a, b), stats.beta.ppf(u, a, b), rtol=1e-9, atol=1e-12)


def test_ways_of_points():
    """Backwards to noise with the methods on the probability flow, and nowhere with those of one step."""
    schedule, model = diffusion.edm(), lambda x, t: x / (1 + (4 * t).exp().reshape(-1, 1) ** 2)
    points = [schedule.at_ratio(r) for r in np.exp(np.linspace(math.log(0.1), math.log(10), 200))]
    x = torch.randn(2, 3, dtype=torch.float64)
    for name in ("euler", "heun", "dpm2", "lms", "dpmpp_multistep"):
        plan = diffusion.SAMPLERS[name](schedule, prediction="x0", clip=None, spacing=points)
        scaled = lambda s, t: model(s * (0.25 + (4 * t).exp().reshape(-1, 1) ** 2).sqrt(), t)  # noqa: E731
        y = diffusion.sample(scaled, plan, (3,), [1, 2], x=x)
        torch.testing.assert_close(y.double(), x * (101 / 1.01) ** 0.5, rtol=5e-2, atol=0)
    rests = [points[9], points[4], points[4], points[2]]
    for name in ("euler", "heun", "dpm2", "edm_stochastic"):
        assert len(diffusion.SAMPLERS[name](schedule, spacing=rests).step_starts) == 3
    for name, given in (("lms", {}), ("dpmpp_multistep", {}), ("deis", {}), ("euler_ancestral", {})):
        with pytest.raises(ValueError, match="spacing must"):
            diffusion.SAMPLERS[name](schedule, spacing=rests, **given)
    with pytest.raises(ValueError, match="spacing must decrease in noise"):
        diffusion.dpmpp_multistep(schedule, eta=1.0, spacing=points)
    flow = diffusion.flow()
    assert diffusion.spacings.stretch([flow.at(1.0), flow.clean()], 0.1) == [flow.at(1.0), flow.clean()]


def test_spacings_by_hand():
    schedule = diffusion.vp_linear()
    assert [p.t for p in spacings.leading(schedule, 4)] == [750, 500, 250, 0, 0]
    assert [p.t for p in spacings.trailing(schedule, 4)] == [999, 749, 499, 249, 0]
    assert [p.t for p in spacings.linspace(schedule, 4)] == [999, 666, 333, 0, 0]
    assert [p.t for p in spacings.sgm_uniform(schedule, 3)] == [999, 666, 333, 0]
    assert [p.t for p in spacings.simple(schedule, 3)] == [999, 666, 333, 0]
    flow = diffusion.flow()
    np.testing.assert_allclose([p.sigma for p in spacings.trailing(flow, 4)], [1, 0.75, 0.5, 0.25, 0], atol=1e-15)
    custom = spacings.at_sigmas(flow, [1.0, 0.3])
    np.testing.assert_allclose([p.sigma for p in custom], [1, 0.3, 0], rtol=1e-12)
    edm = diffusion.edm()
    kl = spacings.kl_optimal(edm, 3)
    assert kl[1].ratio == pytest.approx(math.tan((math.atan(0.002) + math.atan(80)) / 2))
    angles = [p.ratio for p in spacings.angles(edm, 4)]
    assert angles[0] == 80 and angles[4] == 0
    np.testing.assert_allclose(np.arctan(angles), math.atan(80) * np.array([1, 0.75, 0.5, 0.25, 0]), rtol=1e-12)
    np.testing.assert_allclose([p.ratio for p in spacings.angles(flow, 3)], [999, 3**0.5, 3**-0.5, 0], rtol=3e-3)


BAD = {
    "betas": (lambda: diffusion.from_betas([0.1, 1.2]), "betas.*1.2"),
    "betas NaN": (lambda: diffusion.from_betas([0.1, math.nan]), "betas.*nan"),
    "no betas": (lambda: diffusion.from_betas([]), "betas"),
    "sigmoid": (lambda: diffusion.vp_sigmoid(beta_start=0.0), "beta_start.*0"),
    "scaled linear": (lambda: diffusion.vp_scaled_linear(beta_end=-1.0), "beta_end.*-1"),
    "exp": (lambda: diffusion.vp_exp(rate=math.nan), "rate.*nan"),
    "zero snr": (lambda: diffusion.zero_terminal_snr(diffusion.flow()), "discrete times.*flow"),
    "sde": (lambda: diffusion.vp(beta_min=2.0, beta_max=1.0), "beta_max.*1"),
    "ve": (lambda: diffusion.ve(sigma_min=-1.0), "sigma_min.*-1"),
    "edm": (lambda: diffusion.edm(data_std=0.0), "data_std.*0"),
    "exponent": (lambda: diffusion.flow(exponent=0.0), "exponent.*0"),
    "length": (lambda: diffusion.flow_for_length(0), "0"),
    "terminal": (lambda: spacings.stretch(spacings.trailing(diffusion.flow(), 4), 1.5), "terminal.*1.5"),
    "time": (lambda: diffusion.vp_linear().at(1000), r"t must be in \[0, 999\].*1000"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_schedules(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()
