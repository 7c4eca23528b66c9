"""Samplers beside k-diffusion's functions in float64, with the same noise put into both."""

import math
from functools import partial

import numpy as np
import pytest
import torch

import pyfold
from k_diffusion_reference import sampling
from pyfold import diffusion
from pyfold.diffusion import spacings
from pyfold.diffusion.draws import stream_and_step

#: k-diffusion's own states: alpha = 1, the model told sigma.
UNIT_ALPHA = diffusion.Schedule("unit alpha", curve=lambda t: (torch.ones_like(t), t), t_min=0.02, t_max=20.0)
SIGMAS = np.array([15.0, 9.0, 5.5, 3.0, 1.4, 0.8, 0.3, 0.1, 0.0])
SHAPE = (3, 5)


def denoised(x, sigma):
    """A smooth function that is no true denoiser."""
    return 0.7 * torch.sin(x / (1 + sigma)) + 0.2 * torch.cos(sigma.log() + x / 3) + 0.1 * x / (1 + sigma**2)


def their_model(x, sigma):
    return denoised(x, sigma.reshape(-1, 1, 1).to(x))


def ours(plan, start, seeds, schedule=UNIT_ALPHA):
    """Ours on any schedule, from the state in k-diffusion's scale, told of the ratio by the plan's points."""
    stages = iter(plan.points)

    def model(x, t):
        point = next(stages)
        scale = schedule.input_scale(point.alpha, point.sigma)
        ratio = torch.full((len(x), 1, 1), point.ratio, dtype=x.dtype)
        return denoised(x / (scale * point.alpha), ratio)

    first = plan.points[0] if plan.start_churn is None else spacings.at_ratios(schedule, SIGMAS[:1])[0]
    return diffusion.sample(model, plan, SHAPE, seeds, x=start * first.alpha, dtype=torch.float64)


def counters(plan):
    """The noise counters in the order in which the plan introduces them."""
    used = [int(row[f"n{k}"]) for row in plan.rows for k in (1, 2, 3) if row.get(f"d{k}")]
    return list(dict.fromkeys(used))


CASES = {
    "euler": (diffusion.euler, sampling.sample_euler, {}),
    "euler_ancestral": (diffusion.euler_ancestral, sampling.sample_euler_ancestral, {}),
    "euler_ancestral eta": (
        partial(diffusion.euler_ancestral, eta=0.4, noise_scale=1.1),
        sampling.sample_euler_ancestral,
        {"eta": 0.4, "s_noise": 1.1},
    ),
    "heun": (diffusion.heun, sampling.sample_heun, {}),
    "dpm2": (diffusion.dpm2, sampling.sample_dpm_2, {}),
    "dpm2_ancestral": (diffusion.dpm2_ancestral, sampling.sample_dpm_2_ancestral, {}),
    "dpm2_ancestral eta": (partial(diffusion.dpm2_ancestral, eta=0.5), sampling.sample_dpm_2_ancestral, {"eta": 0.5}),
    "dpmpp_2s_ancestral": (diffusion.dpmpp_2s_ancestral, sampling.sample_dpmpp_2s_ancestral, {}),
    "dpmpp_2s_ancestral eta 0": (
        partial(diffusion.dpmpp_2s_ancestral, eta=0.0),
        sampling.sample_dpmpp_2s_ancestral,
        {"eta": 0.0},
    ),
    "dpmpp_sde": (partial(diffusion.dpmpp_sde, brownian=False), sampling.sample_dpmpp_sde, {}),
    "dpmpp_sde r": (
        partial(diffusion.dpmpp_sde, brownian=False, r=0.3, eta=0.6),
        sampling.sample_dpmpp_sde,
        {"r": 0.3, "eta": 0.6},
    ),
    "dpmpp_2m": (diffusion.dpmpp_multistep, sampling.sample_dpmpp_2m, {}),
    "dpmpp_2m_sde": (partial(diffusion.dpmpp_multistep, eta=1.0), sampling.sample_dpmpp_2m_sde, {}),
    "dpmpp_2m_sde heun": (
        partial(diffusion.dpmpp_multistep, eta=0.7, solver="heun"),
        sampling.sample_dpmpp_2m_sde,
        {"eta": 0.7, "solver_type": "heun"},
    ),
    "dpmpp_3m_sde": (partial(diffusion.dpmpp_multistep, order=3, eta=1.0, solver="heun"), sampling.sample_dpmpp_3m_sde, {}),
    "dpmpp_3m": (
        partial(diffusion.dpmpp_multistep, order=3, solver="heun"),
        sampling.sample_dpmpp_3m_sde,
        {"eta": 0.0},
    ),
}
#: The same numbers whatever the scale of the state.
SCALES = {
    "unit alpha": UNIT_ALPHA,
    "vp": diffusion.vp_scaled_linear(),
    "flow": diffusion.flow(),
    "edm": diffusion.edm(),
    "trigflow": diffusion.trigflow(),
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", CASES)
def test_against_k_diffusion(name, scale, generator):
    sampler, theirs, options = CASES[name]
    schedule = SCALES[scale]
    if scale == "vp" and SIGMAS[0] > schedule.sigmas[-1] / schedule.alphas[-1]:
        ratios = SIGMAS[1:]
    else:
        ratios = SIGMAS
    more = {"frame": "noise"} if name in ("euler", "heun", "dpm2") else {}
    plan = sampler(schedule, spacing=spacings.at_ratios(schedule, ratios[:-1]), prediction="x0", **more)
    seeds = torch.tensor([5, 6, 7, 8])
    start = torch.randn(4, *SHAPE, generator=generator, dtype=torch.float64) * ratios[0]
    draws = iter(counters(plan))

    def noise_sampler(sigma, sigma_next):
        # Without noise theirs is asked for and multiplied by 0.
        counter = next(draws) if plan.noisy else 0
        return pyfold.randn(seeds, SHAPE, **stream_and_step(counter), dtype=torch.float64)

    if plan.noisy or options.get("eta") == 0.0:
        options = {**options, "noise_sampler": noise_sampler}
    expected = theirs(their_model, start.clone(), torch.from_numpy(ratios), disable=True, **options)
    assert next(draws, None) is None
    result = ours(plan, start, seeds, schedule)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-10 * expected.abs().max().item())


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_against_k_diffusion(order, generator):
    plan = diffusion.lms(UNIT_ALPHA, spacing=spacings.at_ratios(UNIT_ALPHA, SIGMAS[:-1]), prediction="x0", order=order)
    start = torch.randn(4, *SHAPE, generator=generator, dtype=torch.float64) * SIGMAS[0]
    expected = sampling.sample_lms(their_model, start.clone(), torch.from_numpy(SIGMAS), disable=True, order=order)
    result = ours(plan, start, [1, 2, 3, 4])
    # Theirs integrates numerically, to a relative 1e-4.
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6 * expected.abs().max().item())


@pytest.fixture
def in_float64():
    """Their tables are made in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 7, 12])
def test_dpm_fast_against_k_diffusion(steps, generator, in_float64):
    start = torch.randn(4, *SHAPE, generator=generator, dtype=torch.float64) * 15
    expected = sampling.sample_dpm_fast(their_model, start.clone(), torch.tensor(0.05), torch.tensor(15.0), steps, disable=True)
    plan = diffusion.dpm_fast(UNIT_ALPHA, steps, sigma_min=0.05, sigma_max=15.0, prediction="x0")
    assert len(plan) == steps
    result = ours(plan, start, [1, 2, 3, 4])
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-10 * expected.abs().max().item())


@pytest.mark.parametrize("method", ["euler", "heun", "dpm2"])
@pytest.mark.parametrize("first", [True, False])
def test_churn_against_k_diffusion(method, first, generator, monkeypatch):
    """Their noise comes from torch.randn_like before a step's model, ours at the end of the step before."""
    churn_max = 50.0 if first else 9.5
    options = {"churn": 3.0, "churn_min": 0.2, "churn_max": churn_max, "noise_scale": 1.003}
    plan = diffusion.edm_stochastic(
        UNIT_ALPHA, spacing=spacings.at_ratios(UNIT_ALPHA, SIGMAS[:-1]), prediction="x0", method=method, **options
    )
    assert (plan.start_churn is not None) == first
    seeds = torch.tensor([5, 6, 7, 8])
    start = torch.randn(4, *SHAPE, generator=generator, dtype=torch.float64) * SIGMAS[0]
    order = [plan.draws[-1]] * first + counters(plan)
    gamma = min(3.0 / (len(SIGMAS) - 1), math.sqrt(2) - 1)
    drawn = [n for sigma in SIGMAS[:-1] for n in [order.pop(0) if 0.2 <= sigma <= churn_max else None]]
    assert not order and gamma > 0
    draws = iter(drawn)

    def randn_like(x):
        n = next(draws)
        return torch.zeros_like(x) if n is None else pyfold.randn(seeds, SHAPE, **stream_and_step(n), dtype=torch.float64)

    monkeypatch.setattr(torch, "randn_like", randn_like)
    theirs = {"euler": sampling.sample_euler, "heun": sampling.sample_heun, "dpm2": sampling.sample_dpm_2}[method]
    expected = theirs(
        their_model, start.clone(), torch.from_numpy(SIGMAS), disable=True,
        s_churn=3.0, s_tmin=0.2, s_tmax=churn_max, s_noise=1.003,
    )  # fmt: skip
    result = ours(plan, start, seeds)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-10 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("ours_", "theirs"),
    [
        (partial(spacings.karras, rho=5.0), partial(sampling.get_sigmas_karras, rho=5.0)),
        (spacings.exponential, sampling.get_sigmas_exponential),
        (partial(spacings.polyexponential, rho=1.7), partial(sampling.get_sigmas_polyexponential, rho=1.7)),
    ],
    ids=["karras", "exponential", "polyexponential"],
)
def test_spacings_against_k_diffusion(ours_, theirs, in_float64):
    points = ours_(UNIT_ALPHA, 12, sigma_min=0.05, sigma_max=15.0)
    expected = theirs(12, 0.05, 15.0).numpy()
    np.testing.assert_allclose([p.ratio for p in points], expected, rtol=1e-12)


def test_vp_spacing_against_k_diffusion(in_float64):
    points = spacings.vp_uniform(diffusion.edm(sigma_max=200.0), 12)
    np.testing.assert_allclose([p.ratio for p in points], sampling.get_sigmas_vp(12).numpy(), rtol=1e-12)
