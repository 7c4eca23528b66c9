"""Samplers on problems with known answers, and what holds for all of them."""

import dataclasses
import inspect
import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

import pyfold
from pyfold import _C, diffusion
from pyfold.diffusion import SAMPLERS, spacings

UNIT_ALPHA = diffusion.Schedule(
    "unit alpha", curve=lambda t: (torch.ones_like(t), t), inverse=lambda r: r, t_min=1e-3, t_max=1e3
)
VP = diffusion.vp_linear()
FLOW = diffusion.flow()
SEEDS = torch.tensor([3, 1, 4])
MEAN, VARIANCE = 0.3, 0.5


@pytest.fixture(autouse=True)
def _one_thread():
    """Loops of small steps: threads that wait for each other on a busy machine would be all of their time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def schedule_for(name):
    return FLOW if name.startswith("flow_") else VP


def spread(point):
    """Standard deviation of noised Gaussian data."""
    return math.sqrt(point.alpha**2 * VARIANCE + point.sigma**2)


def gaussian_model(plan):
    """The x0 that Gaussian data N(MEAN, VARIANCE) have on average, at each of the plan's points."""
    points = iter(plan.points)

    def model(x, t):
        p = next(points)
        return MEAN + p.alpha * VARIANCE / spread(p) ** 2 * (x - p.alpha * MEAN)

    return model


def geometric(schedule, steps, high, low):
    return [schedule.at_ratio(r) for r in np.exp(np.linspace(math.log(high), math.log(low), steps + 1))]


# --- convergence

ORDERS = {
    "euler": (1, diffusion.euler),
    "euler, flow frame": (1, partial(diffusion.euler, frame="flow")),
    "dpm_singlestep 1": (1, partial(diffusion.dpm_singlestep, order=1)),
    "dpmpp_singlestep 1": (1, partial(diffusion.dpmpp_singlestep, order=1)),
    "gradient_estimation": (1, diffusion.gradient_estimation),
    "heun": (2, diffusion.heun),
    "heun, flow frame": (2, partial(diffusion.heun, frame="flow")),
    "dpm2": (2, diffusion.dpm2),
    "seeds 2": (2, partial(diffusion.seeds_2, eta=0.0)),
    "dpm_singlestep 2": (2, diffusion.dpm_singlestep),
    "dpmpp_singlestep 2": (2, diffusion.dpmpp_singlestep),
    "dpmpp_multistep 2": (2, diffusion.dpmpp_multistep),
    "dpmpp_multistep 2 heun": (2, partial(diffusion.dpmpp_multistep, solver="heun")),
    "dpmpp_multistep 3, as published": (2, partial(diffusion.dpmpp_multistep, order=3)),
    "dpm_multistep 2": (2, diffusion.dpm_multistep),
    "res_multistep": (2, diffusion.res_multistep),
    "lms 2": (2, partial(diffusion.lms, order=2)),
    "ipndm, unequal steps": (2, diffusion.ipndm),
    "plms, unequal steps": (2, diffusion.plms),
    "plms from Runge-Kutta, unequal steps": (2, partial(diffusion.plms, start="runge_kutta")),
    "unipc 1": (2, partial(diffusion.unipc, order=1, final_order=None)),
    "sa_solver 2": (2, partial(diffusion.sa_solver, tau=0.0, adjusted=True, final_order=None)),
    "dpm_singlestep 3": (3, partial(diffusion.dpm_singlestep, order=3)),
    "dpmpp_singlestep 3": (3, partial(diffusion.dpmpp_singlestep, order=3)),
    "dpmpp_multistep 3": (3, partial(diffusion.dpmpp_multistep, order=3, solver="exact")),
    "dpm_multistep 3": (3, partial(diffusion.dpm_multistep, order=3, solver="exact")),
    "lms 3": (3, partial(diffusion.lms, order=3)),
    "deis 3": (3, diffusion.deis),
    "unipc 2, bh1": (3, partial(diffusion.unipc, variant="bh1", final_order=None)),
    "unipc 2, bh2": (3, partial(diffusion.unipc, final_order=None)),
    "unipc 2, epsilon": (3, partial(diffusion.unipc, interpolated="epsilon", final_order=None)),
    "sa_solver 3, epsilon": (
        3,
        partial(diffusion.sa_solver, tau=0.0, predictor_order=3, corrector_order=3, interpolated="epsilon", final_order=None),
    ),
    "sa_solver 3": (
        3,
        partial(diffusion.sa_solver, tau=0.0, predictor_order=3, corrector_order=3, final_order=None),
    ),
    "sa_solver_pece 2": (2, partial(diffusion.sa_solver_pece, tau=0.0, adjusted=True, final_order=None)),
    "sa_solver_pece 3": (
        3,
        partial(diffusion.sa_solver_pece, tau=0.0, predictor_order=3, corrector_order=3, final_order=None),
    ),
    "sa_solver_pece 3, epsilon": (
        3,
        partial(
            diffusion.sa_solver_pece, tau=0.0, predictor_order=3, corrector_order=3, interpolated="epsilon", final_order=None
        ),
    ),
    "seeds 3": (3, partial(diffusion.seeds_2, order=3, eta=0.0)),
    "lms 4": (4, diffusion.lms),
    "unipc 3": (4, partial(diffusion.unipc, order=3, final_order=None)),
}


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name):
    order, sampler = ORDERS[name]
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[None]
    errors = []
    for steps in (80, 160, 320):
        points = geometric(UNIT_ALPHA, steps, 200.0, 0.05)
        plan = sampler(UNIT_ALPHA, prediction="x0", spacing=points)
        start = points[0].alpha * MEAN + spread(points[0]) * z
        exact = points[-1].alpha * MEAN + spread(points[-1]) * z
        x = diffusion.sample(gaussian_model(plan), plan, (9,), [0], x=start, dtype=torch.float64)
        errors.append((x - exact).abs().max().item())
    measured = [math.log2(a / b) for a, b in pairwise(errors)]
    # From below only: some are better on this problem, whose derivatives vanish at the noisy end.
    assert all(m > order - 0.25 for m in measured), measured
    if order <= 2:
        assert all(m < order + 0.25 for m in measured), measured


# --- noise

STOCHASTIC = {
    "ddpm": diffusion.ddpm,
    "ddpm, beta": partial(diffusion.ddpm, variance="fixed_large"),
    "ddim": partial(diffusion.ddim, eta=1.0),
    "ddim, half": partial(diffusion.ddim, eta=0.5),
    "euler_ancestral": diffusion.euler_ancestral,
    "flow_ancestral": diffusion.flow_ancestral,
    "dpm2_ancestral": diffusion.dpm2_ancestral,
    "dpmpp_2s_ancestral": diffusion.dpmpp_2s_ancestral,
    "dpmpp_sde": diffusion.dpmpp_sde,
    "dpmpp_sde, independent": partial(diffusion.dpmpp_sde, brownian=False),
    "dpmpp_multistep 1": partial(diffusion.dpmpp_multistep, order=1, eta=1.0),
    "dpmpp_multistep 2": partial(diffusion.dpmpp_multistep, eta=1.0),
    "dpmpp_multistep 3": partial(diffusion.dpmpp_multistep, order=3, eta=1.0),
    "dpm_multistep": partial(diffusion.dpm_multistep, stochastic=True),
    "res_multistep": partial(diffusion.res_multistep, eta=1.0),
    "sa_solver": diffusion.sa_solver,
    "sa_solver, epsilon": partial(diffusion.sa_solver, interpolated="epsilon"),
    "sa_solver_pece": diffusion.sa_solver_pece,
    "flow_dpm2_ancestral": diffusion.flow_dpm2_ancestral,
    "er_sde": diffusion.er_sde,
    "edm_stochastic": partial(diffusion.edm_stochastic, noise_scale=1.0),
    "seeds 2": diffusion.seeds_2,
    "seeds 3": partial(diffusion.seeds_2, order=3),
    "flow_sde": diffusion.flow_sde,
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_variance_on_gaussian_data(name):
    """From the exact noisy marginal to the data: mean and variance within 5 standard errors, 500 steps, 20,000 samples."""
    schedule, count, options = schedule_for(name), 20_000, {"clip": None, "prediction": "x0"}
    spacing = "leading" if name.startswith("dd") else partial(spacings.exponential, sigma_min=2e-2, sigma_max=100.0)
    if schedule.is_flow:
        spacing = partial(spacings.exponential, sigma_min=2e-2, sigma_max=0.99)
    plan = STOCHASTIC[name](schedule, 500, spacing=spacing, **options)
    first = plan.points[0]
    if plan.start_churn is not None:
        first = spacings.exponential(schedule, 500, sigma_min=2e-2, sigma_max=100.0)[0]
    x = first.alpha * MEAN + spread(first) * pyfold.randn([7], (count,), dtype=torch.float64)
    assert plan.noisy
    x = diffusion.sample(gaussian_model(plan), plan, (count,), [8], x=x, dtype=torch.float64)
    assert abs(x.mean().item() - MEAN) < 5 * math.sqrt(VARIANCE / count)
    assert abs(x.var().item() - VARIANCE) < 5 * VARIANCE * math.sqrt(2 / count)


def smooth(x, t):
    """A smooth function of both arguments that is no true denoiser."""
    t = t.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
    return torch.sin(1.3 * x + 0.7) * 0.6 + 0.2 * x * torch.cos(t / 50)


def plan_of(name, steps=12, **options):
    return SAMPLERS[name](schedule_for(name), steps, prediction="v" if name[:4] != "flow" else "flow", **options)


@pytest.mark.parametrize("name", SAMPLERS)
def test_float32_follows_float64(name, generator):
    plan = plan_of(name)
    start = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    exact = diffusion.sample(smooth, plan, (40,), SEEDS, x=start, dtype=torch.float64)
    x = diffusion.sample(smooth, plan, (40,), SEEDS, x=start)
    assert x.dtype == torch.float32
    assert (x - exact).abs().max() < 2e-5 * max(1.0, exact.abs().max().item())


@pytest.mark.parametrize("name", SAMPLERS)
def test_same_bits_for_any_split(name):
    """An elementwise denoiser: bits for every batch split, order, thread count and instruction set."""
    plan = plan_of(name, 20)
    seeds = torch.arange(4)

    def run(seeds):
        return diffusion.sample(lambda x, t: x * 0.4, plan, (3, 11, 10), seeds)

    expected = run(seeds)
    assert torch.isfinite(expected).all()
    before, threads = _C.cpu_tier(), torch.get_num_threads()
    try:
        for tier in _C.cpu_tiers_supported():
            _C.set_cpu_tier(tier)
            for count in (1, 2):
                torch.set_num_threads(count)
                assert torch.equal(torch.cat([run(seeds[:1]), run(seeds[1:])]), expected), (tier, count)
                assert torch.equal(run(seeds.flip(0)), expected.flip(0)), (tier, count)
    finally:
        _C.set_cpu_tier(before)
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", SAMPLERS)
def test_predictions_agree(name, generator):
    """The same model, told in other words: epsilon, v, x0, flow, score, F."""
    schedule = schedule_for(name)
    start = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    # Not from pure noise, where epsilon means no x0.
    spacing = spacings.at_ratios(schedule, np.geomspace(50.0, 0.05, 8))
    more = {"spacing": spacing} if name != "dpm_fast" else {"sigma_max": 50.0, "sigma_min": 0.05}

    def run(prediction):
        plan = SAMPLERS[name](schedule, 8, prediction=prediction, clip=None, **more)
        points = iter(plan.points)

        def model(x, t):
            p = next(points)
            x0 = smooth(x, torch.full((3,), p.ratio))
            r, s = diffusion.convert("x0", prediction, p.alpha, p.sigma, schedule.data_std)
            return r * x + s * x0

        return diffusion.sample(model, plan, (40,), SEEDS, x=start, dtype=torch.float64)

    expected = run("x0")
    for prediction in diffusion.PREDICTIONS:
        torch.testing.assert_close(run(prediction), expected, rtol=0, atol=1e-9)


WITH_ETA = [name for name in SAMPLERS if "eta" in inspect.signature(SAMPLERS[name]).parameters]


@pytest.mark.parametrize("name", [name for name in WITH_ETA if name not in ("ddim", "tcd")])  # which have discrete times
def test_without_new_noise_the_first_noise_counts(name, generator):
    """From the flow's pure noise too: with eta 0 normal data are the noise times their spread."""
    plan = SAMPLERS[name](diffusion.flow(), 60, prediction="x0", clip=None, eta=0.0)
    points, start = iter(plan.points), torch.randn(3, 40, generator=generator, dtype=torch.float64)

    def model(x, t):
        p = next(points)
        return x * (0.5 * p.alpha / (0.5 * p.alpha**2 + p.sigma**2))

    x = diffusion.sample(model, plan, (40,), SEEDS, x=start, dtype=torch.float64)
    torch.testing.assert_close(x, start * 0.5**0.5, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_constant_x0_is_reached_exactly(name):
    """Whatever the noise: a model that always sees the same x0 is led there."""
    schedule = schedule_for(name)
    plan = SAMPLERS[name](schedule, 9, prediction="x0", clip=None)
    x = diffusion.sample(lambda x, t: torch.full_like(x, 0.37), plan, (50,), SEEDS, dtype=torch.float64)
    last = schedule.clean()
    if name == "dpm_fast":
        last = schedule.at_ratio(float(schedule.sigmas[0] / schedule.alphas[0]))
    assert (x - 0.37 * last.alpha).abs().max() < 1e-6 + 6 * last.sigma


@pytest.mark.parametrize("name", SAMPLERS)
def test_noise_can_be_given(name, generator):
    """The loop with noise from outside is the loop with noise from seeds."""
    plan = plan_of(name)
    start = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    asked = []

    def noise(n):
        asked.append(n)
        return plan.draw(n, SEEDS, (40,), dtype=torch.float64)

    expected = diffusion.sample(smooth, plan, (40,), SEEDS, x=start, dtype=torch.float64)
    given = diffusion.sample(smooth, plan, (40,), SEEDS, x=start, noise=noise, dtype=torch.float64)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-11)
    assert bool(asked) == plan.noisy


def mixing(x, t):
    """A model that looks from one frame at the others."""
    return torch.sin(x) * 0.5 + 0.2 * x.mean(2, keepdim=True)


@pytest.mark.parametrize("name", SAMPLERS)
def test_given_frames_are_kept_at_no_noise(name, generator):
    """Only the frames between the known ones are stepped; each gets the bits that it has where the others are put back."""
    plan, region = plan_of(name, 8), (slice(None), slice(2, 5))
    original = torch.randn(3, 2, 6, 5, generator=generator)
    x = pyfold.randn(SEEDS, original.shape[1:])
    mask = torch.ones(original.shape[1:], dtype=torch.bool)
    mask[region] = False
    x = torch.where(mask, original, x * plan.start_std)
    seen = []

    def model(x, t):
        seen.append(x.clone())
        return mixing(x, t)

    result = diffusion.sample(model, plan, original.shape[1:], SEEDS, x=x, region=region)
    assert torch.equal(result[:, mask], original[:, mask])
    assert all(torch.equal(state[:, mask], original[:, mask]) for state in seen)
    put_back = diffusion.inpaint(plan, original, mask, SEEDS, noised=False)
    # The start's churn has no callback.
    if plan.start_churn is None:
        expected = diffusion.sample(mixing, plan, original.shape[1:], SEEDS, x=x, callback=put_back)
        assert torch.equal(result, expected)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_mask_puts_the_original_back_in_every_sampler(name, generator):
    """Inpainting with a mask of any shape: what is free never saw the kept part's own steps."""
    plan = plan_of(name, 8)
    original = torch.randn(3, 6, 5, generator=generator)
    mask = torch.rand(6, 5, generator=generator) < 0.5
    callback = diffusion.inpaint(plan, original, mask, SEEDS)
    x = diffusion.sample(lambda x, t: x * 0.4, plan, (6, 5), SEEDS, callback=callback)
    free = diffusion.sample(lambda x, t: x * 0.4, plan, (6, 5), SEEDS)
    assert torch.equal(x[:, mask], original[:, mask]) and torch.equal(x[:, ~mask], free[:, ~mask])


# --- formulas that no other package shares with us


def trajectory(points):
    return list(pairwise([(p.alpha, p.sigma) for p in points]))


def run_plan(plan, start):
    """With ``smooth`` of x / alpha at sigma / alpha as x0."""
    points = iter(plan.points)

    def model(x, t):
        p = next(points)
        return smooth(x / p.alpha, torch.full((len(x),), p.ratio))

    return diffusion.sample(model, plan, (40,), SEEDS, x=start, noise=draw, dtype=torch.float64)


def x0_of(x, a, s):
    return smooth(x / a, torch.full((len(x),), s / a))


def draw(n):
    """In formulas written beside ours, the noise that stage n brings in."""
    return pyfold.randn(SEEDS, (40,), stream=1, step=n, dtype=torch.float64)


@pytest.fixture
def start(generator):
    return torch.randn(3, 40, generator=generator, dtype=torch.float64)


def assert_exact(plan, start, expected):
    torch.testing.assert_close(run_plan(plan, start), expected, rtol=0, atol=1e-10 * expected.abs().max().item())


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_flow_ancestral(eta, start):
    points = spacings.at_sigmas(FLOW, [0.95, 0.7, 0.4, 0.2, 0.05])
    x = start
    for n, ((a, s), (a2, s2)) in enumerate(trajectory(points)):
        x0 = x0_of(x, a, s)
        down = s2 * (1 + (s2 / s - 1) * eta)
        x = down / s * x + (1 - down / s) * x0
        # Without eta the noise is 0, the difference of squares only nearly so.
        if s2 and eta:
            x = a2 / (1 - down) * x + math.sqrt(max(s2**2 - (down * a2 / (1 - down)) ** 2, 0)) * draw(n)
    assert_exact(diffusion.flow_ancestral(FLOW, prediction="x0", eta=eta, spacing=points), start, x)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_flow_dpm2_ancestral(eta, start):
    """Of x0 and of the slope, x - x0 over sigma, at the geometric mean of a step's two sigmas."""
    points = spacings.at_sigmas(FLOW, [0.95, 0.7, 0.4, 0.2, 0.05])
    x = start
    for n, ((a, s), (a2, s2)) in enumerate(trajectory(points)):
        if s2 == 0:
            x = x0_of(x, a, s)
            break
        down = s2 * (1 + (s2 / s - 1) * eta)
        middle = math.sqrt(s * down)
        between = x + (middle - s) * (x - x0_of(x, a, s)) / s
        x = x + (down - s) * (between - x0_of(between, 1 - middle, middle)) / middle
        if eta:
            x = a2 / (1 - down) * x + math.sqrt(max(s2**2 - (down * a2 / (1 - down)) ** 2, 0)) * draw(2 * n + 1)
    assert_exact(diffusion.flow_dpm2_ancestral(FLOW, prediction="x0", eta=eta, spacing=points), start, x)


@pytest.mark.parametrize("orders", [(1, 1), (2, 2), (3, 3), (4, 4)])
@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0])
def test_sa_solver_pece(tau, orders, start):
    """Predict, evaluate, correct, evaluate, with one noise for both: Xue et al. 2023, eq. 14 and 17, by quadrature."""
    points = spacings.at_times(VP, [900, 800, 660, 500, 300, 120])
    nodes, weights = np.polynomial.legendre.leggauss(30)
    eta = tau**2

    def step(x, here, there, known, noise):
        """``known``: (lambda, x0) of the polynomial."""
        h = there.lam - here.lam
        at = here.lam + (nodes + 1) * h / 2
        x = there.sigma / here.sigma * math.exp(-eta * h) * x + there.sigma * math.sqrt(-math.expm1(-2 * eta * h)) * noise
        for j, (lam, x0) in enumerate(known):
            basis = np.prod([(at - other) / (lam - other) for k, (other, _) in enumerate(known) if k != j], axis=0)
            integral = (weights * basis * (1 + eta) * np.exp(-(1 + eta) * (there.lam - at))).sum() * h / 2
            x = x + there.alpha * integral * x0
        return x

    x, past = start, []
    for i, (here, there) in enumerate(pairwise(points)):
        x0 = x0_of(x, here.alpha, here.sigma)
        if there.sigma == 0:
            x = there.alpha * x0
            break
        past = [(here.lam, x0), *past]
        predicted = step(x, here, there, past[: orders[0]], draw(2 * i))
        new = there.lam, x0_of(predicted, there.alpha, there.sigma)
        x = step(x, here, there, [new, *past[: orders[1] - 1]], draw(2 * i))
    plan = diffusion.sa_solver_pece(
        VP, prediction="x0", tau=tau, predictor_order=orders[0], corrector_order=orders[1], final_order=None, spacing=points
    )
    assert len(plan) == 2 * len(plan.step_starts) - 1 == 11
    assert_exact(plan, start, x)


def test_gradient_estimation(start):
    points = spacings.at_ratios(UNIT_ALPHA, [8.0, 5.0, 2.0, 0.7, 0.2])
    x, before = start, None
    for (_, s), (_, s2) in trajectory(points):
        d = (x - x0_of(x, 1.0, s)) / s
        x = x + (s2 - s) * (d if before is None else 1.7 * d - 0.7 * before)
        before = d
    assert_exact(diffusion.gradient_estimation(UNIT_ALPHA, prediction="x0", gamma=1.7, spacing=points), start, x)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm(order, start):
    points = spacings.at_ratios(UNIT_ALPHA, [8.0, 6.5, 5.0, 2.0, 0.7, 0.2])
    weights = {1: [1], 2: [1.5, -0.5], 3: [23 / 12, -4 / 3, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}
    x, past = start, []
    for (_, s), (_, s2) in trajectory(points):
        past = [(x - x0_of(x, 1.0, s)) / s, *past]
        x = x + (s2 - s) * sum(w * d for w, d in zip(weights[min(order, len(past))], past, strict=False))
    assert_exact(diffusion.ipndm(UNIT_ALPHA, prediction="x0", order=order, spacing=points), start, x)


def test_a_start_by_runge_kutta_begins_with_eulers_step():
    """A third of the way, where the step of order 3 evaluates next."""
    schedule = diffusion.edm()
    plan = diffusion.lms(schedule, 8, order=4, starter="runge_kutta")
    here, third, two_thirds = plan.points[:3]
    whole = diffusion.lms(schedule, 8, order=4).points[1]
    for part, point in ((1 / 3, third), (2 / 3, two_thirds)):
        assert point.sigma == pytest.approx(here.sigma + part * (whole.sigma - here.sigma))
    euler = diffusion.euler(schedule, spacing=[here, third]).rows[0]
    assert {**plan.rows[0], "n1": 0, "c_in": 0} == {**euler, "n1": 0, "c_in": 0}


@pytest.mark.parametrize("clip", [None, 1.5])
def test_plms_from_runge_kutta(clip, start):
    points = spacings.at_times(VP, [900, 800, 660, 500, 300, 120])
    at = [*points[:-1]]

    def slope(x, p):
        x0 = x0_of(x, p.alpha, p.sigma)
        return (x - p.alpha * (x0 if clip is None else x0.clamp(-clip, clip))) / p.sigma

    def move(x, k, p, q):
        return x * q.alpha / p.alpha + q.alpha * (q.ratio - p.ratio) * k

    x, past = start, []
    for here, there in zip(points, points[1:], strict=False):
        k = slope(x, here)
        past = [k, *past]
        if len(past) <= 3:
            middle = VP.at((here.t + there.t) / 2)
            k2 = slope(move(x, k, here, middle), middle)
            k3 = slope(move(x, k2, here, middle), middle)
            k = (k + 2 * k2 + 2 * k3 + slope(move(x, k3, here, there), there)) / 6
        else:
            k = sum(w * e for w, e in zip((55 / 24, -59 / 24, 37 / 24, -9 / 24), past, strict=False))
        x = move(x, k, here, there)
    plan = diffusion.plms(VP, prediction="x0", start="runge_kutta", clip=clip, spacing=points)
    assert len(plan) == len(at) + 9
    assert plan.step_starts == (0, 4, 8, 12, 13, 14)
    assert_exact(plan, start, x)
    with pytest.raises(ValueError, match="stage must be given"):
        plan.step(start, start, torch.zeros(1, dtype=torch.int64), history=[])
    with pytest.raises(ValueError, match="start must be 'heun' or 'runge_kutta', got 'euler'"):
        diffusion.plms(VP, start="euler")
    with pytest.raises(ValueError, match="steps must be at least 4 for start 'runge_kutta', got 3"):
        diffusion.plms(VP, 3, start="runge_kutta")


@pytest.mark.parametrize("order", [1, 2, 3])
def test_er_sde(order, start):
    """The paper's sums of a hundred thousand terms instead of integrals."""
    points = spacings.at_ratios(VP, [8.0, 5.0, 2.0, 0.7, 0.2])
    phi = lambda v: v * (np.exp(v**0.3) + 10)  # noqa: E731
    x, past = start, []
    for n, ((a, s), (a2, s2)) in enumerate(trajectory(points)):
        past = [(x0_of(x, a, s), s / a), *past][:3]
        if s2 == 0:
            x = past[0][0]
            continue
        v, v2 = s / a, s2 / a2
        r = phi(v2) / phi(v)
        new = a2 / a * r * x + a2 * (1 - r) * past[0][0]
        grid = v2 + (np.arange(100_000) + 0.5) * (v - v2) / 100_000
        width = (v - v2) / 100_000
        if order >= 2 and len(past) >= 2:
            slope = (past[0][0] - past[1][0]) / (past[0][1] - past[1][1])
            new = new + a2 * (v2 - v + (width / phi(grid)).sum() * phi(v2)) * slope
        if order >= 3 and len(past) >= 3:
            older = (past[1][0] - past[2][0]) / (past[1][1] - past[2][1])
            curve = (slope - older) / ((past[0][1] - past[2][1]) / 2)
            new = new + a2 * ((v2 - v) ** 2 / 2 + ((grid - v) * width / phi(grid)).sum() * phi(v2)) * curve
        x = new + a2 * math.sqrt(v2**2 - v**2 * r**2) * draw(n)
    expected = x
    result = run_plan(diffusion.er_sde(VP, prediction="x0", order=order, spacing=points), start)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-8 * expected.abs().max().item())


@pytest.mark.parametrize("plus", [True, False])
def test_singlestep_of_order_three(plus, start):
    """Lu et al. 2022a, algorithm 2, and its form on x0."""
    points = geometric(VP, 4, 8.0, 0.2)
    x = start
    for here, there in pairwise(points):
        h = there.lam - here.lam
        inner = [VP.at_ratio(math.exp(-(here.lam + f * h))) for f in (1 / 3, 2 / 3)]

        def g(x, p):
            x0 = x0_of(x, p.alpha, p.sigma)
            return x0 if plus else (x - p.alpha * x0) / p.sigma

        def base(p, f, x=x, here=here, h=h):
            if plus:
                return p.sigma / here.sigma * x, -p.alpha * math.expm1(-f * h), p.alpha * (math.expm1(-f * h) / (f * h) + 1)
            return p.alpha / here.alpha * x, -p.sigma * math.expm1(f * h), -p.sigma * (math.expm1(f * h) / (f * h) - 1)

        g0 = g(x, here)
        linear, first, _ = base(inner[0], 1 / 3)
        g1 = g(linear + first * g0, inner[0])
        linear, first, second = base(inner[1], 2 / 3)
        g2 = g(linear + first * g0 + 2 * second * (g1 - g0), inner[1])
        linear, first, second = base(there, 1.0)
        x = linear + first * g0 + 1.5 * second * (g2 - g0)
    sampler = diffusion.dpmpp_singlestep if plus else diffusion.dpm_singlestep
    assert_exact(sampler(VP, prediction="x0", order=3, spacing=points), start, x)


@pytest.mark.parametrize("order", [2, 3])
def test_seeds(order, start):
    """Gonzalez et al. 2023, algorithms 1 and 2, the noise by its recursion from stage to stage."""
    points = spacings.at_ratios(VP, [8.0, 5.0, 2.0, 0.7])[:-1]
    fractions = [0.5, 1.0] if order == 2 else [1 / 3, 2 / 3, 1.0]
    eta, x, n = 0.8, start, 0
    for here, there in pairwise(points):
        h = there.lam - here.lam
        m = [x0_of(x, here.alpha, here.sigma)]
        noise, before = 0.0, 0.0
        for k, f in enumerate(fractions):
            p = there if f == 1 else VP.at_ratio(math.exp(-(here.lam + f * h)))
            z = (1 + eta) * f * h
            noise = noise * math.exp(-eta * (f - before) * h) + math.sqrt(1 - math.exp(-2 * eta * (f - before) * h)) * draw(n)
            before, n = f, n + 1
            y = p.sigma / here.sigma * math.exp(-eta * f * h) * x
            if k == 0:
                y = y - p.alpha * math.expm1(-z) * m[0]
            elif order == 2:
                y = y - p.alpha * math.expm1(-z) * m[1]
            else:
                part = f / fractions[k - 1] * p.alpha * (math.expm1(-z) / z + 1)
                y = y - p.alpha * math.expm1(-z) * m[0] + part * (m[k] - m[0])
            y = y + p.sigma * noise
            m.append(x0_of(y, p.alpha, p.sigma))
        x = y
    assert_exact(diffusion.seeds_2(VP, prediction="x0", order=order, eta=eta, spacing=points), start, x)


def test_flow_sde(start):
    """Liu et al. 2025, eq. 12, in the form of their code."""
    points = spacings.at_sigmas(FLOW, [0.95, 0.7, 0.4, 0.2, 0.05])
    x = start
    for n, ((a, s), (_, s2)) in enumerate(trajectory(points)):
        v = (x - x0_of(x, a, s)) / s
        dt = s2 - s
        std = 0.7 * math.sqrt(s / (1 - s)) if s2 else 0.0
        x = x * (1 + std**2 / (2 * s) * dt) + v * (1 + std**2 * (1 - s) / (2 * s)) * dt + std * math.sqrt(-dt) * draw(n)
    assert_exact(diffusion.flow_sde(FLOW, prediction="x0", spacing=points), start, x)
    whole = diffusion.flow_sde(FLOW, 4)
    assert all(math.isfinite(v) for row in whole.rows for k, v in row.items() if "clip" not in k)


@pytest.mark.parametrize("predictor", [False, True])
def test_annealed_langevin(predictor, start):
    points = spacings.at_ratios(VP, [8.0, 2.0, 0.3])
    x, n = start, 0
    for i, ((a, s), (a2, s2)) in enumerate(trajectory(points)):
        for _ in range(2):
            score = -(x - a * x0_of(x, a, s)) / s**2
            x = x + 0.15 * s**2 * score + s * math.sqrt(0.3) * draw(n)
            n += 1
        if i == len(points) - 2:
            x = x0_of(x, a, s)
        elif predictor:
            x0 = x0_of(x, a, s)
            eps = (x - a * x0) / s
            up = s2 / a2 * math.sqrt(1 - (s2 / a2 * a / s) ** 2)
            x = a2 * (x0 + math.sqrt((s2 / a2) ** 2 - up**2) * eps + up * draw(n))
            n += 1
        else:
            x = a2 / a * x
    options = {"correctors": 2, "step_size": 0.15, "predictor": predictor, "spacing": points}
    assert_exact(diffusion.annealed_langevin(VP, prediction="x0", **options), start, x)


def test_langevin_keeps_boltzmann():
    """At one level, from anywhere: mean and variance of p at that level, up to the bias of the step's size."""
    level, count = VP.at_ratio(0.5), 20_000
    points = [level, VP.at_ratio(0.4999), VP.clean()]
    plan = diffusion.annealed_langevin(VP, prediction="x0", correctors=400, step_size=0.1, spacing=points)
    seen = {}
    x = torch.full((1, count), 2.0, dtype=torch.float64)
    model = gaussian_model(plan)
    diffusion.sample(model, plan, (count,), [3], x=x, dtype=torch.float64, callback=lambda i, x: seen.setdefault(i, x.clone()))
    x = seen[398]
    # The linear recursion x' = (1 - k) x + ..., k = step sigma^2 / spread^2, has this variance exactly.
    k = 0.1 * level.sigma**2 / spread(level) ** 2
    variance = 2 * 0.1 * level.sigma**2 / (1 - (1 - k) ** 2)
    assert abs(variance / spread(level) ** 2 - 1) < 0.02
    assert abs(x.var().item() - variance) < 5 * variance * math.sqrt(2 / count)
    assert abs(x.mean().item() - level.alpha * MEAN) < 5 * math.sqrt(variance / count)


def test_ddim_inverse_undoes_ddim(start):
    """To the order of the method: the error of the round trip falls with the step."""
    errors = []
    for steps in (125, 250, 500):
        there = diffusion.ddim_inverse(VP, steps, prediction="x0")
        noisy = run_plan(there, start)
        points = [VP.at(t) for t in np.arange(steps - 1, -1, -1) * (1000 // steps)]
        back = run_plan(diffusion.euler(VP, prediction="x0", spacing=points), noisy)
        errors.append((back - start).abs().mean().item())
    assert errors[0] > 1.6 * errors[1] > 1.6**2 * errors[2], errors


def test_guided_by_three(generator):
    x = torch.randn(2, 30, generator=generator)
    plan = diffusion.guided(plan_of("dpmpp_multistep"), 3.0)
    pair = diffusion.sample(lambda x, t: (smooth(x, t), torch.sin(x)), plan, (30,), [1, 2], x=x)
    mixed = diffusion.sample(lambda x, t: 3 * smooth(x, t) - 2 * torch.sin(x), plan_of("dpmpp_multistep"), (30,), [1, 2], x=x)
    torch.testing.assert_close(pair, mixed, rtol=0, atol=1e-4)


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
@pytest.mark.parametrize("name", diffusion.SCHEDULES)
def test_every_sampler_on_every_schedule(name, prediction):
    """A plan of tame coefficients, or an error that says why not."""
    made, refused = 0, []
    for sampler in SAMPLERS.values():
        try:
            plan = sampler(diffusion.SCHEDULES[name](), 10, prediction=prediction, clip=None)
        except ValueError as error:
            refused.append(str(error))
            continue
        made += 1
        numbers = [v for row in plan.rows for key, v in row.items() if key[0] != "n" and "clip" not in key]
        assert max(map(abs, numbers)) < 1e5, plan.name
        assert np.isfinite(plan.times).all()
    assert all(any(word in message for word in ("must", "needs", "does not determine")) for message in refused), refused
    # From pure noise, where epsilon means no x0, few can start; all others are few on their own schedules only.
    least = {("flow", "v"): 20, ("flow", "epsilon"): 2, ("trigflow", "v"): 5, ("trigflow", "epsilon"): 0}
    assert made >= least.get((name, prediction), 22), (made, refused)


# --- plans and states


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_multistep", "heun", "sa_solver", "dpmpp_sde", "flow_heun"])
def test_continuous_batching(name, generator):
    """Samples that come and go at different stages of one batch get the bits they get alone."""
    plan = plan_of(name, 6)
    starts = torch.randn(3, 40, generator=generator)
    times = plan.on("cpu")[1]

    def model(x, index):
        return smooth(x, times[index])

    alone = [
        diffusion.sample(smooth, plan, (40,), SEEDS[b : b + 1], x=starts[b : b + 1], dtype=torch.float32) for b in range(3)
    ]
    # Sample b comes b stages late.
    x = torch.zeros(3, 40)
    index = torch.full((3,), len(plan))
    history = []
    for tick in range(len(plan) + 2):
        if tick < 3:
            x[tick], index[tick] = starts[tick], 0
        plan.step(x, model(x, index), index, history=history, seeds=SEEDS, out=x)
        index.add_(1).clamp_(max=len(plan))
    assert torch.equal(x, torch.cat(alone))


@pytest.mark.parametrize("eta", [0.35, 0.45, 0.9])
def test_tcd_goes_to_a_whole_time_at_most_that_part_down(eta):
    """Zheng et al. 2024, algorithm 4: to floor((1 - eta) t'), and by noise up to t'."""
    plan = diffusion.tcd(VP, 8, eta=eta)
    parts = [(1 - eta) * there.t % 1 for there in plan.points[1:]]
    assert max(parts) > 0.5
    for row, there in zip(plan.rows[:-1], plan.points[1:], strict=True):
        middle = VP.alphas[int((1 - eta) * there.t)]
        assert row["d1"] == pytest.approx(math.sqrt(1 - (there.alpha / middle) ** 2), rel=1e-12)


def test_a_slice_of_points_starts_in_the_middle(generator):
    """Image-to-image: the second half of a plan without memory is the plan of the second half."""
    points = spacings.karras(VP, 10)
    start = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    whole, half = (diffusion.heun(VP, prediction="v", spacing=p) for p in (points, points[5:]))
    seen = {}
    diffusion.sample(
        smooth, whole, (40,), SEEDS, x=start, dtype=torch.float64, callback=lambda i, x: seen.setdefault(i, x.clone())
    )
    result = diffusion.sample(smooth, half, (40,), SEEDS, x=seen[9], dtype=torch.float64)
    torch.testing.assert_close(result, seen[len(whole) - 1], rtol=0, atol=1e-12)


def test_log_prob(generator):
    """Of a stored transition, against torch's normal distribution; its gradient reaches the model."""
    plan = plan_of("euler_ancestral", 5)
    row = plan.rows[2]
    x, m = (torch.randn(3, 40, generator=generator, dtype=torch.float64) for _ in range(2))
    index = torch.tensor([2])
    after = plan.step(x, m, index, seeds=SEEDS)
    quiet = dataclasses.replace(plan, rows=tuple({**r, "d1": 0.0} for r in plan.rows), noisy=False)
    mean = quiet.step(x, m, index)
    expected = torch.distributions.Normal(mean, row["d1"]).log_prob(after).sum(1)
    m.requires_grad_()
    result = plan.log_prob(x, m, index, after)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=0)
    (gradient,) = torch.autograd.grad(result.sum(), m)
    step = 1e-6
    shifted = m.detach().clone()
    shifted[0, 0] += step
    numeric = (plan.log_prob(x, shifted, index, after) - result).sum() / step
    assert abs(numeric.item() - gradient[0, 0].item()) < 1e-4 * abs(numeric.item())
    assert plan.log_prob(x, m, torch.tensor([4]), after).isnan().all()
    with pytest.raises(ValueError, match="log_prob needs"):
        plan_of("dpmpp_multistep", eta=1.0).log_prob(x, m, index, after)


def test_scaled_input_of_edm(generator):
    """EDM: the model sees x / sqrt(sigma^2 + data_std^2) and log(sigma) / 4, in its own dtype."""
    schedule = diffusion.edm()
    plan = diffusion.heun(schedule, 5, prediction="F")
    points, seen = iter(plan.points), []
    start = torch.randn(3, 40, generator=generator) * 80

    def model(x, t):
        p = next(points)
        assert x.dtype == torch.bfloat16
        assert t[0].item() == pytest.approx(math.log(p.sigma) / 4, rel=1e-6)
        seen.append((x.float(), p))
        return -x

    states = [start]
    diffusion.sample(model, plan, (40,), SEEDS, x=start, dtype=torch.bfloat16, callback=lambda i, x: states.append(x.clone()))
    assert len(seen) == 9
    for (x, p), state in zip(seen, states, strict=False):
        expected = (state / math.hypot(p.sigma, 0.5)).bfloat16().float()
        torch.testing.assert_close(x, expected, rtol=2**-7, atol=1e-6)
    # The state starts with the standard deviation of the noise there.
    assert plan.start_std == pytest.approx(80.0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_step_reads_a_tensor_on_the_host(name, monkeypatch, generator):
    plan = plan_of(name, 8)

    def forbidden(*_, **__):
        raise AssertionError("a step read a tensor")

    plan.on("cpu")
    seeds, x = SEEDS.clone(), torch.randn(3, 2, 20, generator=generator)
    adapt = [diffusion.rescale(0.5), diffusion.renorm(2.0), diffusion.dynamic_threshold()]
    for method in ("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "cpu", "nonzero"):
        monkeypatch.setattr(torch.Tensor, method, forbidden)
    x = diffusion.sample(lambda x, t: x * 0.3, plan, (2, 20), seeds, x=x, adapt=adapt)
    monkeypatch.undo()
    assert torch.isfinite(x).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_whole_loop_is_one_cuda_graph(name):
    """Captured, replayed with other seeds, and the bits of the CPU's loop."""
    plan = plan_of(name, 8)
    seeds = SEEDS.cuda()

    def run(seeds, device):
        return diffusion.sample(lambda x, t: x * 0.4, plan, (3, 11, 10), seeds, device=device)

    run(seeds, "cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run(seeds, "cuda")
    for shift in (0, 17):
        seeds.copy_(SEEDS + shift)
        graph.replay()
        assert torch.equal(result.cpu(), run(SEEDS + shift, "cpu"))


BAD = {
    "steps": (lambda: diffusion.heun(VP, 0), ValueError, "steps.*0"),
    "too many steps": (lambda: diffusion.unipc(VP, 1001), ValueError, "steps.*1001"),
    "steps type": (lambda: diffusion.lms(VP, 3.0), TypeError, "steps.*float"),
    "spacing": (lambda: diffusion.euler(VP, 5, spacing="none"), ValueError, "spacing.*'none'"),
    "increasing": (lambda: diffusion.ddim(VP, spacing=[VP.at(5), VP.at(9)]), ValueError, "spacing must decrease"),
    "one point": (lambda: diffusion.euler(VP, spacing=[VP.at(5)]), ValueError, "at least 2"),
    "NaN time": (lambda: spacings.at_times(VP, [math.nan, 3]), ValueError, "t must be.*nan"),
    "NaN point": (
        lambda: diffusion.euler(VP, spacing=[diffusion.Point(1.0, math.nan, 1.0), VP.at(3)]),
        ValueError,
        "spacing must",
    ),
    "NaN ratio": (lambda: spacings.at_ratios(VP, [math.nan, 1.0]), ValueError, "ratio.*nan"),
    "negative ratio": (lambda: spacings.at_ratios(VP, [1.0, -1.0]), ValueError, "ratio.*-1"),
    "sigma": (lambda: spacings.at_sigmas(FLOW, [1.5, 0.5]), ValueError, r"sigmas must be in \[0, 1\].*1.5"),
    "NaN sigma": (lambda: spacings.at_sigmas(FLOW, [math.nan]), ValueError, "sigmas.*nan"),
    "NaN of a spacing": (lambda: spacings.laplace(VP, 5, mu=math.nan), ValueError, "nan"),
    "numbers as points": (lambda: diffusion.euler(VP, spacing=[3.0, 1.0]), TypeError, "spacing.*Point.*float at 0"),
    "spacing type": (lambda: diffusion.euler(VP, 5, spacing=3), TypeError, "spacing.*int"),
    "schedule": (lambda: diffusion.euler("vp", 5), TypeError, "schedule.*str"),
    "schedule of ddim": (lambda: diffusion.ddim("vp", 5), TypeError, "schedule.*str"),
    "final order": (lambda: diffusion.unipc(VP, 5, final_order=0), ValueError, "final_order.*0"),
    "NaN option": (lambda: diffusion.lcm(VP, 4, time_scaling=math.nan), ValueError, "lcm.*NaN or infinite"),
    "ddim eta": (lambda: diffusion.ddim(VP, 5, eta=-0.1), ValueError, "eta.*-0.1"),
    "sde eta": (lambda: diffusion.dpmpp_multistep(VP, 5, eta=-0.1), ValueError, "eta.*-0.1"),
    "tcd eta": (lambda: diffusion.tcd(VP, 4, eta=math.nan), ValueError, "eta.*nan"),
    "plan": (lambda: diffusion.sample(smooth, "ddim", (4,), [1]), TypeError, "plan.*str"),
    "seeds type": (lambda: diffusion.sample(smooth, plan_of("lms"), (4,), 5.0), TypeError, "seeds.*float"),
    "seeds string": (lambda: diffusion.sample(smooth, plan_of("lms"), (4,), "ab"), TypeError, "seeds.*str"),
    "mask": (lambda: diffusion.inpaint(plan_of("lms"), torch.zeros(1, 3), torch.zeros(3), SEEDS), TypeError, "mask.*float32"),
    "known": (
        lambda: diffusion.inpaint(plan_of("lms"), torch.zeros(1, 3), torch.zeros(3) == 0, SEEDS)(0, torch.zeros(1, 4)),
        ValueError,
        r"original.*\(1, 4\).*\(1, 3\)",
    ),
    "final": (lambda: spacings.at_times(VP, [9, 3], "last"), ValueError, "final.*'last'"),
    "continuous": (lambda: diffusion.euler(FLOW, 5, spacing="leading"), ValueError, "discrete times.*flow"),
    "span": (lambda: spacings.karras(VP, 5, sigma_min=3.0, sigma_max=1.0), ValueError, "sigma_min.*3.0 and 1.0"),
    "NaN span": (lambda: spacings.karras(VP, 5, sigma_min=math.nan), ValueError, "sigma_min.*nan"),
    "rho": (lambda: spacings.karras(VP, 5, rho=0.0), ValueError, "rho.*0.0"),
    "prediction": (lambda: diffusion.dpm2(VP, 5, prediction="noise"), ValueError, "prediction.*'noise'"),
    "clip": (lambda: diffusion.deis(VP, 5, clip=math.nan), ValueError, "clip.*nan"),
    "order": (lambda: diffusion.dpmpp_multistep(VP, 5, order=4), ValueError, "order.*4"),
    "order type": (lambda: diffusion.deis(VP, 5, order=2.0), TypeError, "order.*float"),
    "stochastic order": (lambda: diffusion.dpm_multistep(VP, 5, order=3, stochastic=True), ValueError, "order.*3"),
    "solver": (lambda: diffusion.dpmpp_multistep(VP, 5, solver="rk"), ValueError, "solver.*'rk'"),
    "variant": (lambda: diffusion.unipc(VP, 5, variant="bh3"), ValueError, "variant.*'bh3'"),
    "interpolated": (lambda: diffusion.unipc(VP, 5, interpolated="v"), ValueError, "interpolated.*'v'"),
    "epsilon from pure noise": (
        lambda: diffusion.sa_solver(FLOW, interpolated="epsilon", spacing=spacings.trailing(FLOW, 5)),
        ValueError,
        "pure noise .* for sa_solver",
    ),
    "noise scale": (lambda: diffusion.euler_ancestral(VP, 5, noise_scale=math.nan), ValueError, "noise_scale.*nan"),
    "noise scale sign": (lambda: diffusion.er_sde(VP, 5, noise_scale=-1.0), ValueError, "noise_scale.*-1"),
    "churn span": (lambda: diffusion.edm_stochastic(VP, 5, churn_min=math.nan), ValueError, "churn_min.*nan"),
    "frame": (lambda: diffusion.lms(VP, 5, frame="x"), ValueError, "frame.*'x'"),
    "eta": (lambda: diffusion.euler_ancestral(VP, 5, eta=1.5), ValueError, "eta.*1.5"),
    "eta NaN": (lambda: diffusion.dpmpp_sde(VP, 5, eta=math.nan), ValueError, "eta.*nan"),
    "tau": (lambda: diffusion.sa_solver(VP, 5, tau=-1.0), ValueError, "tau.*-1"),
    "r": (lambda: diffusion.dpmpp_sde(VP, 5, r=0.0), ValueError, "r must.*0.0"),
    "churn": (lambda: diffusion.edm_stochastic(VP, 5, churn=-1.0), ValueError, "churn.*-1"),
    "method": (lambda: diffusion.edm_stochastic(VP, 5, method="rk"), ValueError, "method.*'rk'"),
    "seeds order": (lambda: diffusion.seeds_2(VP, 5, order=1), ValueError, "order.*1"),
    "correctors": (lambda: diffusion.annealed_langevin(VP, 5, correctors=0), ValueError, "correctors.*0"),
    "step size": (lambda: diffusion.annealed_langevin(VP, 5, step_size=math.nan), ValueError, "step_size.*nan"),
    "noise level": (lambda: diffusion.flow_sde(FLOW, 5, noise_level=-1.0), ValueError, "noise_level.*-1"),
    "gamma": (lambda: diffusion.gradient_estimation(VP, 5, gamma=math.inf), ValueError, "gamma.*inf"),
    "flow": (lambda: diffusion.flow_heun(VP, 5), ValueError, "flow schedule.*vp_linear"),
    "discrete": (lambda: diffusion.lcm(FLOW, 5), ValueError, "discrete times.*flow"),
    "pure noise": (
        lambda: diffusion.lms(FLOW, frame="noise", spacing=spacings.trailing(FLOW, 5)),
        ValueError,
        "pure noise .* for lms",
    ),
    "epsilon at pure noise": (
        lambda: diffusion.consistency(FLOW, prediction="epsilon", spacing=spacings.trailing(FLOW, 5)),
        ValueError,
        "pure noise .* for a prediction of epsilon",
    ),
    "region": (
        lambda: diffusion.sample(smooth, plan_of("lms"), (4,), [1], x=torch.zeros(1, 4), region=(slice(0, 4, 2),)),
        ValueError,
        "region.*step 1",
    ),
    "region type": (
        lambda: diffusion.sample(smooth, plan_of("lms"), (4,), [1], x=torch.zeros(1, 4), region=(2,)),
        TypeError,
        "region.*int",
    ),
    "long region": (
        lambda: diffusion.sample(smooth, plan_of("lms"), (4,), [1], x=torch.zeros(1, 4), region=(slice(2),) * 2),
        ValueError,
        "region.*at most 1",
    ),
    "region without x": (
        lambda: diffusion.sample(smooth, plan_of("lms"), (4,), [1], region=(slice(2),)),
        ValueError,
        "x must be given",
    ),
    "start": (lambda: diffusion.sample(smooth, plan_of("lms"), (4,), [1, 2], x=torch.zeros(1, 4)), ValueError, r"x must.*2, 4"),
    "seeds": (
        lambda: plan_of("ddpm").step(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0])),
        ValueError,
        "seeds must be given for ddpm",
    ),
    "history": (
        lambda: plan_of("lms").step(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0])),
        ValueError,
        "history must be a list",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_configurations(case):
    make, error, message = BAD[case]
    with pytest.raises(error, match=message):
        make()
