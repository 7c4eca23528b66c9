"""The training loss: targets, weightings, densities and the extras, against their formulas and other packages."""

import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch

import pyfold
from pyfold import diffusion
from pyfold.diffusion import DENSITIES, PREDICTIONS, WEIGHTINGS, TrainingLoss
from pyfold.diffusion.densities import normal_quantile

SEEDS = torch.arange(64)
SCHEDULES = {
    "vp": diffusion.vp_linear(),
    "flow": diffusion.flow(2.0),
    "edm": diffusion.edm(),
    "trigflow": diffusion.trigflow(t_min=0.01),
    "sde": diffusion.vp(),
}


def column(value):
    return value.reshape(-1, 1, 1)


@pytest.fixture
def x0(generator):
    return torch.randn(64, 3, 4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_target(name, prediction, x0):
    """The loss is the squared distance to the target, and 0 at it; the model's input is scaled and so is its time."""
    schedule = SCHEDULES[name]
    loss = TrainingLoss(schedule, prediction)
    noised = loss.noise(x0, SEEDS)
    eps = pyfold.randn(SEEDS, (3, 4), stream=2, dtype=torch.float64)
    alpha, sigma = column(noised.alpha), column(noised.sigma)
    x = alpha * x0 + sigma * eps
    r, s = diffusion.convert("x0", prediction, alpha, sigma, schedule.data_std)
    target = r * x + s * x0
    scale = (target**2).mean((1, 2))
    assert (loss(target, noised) < 1e-20 * scale).all()
    shifted = target + column(torch.arange(64.0, dtype=torch.float64) / 10)
    torch.testing.assert_close(loss(shifted, noised), (torch.arange(64.0, dtype=torch.float64) / 10) ** 2, rtol=1e-7, atol=1e-9)
    c_in = 1 / (alpha**2 * schedule.data_std**2 + sigma**2).sqrt() if name == "edm" else 1.0
    torch.testing.assert_close(noised.x_t, c_in * x, rtol=1e-12, atol=1e-12)
    expected = {"edm": noised.sigma.log() / 4, "flow": noised.sigma}.get(name, noised.time)
    torch.testing.assert_close(noised.t, expected.float(), rtol=0, atol=0)
    torch.testing.assert_close(loss.x0(target, noised), x0, rtol=0, atol=1e-7)


def expected_weight(weighting, prediction, schedule, t, alpha, sigma):
    """Of the squared error of the prediction, as the papers print them for VP."""
    snr = (alpha / sigma) ** 2
    of_epsilon = {
        "min_snr": np.minimum(snr, 5) / snr,
        "snr": np.ones_like(snr),
        "p2": 1 / (1 + snr),
        "soft_min_snr": 1 / (snr * (1 / snr + 1)),
        "edm": 1 + 1 / snr,
    }[weighting]
    return of_epsilon * {"epsilon": 1.0, "x0": snr, "v": snr / (snr + 1)}[prediction]


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("weighting", ["min_snr", "snr", "p2", "soft_min_snr", "edm"])
def test_weightings_of_every_prediction(weighting, prediction, x0):
    schedule = SCHEDULES["vp"]
    loss, simple = TrainingLoss(schedule, prediction, weighting), TrainingLoss(schedule, prediction)
    noised = loss.noise(x0, SEEDS)
    m = torch.ones_like(x0)
    ratio = (loss(m, noised) / simple(m, noised)).numpy()
    arguments = (c.numpy() for c in (noised.time, noised.alpha, noised.sigma))
    np.testing.assert_allclose(ratio, expected_weight(weighting, prediction, schedule, *arguments), rtol=1e-9)


def limits_at_no_signal(before):
    """Of each weight of x0, epsilon and v where alpha is 0 and sigma 1, with alpha ``before`` the last step."""
    inf = math.inf
    return {
        "simple": (1, 1, 1), "snr": (0, 1, 0), "min_snr": (0, 1, 0), "soft_min_snr": (0, 1, 0), "edm": (1, inf, 1),
        "p2": (0, 1, 0), "vlb": (before**2 / 2, inf, before**2 / 2), "sigma_sqrt": (1, inf, 1),
        "cosmap": (2 / math.pi, inf, 2 / math.pi),
    }  # fmt: skip


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_and_losses_without_signal_are_limits(weighting, dtype):
    """Zero terminal SNR makes ratios of 0 and 0; training goes on where the limit is finite."""
    schedule = diffusion.zero_terminal_snr(diffusion.vp_linear())
    t = torch.full((4,), 999, dtype=torch.float64)
    alpha, sigma = schedule.coefficients(t)
    assert not alpha.any() and (sigma == 1).all()
    limits = limits_at_no_signal(schedule.at(998).alpha)[weighting]
    for prediction, limit in zip(("x0", "epsilon", "v"), limits, strict=True):
        weight = diffusion.weightings.weight_of_prediction(weighting, prediction, schedule, t.to(dtype))
        torch.testing.assert_close(weight, torch.full_like(alpha, limit), rtol=1e-12, atol=1e-60)
        loss = TrainingLoss(schedule, prediction, weighting)
        x0 = torch.ones(4, 3, dtype=dtype)
        noised = loss.noise(x0, SEEDS[:4], t)
        if math.isfinite(limit):
            assert loss(torch.zeros_like(x0), noised).isfinite().all()
        else:
            with pytest.raises(ValueError, match="weight must be finite"):
                loss(torch.zeros_like(x0), noised)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", [diffusion.flow(), diffusion.trigflow()], ids=["flow", "trigflow"])
def test_weights_at_both_ends_are_those_beside_them(schedule, prediction, weighting):
    """As a power of the distance from the end that is the same all along, or the limit of the log slope."""
    whole = schedule.t_max - schedule.t_min
    near = whole * torch.tensor([1e-6, 1e-9], dtype=torch.float64)
    for end, inwards in ((schedule.t_min, 1), (schedule.t_max, -1)):
        t = torch.cat([torch.tensor([float(end)], dtype=torch.float64), end + inwards * near])
        at_end, *beside = diffusion.weightings.weight_of_prediction(weighting, prediction, schedule, t).tolist()
        power = round(math.log(beside[0] / beside[1]) / math.log(1e3))
        if power:
            assert at_end == math.inf if power < 0 else at_end < 1e-30
        else:
            assert at_end == pytest.approx(beside[1], rel=1e-6)


def test_min_snr_of_lucidrains_for_v():
    """eps: min(snr, g) / snr, x0: min(snr, g), v: min(snr, g) / (snr + 1)."""
    schedule, t = SCHEDULES["vp"], torch.arange(1000)
    alpha, sigma = schedule.coefficients(t)
    snr = (alpha / sigma) ** 2
    from pyfold.diffusion.weightings import weight_of_prediction

    three = partial(WEIGHTINGS["min_snr"], gamma=3.0)
    for prediction, divisor in (("epsilon", snr), ("x0", torch.ones_like(snr)), ("v", snr + 1)):
        weight = weight_of_prediction(three, prediction, schedule, t)
        torch.testing.assert_close(weight, snr.clamp(max=3) / divisor, rtol=1e-9, atol=0)


def test_p2_by_its_two_numbers():
    """Choi et al. 2022, eq. 8: 1 / (k + snr)^gamma on epsilon's error."""
    from pyfold.diffusion.weightings import weight_of_prediction

    schedule, t = SCHEDULES["vp"], torch.arange(1000)
    alpha, sigma = schedule.coefficients(t)
    weight = weight_of_prediction(partial(WEIGHTINGS["p2"], gamma=0.5, k=3.0), "epsilon", schedule, t)
    torch.testing.assert_close(weight, (3 + (alpha / sigma) ** 2).rsqrt(), rtol=1e-9, atol=0)


def test_sd3_weightings_against_diffusers():
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    from pyfold.diffusion.weightings import weight_of_prediction

    schedule, t = diffusion.flow(), torch.linspace(0.05, 1, 20, dtype=torch.float64)
    for name in ("sigma_sqrt", "cosmap"):
        expected = compute_loss_weighting_for_sd3(name, sigmas=t).double()
        weight = weight_of_prediction(name, "flow", schedule, t)
        torch.testing.assert_close(weight, expected, rtol=1e-6 if name == "sigma_sqrt" else 1e-12, atol=0)


def test_edm_weight_is_one_for_f():
    from pyfold.diffusion.weightings import weight_of_prediction

    schedule = diffusion.edm()
    t = torch.tensor([0.01, 0.5, 3.0, 70.0], dtype=torch.float64)
    torch.testing.assert_close(weight_of_prediction("edm", "F", schedule, t), torch.ones_like(t), rtol=1e-12, atol=0)
    # Karras et al. 2022, table 1: (sigma^2 + data_std^2) / (sigma data_std)^2 on x0.
    torch.testing.assert_close(
        weight_of_prediction("edm", "x0", schedule, t), (t**2 + 0.25) / (t * 0.5) ** 2, rtol=1e-12, atol=0
    )


def test_vlb_weights_add_up():
    """Discrete, against Ho et al. 2020, eq. 12; continuous, the integral of -d snr / dt / 2 is half the drop of the SNR."""
    from pyfold.diffusion.weightings import weight_of_prediction

    schedule = SCHEDULES["vp"]
    t = torch.arange(1000)
    betas = np.linspace(1e-4, 0.02, 1000)
    bars = np.cumprod(1 - betas)
    expected = betas / (2 * (1 - betas) * (1 - bars))
    weight = weight_of_prediction("vlb", "epsilon", schedule, t).numpy()
    np.testing.assert_allclose(weight, expected, rtol=1e-8)
    continuous = diffusion.vp()
    t = torch.linspace(0.1, 0.9, 20001, dtype=torch.float64)
    weight = weight_of_prediction("vlb", "x0", continuous, t)
    snr = lambda p: (p.alpha / p.sigma) ** 2  # noqa: E731
    drop = (snr(continuous.at(0.1)) - snr(continuous.at(0.9))) / 2
    assert torch.trapezoid(weight, t).item() == pytest.approx(drop, rel=1e-6)


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_against_their_distributions(name):
    from scipy import stats

    seeds = torch.arange(20_000)
    schedule = diffusion.edm() if name in ("lognormal", "cosine_interpolated") else diffusion.flow()
    t = TrainingLoss(schedule, "x0", density=name).times(seeds).numpy()
    assert schedule.t_min <= t.min() and t.max() <= schedule.t_max
    if name == "uniform":
        cdf = stats.uniform.cdf
    elif name == "lognormal":
        cdf = stats.lognorm(1.2, scale=math.exp(-1.2)).cdf
    elif name == "logit_normal":
        cdf = lambda t: stats.norm.cdf(np.log(t / (1 - t)))  # noqa: E731
    elif name == "mode":
        u = np.linspace(0, 1, 100_001)
        values = 1 - u - 1.29 * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)
        cdf = lambda t: 1 - np.interp(t, values[::-1], u[::-1])  # noqa: E731
    else:
        # k-diffusion's rand_cosine_interpolated written out, by its quantiles.
        u = np.linspace(0, 1, 100_001)
        log_snr = 0.0
        for size, part in ((32.0, 1 - u), (64.0, u)):
            shift = 2 * math.log(size / 64.0)
            a, b = (math.atan(math.exp(-0.5 * (end - shift))) for end in (2 * math.log(1e3), -2 * math.log(1e3)))
            log_snr = log_snr + part * (-2 * np.log(np.tan(b + u * (a - b))) + shift)
        values = np.exp(-log_snr / 2)
        cdf = lambda t: 1 - np.interp(t, values[::-1], u[::-1])  # noqa: E731
        inside = (t > schedule.t_min) & (t < schedule.t_max)
        # The schedule ends where the density does not: what is beyond lies on its ends.
        assert inside.mean() > 0.9
        low, high = cdf(np.array([schedule.t_min, schedule.t_max]))
        assert stats.kstest((cdf(t[inside]) - low) / (high - low), "uniform").pvalue > 1e-3
        return
    assert stats.kstest(t, cdf).pvalue > 1e-3


def test_the_normal_quantile_in_its_three_parts():
    scipy = pytest.importorskip("scipy.special")
    u = torch.cat([torch.linspace(0.001, 0.999, 2001).double(), torch.logspace(-300, -2, 2001, dtype=torch.float64)])
    u = torch.cat([u, 1 - torch.logspace(-14, -2, 500, dtype=torch.float64)])
    u = u[(u - 0.5).abs() > 1e-3]
    np.testing.assert_allclose(normal_quantile(u).numpy(), scipy.ndtri(u.numpy()), rtol=1e-14, atol=0)


def test_the_default_density_is_the_schedule_s():
    """As each was published: edm log-normal (Karras et al. 2022, table 1), the others uniform."""
    seeds = torch.arange(20_000)
    loss = TrainingLoss(diffusion.edm(), "F", "edm")
    t = loss.times(seeds).log()
    assert torch.equal(loss.times(seeds), TrainingLoss(diffusion.edm(), density="lognormal").times(seeds))
    assert t.mean().item() == pytest.approx(-1.2, abs=4 * 1.2 / 20_000**0.5) and t.std().item() == pytest.approx(1.2, abs=0.03)
    for schedule in SCHEDULES.values():
        wanted = "lognormal" if schedule.name == "edm" else "uniform"
        times = TrainingLoss(schedule).times(seeds[:50])
        assert torch.equal(times, TrainingLoss(schedule, density=wanted).times(seeds[:50])), schedule.name
    moved = dataclasses.replace(diffusion.vp_linear(), training_density="cosine_interpolated")
    assert TrainingLoss(moved).density == "cosine_interpolated"
    with pytest.raises(ValueError, match="density"):
        TrainingLoss(dataclasses.replace(moved, training_density="all"))


def test_discrete_times_by_density():
    seeds = torch.arange(5000)
    schedule = SCHEDULES["vp"]
    for name in DENSITIES:
        t = TrainingLoss(schedule, density=name).times(seeds)
        assert torch.equal(t, t.round()) and t.min() >= 0 and t.max() <= 999
        assert t.unique().numel() > 300


def test_stratified_times():
    """One in each part of the density, over two processes as over one, and the same for the same seeds."""
    loss = TrainingLoss(diffusion.flow(), "flow")
    t = loss.times(SEEDS, strata=(0, 64))
    assert torch.equal((t * 64).floor(), torch.arange(64.0, dtype=torch.float64))
    halves = [loss.times(SEEDS[:32], strata=(0, 64)), loss.times(SEEDS[32:], strata=(32, 64))]
    assert torch.equal(torch.cat(halves), t)
    with pytest.raises(ValueError, match="strata"):
        loss.times(SEEDS, strata=(1, 64))


def test_times_do_not_depend_on_the_noise():
    """Another stream: the time of a sample says nothing about its noise."""
    seeds = torch.arange(20_000)
    t = TrainingLoss(diffusion.flow()).times(seeds)
    eps = pyfold.randn(seeds, (), stream=2, dtype=torch.float64)
    assert abs(torch.corrcoef(torch.stack([t, eps]))[0, 1].item()) < 5 / math.sqrt(20_000)


def test_offset_noise(x0):
    loss = TrainingLoss(SCHEDULES["vp"], "v", offset_noise=0.3)
    noised = loss.noise(x0, SEEDS)
    offset = 0.3 * pyfold.randn(SEEDS, (3, 1), stream=2, step=1, dtype=torch.float64)
    eps = pyfold.randn(SEEDS, (3, 4), stream=2, dtype=torch.float64) + offset
    alpha, sigma = column(noised.alpha), column(noised.sigma)
    torch.testing.assert_close(noised.x_t, alpha * x0 + sigma * eps, rtol=0, atol=1e-12)
    target = alpha * eps - sigma * x0
    assert loss(target, noised).max() < 1e-20
    m = torch.zeros_like(x0)
    torch.testing.assert_close(loss(m, noised), (target**2).mean((1, 2)), rtol=1e-10, atol=0)


def test_changes_of_the_noise_where_the_models_input_is_scaled(x0):
    """What is seen is ``c_in (x0 + sigma (eps + offset + perturbation))``, and the target knows nothing of the last."""
    schedule = diffusion.edm()
    loss = TrainingLoss(schedule, "x0", offset_noise=0.3, input_perturbation=0.1)
    noised = loss.noise(x0, SEEDS)
    offset = 0.3 * pyfold.randn(SEEDS, (3, 1), stream=2, step=1, dtype=torch.float64)
    eps, more = (pyfold.randn(SEEDS, (3, 4), stream=2, step=step, dtype=torch.float64) for step in (0, 2))
    sigma = column(noised.sigma)
    scale = 1 / (sigma**2 + schedule.data_std**2).sqrt()
    assert (scale - 1).abs().min() > 0.01
    expected = scale * (x0 + sigma * (eps + offset + 0.1 * more))
    torch.testing.assert_close(noised.x_t, expected, rtol=0, atol=1e-12)


def test_input_perturbation(x0):
    loss = TrainingLoss(SCHEDULES["vp"], "epsilon", input_perturbation=0.1)
    noised = loss.noise(x0, SEEDS)
    eps = pyfold.randn(SEEDS, (3, 4), stream=2, dtype=torch.float64)
    more = pyfold.randn(SEEDS, (3, 4), stream=2, step=2, dtype=torch.float64)
    alpha, sigma = column(noised.alpha), column(noised.sigma)
    torch.testing.assert_close(noised.x_t, alpha * x0 + sigma * (eps + 0.1 * more), rtol=0, atol=1e-12)
    assert loss(eps, noised).max() < 1e-20


def test_self_conditioning(x0):
    loss = TrainingLoss(SCHEDULES["vp"], "v")
    noised = loss.noise(x0, SEEDS)
    inputs = []
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def model(x, t, given):
        inputs.append(given)
        return weight * x

    result = diffusion.self_condition(model, loss, noised)
    assert len(inputs) == 2 and not inputs[0].any()
    expected = loss.x0(0.5 * noised.x_t, noised)
    seen = inputs[1].flatten(1).any(1)
    torch.testing.assert_close(inputs[1][seen], expected[seen], rtol=1e-12, atol=0)
    assert 15 < seen.sum() < 49
    half = loss.noise(x0[:32], SEEDS[:32])
    diffusion.self_condition(model, loss, half)
    assert torch.equal(inputs[3].flatten(1).any(1), seen[:32])
    assert not inputs[1].requires_grad
    loss(result, noised).sum().backward()
    assert weight.grad is not None
    with pytest.raises(ValueError, match=r"probability.*2"):
        diffusion.self_condition(model, loss, noised, 2.0)


@pytest.mark.parametrize("prediction", ["F", "score", "v"])
def test_gradients(prediction, x0):
    loss = TrainingLoss(diffusion.edm(), prediction, "edm", density="lognormal", offset_noise=0.1)
    noised = loss.noise(x0[:3], SEEDS[:3])
    m = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: loss(m, noised), m)


def test_low_precision_input(x0):
    loss = TrainingLoss(diffusion.edm(), "F")
    noised = loss.noise(x0.float(), SEEDS, dtype=torch.bfloat16)
    exact = loss.noise(x0.float(), SEEDS)
    assert noised.x_t.dtype == torch.bfloat16
    assert torch.equal(noised.x_t, exact.x_t.bfloat16())


@pytest.mark.parametrize("options", [{}, {"offset_noise": 0.3}, {"input_perturbation": 0.2}], ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_kept_target_is_the_same_loss(prediction, options, x0):
    """Same input bits; the loss and its gradient to the last rounding, float64 and, with a bfloat16 input, float32."""
    again, kept = (TrainingLoss(diffusion.edm(), prediction, "edm", keep_target=keep, **options) for keep in (False, True))
    for x, dtype in ((x0, None), (x0.float(), torch.bfloat16)):
        one, other = again.noise(x, SEEDS, dtype=dtype), kept.noise(x, SEEDS, dtype=dtype)
        assert one.target is None and other.target.dtype == x.dtype
        assert torch.equal(one.x_t, other.x_t)
        m = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype, requires_grad=True)
        gradients = [torch.autograd.grad(loss(m, noised).sum(), m)[0] for loss, noised in ((again, one), (kept, other))]
        bound = 64 * torch.finfo(x.dtype).eps
        torch.testing.assert_close(kept(m, other), again(m, one), rtol=bound, atol=0)
        torch.testing.assert_close(*gradients, rtol=bound, atol=bound * gradients[0].abs().max().item())


def test_given_times(x0):
    loss = TrainingLoss(SCHEDULES["vp"])
    noised = loss.noise(x0, SEEDS, torch.full((64,), 10))
    assert (noised.t == 10).all()


BAD = {
    "weighting": (lambda: TrainingLoss(diffusion.flow(), weighting="none"), ValueError, "weighting.*'none'"),
    "weighting type": (lambda: TrainingLoss(diffusion.flow(), weighting=3), TypeError, "weighting.*int"),
    "density": (lambda: TrainingLoss(diffusion.flow(), density="normal"), ValueError, "density.*'normal'"),
    "prediction": (lambda: TrainingLoss(diffusion.flow(), "noise"), ValueError, "prediction.*'noise'"),
    "offset": (lambda: TrainingLoss(diffusion.flow(), offset_noise=-0.1), ValueError, "offset_noise.*-0.1"),
    "perturbation": (
        lambda: TrainingLoss(diffusion.flow(), input_perturbation=math.nan),
        ValueError,
        "input_perturbation.*nan",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_losses(case):
    make, error, message = BAD[case]
    with pytest.raises(error, match=message):
        make()
