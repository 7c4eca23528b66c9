"""Schedules, predictions, samplers and training loss: against formulas, diffusers, and problems with known answers."""

import math

import numpy as np
import pytest
import torch

import pyfold
from pyfold import _C, diffusion
from pyfold.diffusion.draws import address, stream_and_step
from pyfold.ops import TARGETS

DISCRETE = [diffusion.vp_linear(), diffusion.vp_cosine()]


@pytest.mark.parametrize("schedule", DISCRETE, ids=lambda s: s.name)
def test_variance_preserving(schedule):
    t = np.arange(schedule.steps)
    alpha, sigma = schedule.coefficients(t)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-14)
    assert (np.diff(alpha) < 0).all()
    on_torch = schedule.coefficients(torch.arange(schedule.steps))
    assert np.array_equal(on_torch[0].numpy(), alpha)
    assert np.array_equal(on_torch[1].numpy(), sigma)


def test_schedules_against_diffusers():
    from diffusers import DDPMScheduler

    for schedule, name in zip(DISCRETE, ("linear", "squaredcos_cap_v2"), strict=True):
        reference = DDPMScheduler(beta_schedule=name).alphas_cumprod.double().numpy()
        # The reference is a float32 product of a thousand factors.
        np.testing.assert_allclose(schedule.alphas**2, reference, rtol=2e-4)


def test_flow_shift():
    t = np.linspace(0, 1, 11)
    alpha, sigma = diffusion.flow(3.0).coefficients(t)
    np.testing.assert_allclose(sigma, 3 * t / (1 + 2 * t), rtol=1e-15)
    np.testing.assert_allclose(alpha + sigma, 1, rtol=1e-15)


@pytest.mark.parametrize("wanted", TARGETS)
@pytest.mark.parametrize("prediction", TARGETS)
def test_predictions_convert_in_both_directions(prediction, wanted):
    rng = np.random.default_rng(1)
    x0, eps = rng.normal(size=(2, 100))
    for alpha, sigma in ((0.8, 0.6), (0.3, 0.7), (0.01, 0.9999)):
        x = alpha * x0 + sigma * eps
        m = {"epsilon": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}
        r, s = diffusion.convert(prediction, wanted, alpha, sigma)
        np.testing.assert_allclose(r * x + s * m[prediction], m[wanted], atol=1e-10)
        back = diffusion.convert(wanted, prediction, alpha, sigma)
        np.testing.assert_allclose(back[0] * x + back[1] * m[wanted], m[prediction], atol=1e-10)


def test_epsilon_says_nothing_of_x0_at_pure_noise():
    with pytest.raises(ValueError, match="epsilon does not determine x0"):
        diffusion.convert("epsilon", "x0", 0.0, 1.0)


def network(x, t):
    """A smooth function of both arguments that is no true denoiser."""
    return torch.sin(1.3 * x + 0.7) * 0.6 + 0.2 * x * torch.cos(t.to(x.dtype) / 50)[:, None]


def noise_of(seeds, size, ratio):
    """Of the draw that leads to a level sigma / alpha."""
    return pyfold.randn(seeds, (size,), **stream_and_step(address(ratio))).double().numpy()


def by_formula(name, schedule, steps, prediction, x, seeds, eta=0.0, clip=1.0, variance="fixed_small"):
    """Each sampler's own formula in float64, written from its paper without the conversion table."""
    size = x.shape[1]

    def model(x, t):
        return network(torch.from_numpy(x), torch.full((len(x),), float(t))).numpy()

    if name == "flow_euler":
        times = np.linspace(1, 0, steps + 1)
        sigmas = schedule.shift * times / (1 + (schedule.shift - 1) * times)
        for s, after in zip(sigmas[:-1], sigmas[1:], strict=True):
            m = model(x, np.float32(s))
            velocity = {"flow": m, "x0": (x - m) / s, "v": None}[prediction]
            x = x + (after - s) * velocity
        return x
    bars, stride = schedule.alphas**2, schedule.steps // steps
    for t in np.arange(steps - 1, -1, -1) * stride:
        bar, before = bars[t], bars[t - stride] if t >= stride else 1.0
        m = model(x, t)
        if prediction == "epsilon":
            x0 = (x - math.sqrt(1 - bar) * m) / math.sqrt(bar)
            eps = m
        elif prediction == "x0":
            x0, eps = m, (x - math.sqrt(bar) * m) / math.sqrt(1 - bar)
        else:
            x0 = math.sqrt(bar) * x - math.sqrt(1 - bar) * m
            eps = math.sqrt(bar) * m + math.sqrt(1 - bar) * x
        x0 = x0 if clip is None else np.clip(x0, -clip, clip)
        z = noise_of(seeds, size, math.sqrt((1 - before) / before))
        if name == "ddpm":
            beta = 1 - bar / before
            mean = math.sqrt(before) * beta / (1 - bar) * x0 + math.sqrt(bar / before) * (1 - before) / (1 - bar) * x
            spread = beta * (1 - before) / (1 - bar) if variance == "fixed_small" else beta
            x = mean + (math.sqrt(spread) * z if t > 0 else 0)
        else:
            spread = eta * math.sqrt((1 - before) / (1 - bar)) * math.sqrt(1 - bar / before)
            x = math.sqrt(before) * x0 + math.sqrt(max(1 - before - spread**2, 0)) * eps + spread * z
    return x


CASES = [
    ("ddpm", diffusion.vp_linear(), 50, "epsilon", {}),
    ("ddpm", diffusion.vp_cosine(), 20, "v", {"variance": "fixed_large"}),
    ("ddpm", diffusion.vp_linear(100), 100, "x0", {"clip": None}),
    ("ddim", diffusion.vp_linear(), 50, "epsilon", {}),
    ("ddim", diffusion.vp_cosine(), 10, "v", {"eta": 0.5}),
    ("ddim", diffusion.vp_linear(), 25, "x0", {"eta": 1.0, "clip": 2.0}),
    ("flow_euler", diffusion.flow(), 28, "flow", {}),
    ("flow_euler", diffusion.flow(3.0), 10, "x0", {}),
]


@pytest.mark.parametrize(("name", "schedule", "steps", "prediction", "options"), CASES)
def test_samplers_agree_with_their_formulas(name, schedule, steps, prediction, options, generator):
    plan = diffusion.SAMPLERS[name](schedule, steps, prediction=prediction, **options)
    seeds = torch.tensor([3, 1, 4])
    start = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    expected = by_formula(name, schedule, steps, prediction, start.numpy(), seeds, **options)
    # float64: the op on a float64 state, step by step.
    table, times, counters = plan.on("cpu")
    x = start.clone()
    for i in range(len(plan)):
        m = network(x, times[i].double().expand(3))
        pyfold.affine_step(x, m, table, counters[i : i + 1], seeds=seeds if plan.noisy else None, out=x)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-10 * scale)
    # float32: the sampler as users run it.
    x = diffusion.sample(network, plan, (40,), seeds, x=start.float())
    np.testing.assert_allclose(x.numpy(), expected, atol=2e-5 * scale)


def step_side_by_side(scheduler, plan, prediction, add_noise_in):
    """Both samplers on one model; ours draws its noise, theirs gets the same by injection."""
    seeds = torch.tensor([8, 9])
    x = pyfold.randn(seeds, (3, 8, 8))
    theirs = x.clone()
    table, times, counters = plan.on("cpu")
    for i, t in enumerate(scheduler.timesteps):
        assert float(times[i]) == float(t) or prediction == "flow"
        m = torch.tanh(x * 1.1) * 0.5
        z = plan.draw(i, seeds, (3, 8, 8))
        theirs = add_noise_in(scheduler, m, t, theirs, z)
        pyfold.affine_step(x, m, table, counters[i : i + 1], seeds=seeds if plan.noisy else None, out=x)
        torch.testing.assert_close(x, theirs, rtol=0, atol=2e-4)
        # Go on from the same state: a float32 scheduler's own rounding would only pile up.
        theirs = x.clone()


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_beside_diffusers(prediction, variance, monkeypatch):
    from diffusers import DDPMScheduler
    from diffusers.schedulers import scheduling_ddpm

    kind = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}[prediction]
    scheduler = DDPMScheduler(prediction_type=kind, variance_type=variance)
    scheduler.set_timesteps(20)

    def theirs(scheduler, m, t, x, z):
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: z)
        return scheduler.step(m, t, x).prev_sample

    plan = diffusion.ddpm(diffusion.vp_linear(), 20, prediction=prediction, variance=variance)
    step_side_by_side(scheduler, plan, prediction, theirs)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_beside_diffusers(eta):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler()
    scheduler.set_timesteps(25)

    def theirs(scheduler, m, t, x, z):
        return scheduler.step(m, t, x, eta=eta, variance_noise=z if eta else None).prev_sample

    step_side_by_side(scheduler, diffusion.ddim(diffusion.vp_linear(), 25, eta=eta), "epsilon", theirs)


def test_flow_euler_beside_diffusers():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, 16)[:-1])

    def theirs(scheduler, m, t, x, z):
        return scheduler.step(m, t, x).prev_sample

    step_side_by_side(scheduler, diffusion.flow_euler(diffusion.flow(), 15), "flow", theirs)


def gaussian_denoiser(schedule, mean, variance, prediction):
    """The exact prediction for data N(mean, variance)."""

    def model(x, t):
        alpha, sigma = (float(c) for c in schedule.coefficients(t[0].double().numpy()))
        x0 = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)
        return {"x0": x0, "flow": (x - x0) / sigma if sigma else x0}[prediction]

    return model


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_stochastic_samplers_reproduce_gaussian_data(name):
    """The exact variance after 200 steps by the recursion of the linear map, and the samples' within 5 standard errors."""
    schedule, mean, variance, n = diffusion.vp_linear(200), 0.3, 0.5, 100_000
    options = {"eta": 1.0} if name == "ddim" else {}
    plan = diffusion.SAMPLERS[name](schedule, 200, prediction="x0", clip=None, **options)
    spread = 1.0
    for time, row in zip(plan.times, plan.rows, strict=True):
        alpha, sigma = (float(c) for c in schedule.coefficients(time))
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        u = row.get("r", 0) + row.get("s", 0) * gain
        slope = row.get("a", 0) + row["c_x0"] * gain + row.get("c_u", 0) * u
        spread = slope**2 * spread + row["d1"] ** 2
    assert abs(spread - variance) < 0.02 * variance
    x = diffusion.sample(gaussian_denoiser(schedule, mean, variance, "x0"), plan, (n,), [5]).double()
    assert abs(x.var().item() - spread) < 5 * spread * math.sqrt(2 / n)
    # The start is not shrunk to the data's mean exactly, but nearly so.
    assert abs(x.mean().item() - mean) < 5 * math.sqrt(spread / n) + 0.02


def test_flow_euler_converges_with_order_one():
    schedule, mean, variance = diffusion.flow(), 0.3, 0.25
    model = gaussian_denoiser(schedule, mean, variance, "flow")
    start = torch.linspace(-2, 2, 9, dtype=torch.float64)[None]
    exact = mean + math.sqrt(variance) * start
    errors = []
    for steps in (50, 100, 200, 400):
        table, times, counters = diffusion.flow_euler(schedule, steps).on("cpu")
        x = start.clone()
        for i in range(steps):
            pyfold.affine_step(x, model(x, times[i : i + 1]), table, counters[i : i + 1], out=x)
        errors.append((x - exact).abs().max().item())
    orders = [math.log2(a / b) for a, b in zip(errors[:-1], errors[1:], strict=True)]
    assert all(0.9 < order < 1.1 for order in orders), orders


def test_guidance_is_two_coefficients(generator):
    plan = diffusion.ddim(diffusion.vp_linear(), 10)
    x = torch.randn(2, 30, generator=generator)

    def pair(x, t):
        return torch.tanh(x), torch.sin(x)

    def mixed(x, t):
        return 3.0 * torch.tanh(x) - 2.0 * torch.sin(x)

    together = diffusion.sample(pair, diffusion.guided(plan, 3.0), (30,), [1, 2], x=x)
    torch.testing.assert_close(together, diffusion.sample(mixed, plan, (30,), [1, 2], x=x), rtol=0, atol=1e-4)


def test_bits_after_twenty_steps():
    """An elementwise denoiser: state bits for every batch split, thread count and instruction set."""
    plan = diffusion.ddpm(diffusion.vp_linear(), 20)
    seeds = torch.arange(4)

    def model(x, t):
        return x * 0.5

    def run(seeds):
        return diffusion.sample(model, plan, (3, 40, 30), seeds)

    expected = run(seeds)
    before, threads = _C.cpu_tier(), torch.get_num_threads()
    try:
        for tier in _C.cpu_tiers_supported():
            _C.set_cpu_tier(tier)
            for count in (1, 2):
                torch.set_num_threads(count)
                assert torch.equal(run(seeds), expected), (tier, count)
                assert torch.equal(torch.cat([run(seeds[:1]), run(seeds[1:])]), expected), (tier, count)
                assert torch.equal(run(seeds.flip(0)), expected.flip(0)), (tier, count)
    finally:
        _C.set_cpu_tier(before)
        torch.set_num_threads(threads)


def test_history_is_a_ring(generator):
    """A two-step method, as data: Adams-Bashforth on dx/ds = -x, whose order is two."""
    errors = []
    for steps in (40, 80):
        h = 1 / steps
        rows = [{"a": 1.0, "s": 1.0, "c_u": 1.5 * h, "b1": -0.5 * h}] * steps
        # The first step has no past: one of Heun's, folded into the coefficient.
        rows[0] = {"a": 1.0, "s": 1.0, "c_u": h - h * h / 2}
        plan = diffusion.Plan("adams_bashforth", np.zeros(steps), tuple(rows), history=1)
        x = diffusion.sample(lambda x, t: -x, plan, (1,), [0], x=torch.ones(1, 1))
        errors.append(abs(x.item() - math.exp(-1)))
    assert 3.3 < errors[0] / errors[1] < 4.7, errors


def test_low_precision_model_keeps_a_float32_state():
    plan = diffusion.flow_euler(diffusion.flow(), 50)
    seen = []

    def model(x, t):
        seen.append(x.dtype)
        return -x

    x = diffusion.sample(model, plan, (200,), [1, 2], dtype=torch.bfloat16)
    exact = diffusion.sample(lambda x, t: -x, plan, (200,), [1, 2])
    assert x.dtype == torch.float32
    assert set(seen) == {torch.bfloat16}
    assert (x - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [(diffusion.vp_cosine(), "v"), (diffusion.vp_linear(), "epsilon"), (diffusion.flow(2.0), "flow")],
)
def test_training_loss(schedule, prediction, generator):
    loss = diffusion.TrainingLoss(schedule, prediction)
    x0 = torch.randn(64, 3, 4, generator=generator)
    seeds = torch.arange(64)
    noised = loss.noise(x0, seeds)
    eps = pyfold.randn(seeds, (3, 4), stream=2).double()
    alpha, sigma = (c.view(-1, 1, 1) for c in (noised.alpha, noised.sigma))
    torch.testing.assert_close(noised.x_t.double(), alpha * x0 + sigma * eps, rtol=0, atol=1e-6)
    target = {"v": alpha * eps - sigma * x0, "epsilon": eps, "flow": eps - x0}[prediction]
    assert loss(target.float(), noised).max() < 1e-10
    prediction = torch.randn_like(x0)
    torch.testing.assert_close(loss(prediction, noised).double(), ((prediction - target) ** 2).mean((1, 2)), rtol=1e-5, atol=0)
    half = loss.noise(x0[32:], seeds[32:])
    assert torch.equal(half.x_t, noised.x_t[32:])
    assert torch.equal(half.t, noised.t[32:])


def test_training_times_are_uniform():
    from scipy.stats import kstest

    seeds = torch.arange(20_000)
    t = diffusion.TrainingLoss(diffusion.flow(), "flow").times(seeds)
    assert kstest(t.numpy(), "uniform").pvalue > 1e-3
    discrete = diffusion.TrainingLoss(diffusion.vp_linear(), "epsilon").times(seeds)
    assert discrete.min() >= 0
    assert discrete.max() <= 999
    assert torch.equal(discrete, discrete.floor())


def test_min_snr_weight():
    schedule = diffusion.vp_linear()
    loss, simple = diffusion.TrainingLoss(schedule, "epsilon", "min_snr"), diffusion.TrainingLoss(schedule, "epsilon")
    x0, seeds = torch.zeros(50, 4), torch.arange(50)
    noised = loss.noise(x0, seeds)
    prediction = torch.ones(50, 4)
    snr = (noised.alpha / noised.sigma) ** 2
    ratio = loss(prediction, noised) / simple(prediction, noised)
    torch.testing.assert_close(ratio.double(), torch.minimum(snr, torch.tensor(5.0)) / snr, rtol=1e-5, atol=0)
