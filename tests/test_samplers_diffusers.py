"""Samplers beside diffusers' schedulers, in float64 where theirs allow it, with the same noise put into both."""

import math
from functools import partial

import diffusers
import numpy as np
import pytest
import torch

import pyfold
from pyfold import diffusion
from pyfold.diffusion import spacings
from pyfold.diffusion.draws import stream_and_step

SCHEDULE = diffusion.vp_scaled_linear()
SHAPE = (3, 5)
SEEDS = torch.tensor([5, 6, 7, 8])
CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def noise(counter):
    return pyfold.randn(SEEDS, SHAPE, **stream_and_step(counter), dtype=torch.float64)


def network(x, i):
    """A smooth function of the state and the step that is no true denoiser."""
    return 0.8 * torch.sin(x + 0.1 * i) + 0.3 * torch.cos(x * 1.7)


def points_of(scheduler, schedule=SCHEDULE):
    """The scheduler's own points, from its noise levels."""
    ratios = scheduler.sigmas.double().numpy()
    if ratios[-1] == 0:
        return spacings.at_ratios(schedule, ratios[:-1])
    return [schedule.at_ratio(r) for r in ratios]


def run_theirs(scheduler, x, monkeypatch, draws=None):
    """Their loop; the noise they ask for is the next of ours. Tables in float64 spare them their rounding."""
    draws = iter(draws or [])
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.double()
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    if hasattr(module, "randn_tensor"):

        def randn_tensor(shape, **_):
            step = next(draws, None)
            return torch.zeros(shape, dtype=torch.float64) if step is None else noise(step)

        monkeypatch.setattr(module, "randn_tensor", randn_tensor)
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(network(x, i), t, x, return_dict=False)[0]
    assert next(draws, None) is None
    return x


def run_ours(plan, x):
    calls = iter(range(len(plan)))
    return diffusion.sample(lambda x, t: network(x, next(calls)), plan, SHAPE, SEEDS, x=x, dtype=torch.float64)


def counters(plan):
    return [int(row["n1"]) for row in plan.rows if row.get("d1")]


def compare(plan, scheduler, monkeypatch, generator, rounding=1e-9):
    x = torch.randn(4, *SHAPE, generator=generator, dtype=torch.float64)
    expected = run_theirs(scheduler, x, monkeypatch, counters(plan))
    result = run_ours(plan, x)
    torch.testing.assert_close(result, expected.double(), rtol=0, atol=rounding * expected.abs().max().item())


#: Their step makes the state float32.
FLOAT32_STATE = 3e-6

MULTISTEP = [
    ("dpmsolver++", order, solver, partial(diffusion.dpmpp_multistep, order=order, solver=solver))
    for order in (1, 2, 3)
    for solver in ("midpoint", "heun")
]
MULTISTEP += [
    ("dpmsolver", order, solver, partial(diffusion.dpm_multistep, order=order, solver=solver))
    for order in (1, 2, 3)
    for solver in ("midpoint", "heun")
]
MULTISTEP += [
    ("sde-dpmsolver++", order, solver, partial(diffusion.dpmpp_multistep, order=order, solver=solver, eta=1.0))
    # Order 3 of theirs subtracts half of the second difference where the exact integral adds it; k-diffusion's is the oracle.
    for order, solver in ((1, "midpoint"), (2, "midpoint"), (2, "heun"))
]
MULTISTEP += [
    ("sde-dpmsolver", order, "midpoint", partial(diffusion.dpm_multistep, order=order, stochastic=True)) for order in (1, 2)
]


@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize(
    ("algorithm", "order", "solver", "sampler"), MULTISTEP, ids=[f"{a}-{o}-{s}" for a, o, s, _ in MULTISTEP]
)
def test_dpm_multistep(algorithm, order, solver, sampler, steps, monkeypatch, generator):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **CONFIG,
        algorithm_type=algorithm,
        solver_order=order,
        solver_type=solver,
        final_sigmas_type="zero" if "++" in algorithm else "sigma_min",
    )
    scheduler.set_timesteps(steps)
    # Theirs lowers the order at the end below 15 steps; a step to zero noise is of order 1 at any number.
    final = 1 if steps < 15 else None
    plan = sampler(SCHEDULE, spacing=points_of(scheduler), final_order=final)
    compare(plan, scheduler, monkeypatch, generator, FLOAT32_STATE)


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("interpolated", ["x0", "epsilon"])
def test_unipc(order, variant, steps, interpolated, monkeypatch, generator):
    # Theirs is NaN at zero noise in variant bh1, and on epsilon.
    final = "zero" if variant == "bh2" and interpolated == "x0" else "sigma_min"
    scheduler = diffusers.UniPCMultistepScheduler(
        **CONFIG, solver_order=order, solver_type=variant, final_sigmas_type=final, predict_x0=interpolated == "x0"
    )
    scheduler.set_timesteps(steps)
    plan = diffusion.unipc(SCHEDULE, spacing=points_of(scheduler), order=order, variant=variant, interpolated=interpolated)
    # Their coefficients are partly float32 tensors.
    compare(plan, scheduler, monkeypatch, generator, 1e-6)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order, monkeypatch, generator):
    scheduler = diffusers.DEISMultistepScheduler(**CONFIG, solver_order=order)
    scheduler.set_timesteps(20)
    plan = diffusion.deis(SCHEDULE, spacing=points_of(scheduler), order=order)
    compare(plan, scheduler, monkeypatch, generator, 1e-6)


@pytest.mark.parametrize(("predictor", "corrector"), [(1, 1), (2, 2), (3, 3), (3, 4), (2, 1)])
@pytest.mark.parametrize("interpolated", ["x0", "epsilon"])
def test_sa_solver(predictor, corrector, interpolated, monkeypatch, generator):
    scheduler = diffusers.SASolverScheduler(
        **CONFIG, predictor_order=predictor, corrector_order=corrector, tau_func=lambda t: 0.8 if 200 <= t <= 800 else 0.0,
        algorithm_type="data_prediction" if interpolated == "x0" else "noise_prediction",
    )  # fmt: skip
    scheduler.set_timesteps(20)
    if interpolated == "epsilon":
        # Theirs has no step to zero noise here: what is compared ends one step earlier.
        scheduler.timesteps, scheduler.sigmas = scheduler.timesteps[:-1], scheduler.sigmas[:-1]
    times = {float(s): float(t) for s, t in zip(scheduler.sigmas[:-1].double(), scheduler.timesteps, strict=True)}

    def tau(point):
        nearest = min(times, key=lambda s: abs(s - point.ratio))
        return 0.8 if 200 <= times[nearest] <= 800 else 0.0

    plan = diffusion.sa_solver(
        SCHEDULE, spacing=points_of(scheduler), predictor_order=predictor, corrector_order=corrector, tau=tau,
        interpolated=interpolated, adjusted=True,
    )  # fmt: skip
    x = torch.randn(4, *SHAPE, generator=generator, dtype=torch.float64)
    # They draw at every step.
    expected = run_theirs(scheduler, x, monkeypatch, plan.draws[:-1])
    torch.testing.assert_close(run_ours(plan, x), expected, rtol=0, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("start", ["heun", "runge_kutta"])
def test_pndm(start, monkeypatch, generator):
    scheduler = diffusers.PNDMScheduler(**CONFIG, skip_prk_steps=start == "heun", set_alpha_to_one=True)
    scheduler.set_timesteps(20)
    scheduler.alphas_cumprod = torch.from_numpy(SCHEDULE.alphas**2)
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    plan = diffusion.plms(SCHEDULE, 20, start=start)
    assert [int(t) for t in plan.times] == scheduler.timesteps.tolist()
    compare(plan, scheduler, monkeypatch, generator)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("kind", ["lcm", "tcd"])
def test_consistency_models(kind, prediction, monkeypatch, generator):
    cls = {"lcm": diffusers.LCMScheduler, "tcd": diffusers.TCDScheduler}[kind]
    scheduler = cls(**CONFIG, prediction_type={"epsilon": "epsilon", "v": "v_prediction"}[prediction], clip_sample=False)
    scheduler.set_timesteps(4)
    scheduler.alphas_cumprod = torch.from_numpy(SCHEDULE.alphas**2)
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    # TCD ends at time 0, LCM without noise.
    points = spacings.at_times(SCHEDULE, scheduler.timesteps.numpy(), "zero" if kind == "lcm" else "sigma_min")
    plan = diffusion.SAMPLERS[kind](SCHEDULE, prediction=prediction, spacing=points)
    # LCM's boundary coefficients are float32 tensors.
    compare(plan, scheduler, monkeypatch, generator, 1e-7)


def test_flow_heun(monkeypatch, generator):
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    sigmas = scheduler.sigmas.double().numpy()
    schedule = diffusion.flow()
    # Each level stands there twice but the first and the last.
    levels = [sigmas[0], *sigmas[1:-1:2]]
    plan = diffusion.flow_heun(schedule, spacing=spacings.at_sigmas(schedule, levels))
    assert len(plan) == len(scheduler.timesteps)
    compare(plan, scheduler, monkeypatch, generator, FLOAT32_STATE)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_shift_and_terminal(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, shift_terminal=0.1)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, 9)[:-1])
    points = spacings.stretch(spacings.trailing(diffusion.flow(shift), 8), 0.1)
    np.testing.assert_allclose([p.sigma for p in points], scheduler.sigmas.numpy(), rtol=1e-6, atol=1e-7)


def test_dynamic_shift():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    length = 1024
    mu = 0.5 + (1.15 - 0.5) * (length - 256) / (4096 - 256)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, 9)[:-1], mu=mu)
    points = spacings.trailing(diffusion.flow_for_length(length), 8)
    np.testing.assert_allclose([p.sigma for p in points], scheduler.sigmas.numpy(), rtol=1e-6, atol=1e-7)


SPACING_NAMES = {
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}


@pytest.mark.parametrize("name", SPACING_NAMES)
def test_sigma_spacings(name):
    scheduler = diffusers.EulerDiscreteScheduler(**CONFIG, timestep_spacing="linspace", **SPACING_NAMES[name])
    scheduler.set_timesteps(15)
    points = diffusion.SPACINGS[name](SCHEDULE, 15)
    # Their table is a float32 product of a thousand factors.
    np.testing.assert_allclose([p.ratio for p in points], scheduler.sigmas.numpy(), rtol=2e-4)


@pytest.mark.parametrize("name", ["leading", "linspace", "trailing"])
def test_time_spacings(name):
    scheduler = diffusers.DDIMScheduler(**CONFIG, timestep_spacing=name)
    scheduler.set_timesteps(15)
    points = diffusion.SPACINGS[name](SCHEDULE, 15)
    times = [round(p.t) if name == "linspace" else p.t for p in points[:-1]]
    assert times == scheduler.timesteps.tolist()


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        (diffusion.vp_linear(), "linear"),
        (diffusion.vp_scaled_linear(1000, 1e-4, 0.02), "scaled_linear"),
        (diffusion.vp_cosine(), "squaredcos_cap_v2"),
        (diffusion.vp_sigmoid(), "sigmoid"),
        (diffusion.vp_laplace(), "laplace"),
    ],
)
def test_schedules(schedule, name):
    reference = diffusers.DDPMScheduler(beta_schedule=name)
    betas = 1 - np.append(schedule.alphas[0], schedule.alphas[1:] / schedule.alphas[:-1]) ** 2
    np.testing.assert_allclose(betas, reference.betas.double().numpy(), rtol=2e-3, atol=2e-7)
    np.testing.assert_allclose(schedule.alphas**2, reference.alphas_cumprod.double().numpy(), rtol=2e-4, atol=1e-9)


def test_zero_terminal_snr():
    reference = diffusers.DDPMScheduler(**CONFIG, rescale_betas_zero_snr=True)
    schedule = diffusion.zero_terminal_snr(SCHEDULE)
    assert schedule.alphas[-1] == 0
    np.testing.assert_allclose(schedule.alphas**2, reference.alphas_cumprod.double().numpy(), rtol=1e-3, atol=1e-7)
    plan = diffusion.euler(schedule, 10, prediction="v")
    assert all(math.isfinite(v) for row in plan.rows for k, v in row.items() if "clip" not in k)
