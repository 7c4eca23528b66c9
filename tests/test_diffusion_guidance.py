"""Guidance, adaptations, energies, masks and learned variances: each step against its formula."""

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch

import pyfold
from pyfold import diffusion
from pyfold.diffusion import spacings

VP = diffusion.vp_linear()
SEEDS = torch.tensor([3, 1, 4])
SHAPE = (2, 5)


@pytest.fixture(autouse=True)
def _one_thread():
    """Loops of small steps: threads that wait for each other on a busy machine would be all of their time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tensors(generator):
    return [torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64) for _ in range(3)]


def column(value):
    return value.reshape(-1, 1, 1)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_cfg_plus_plus(prediction, tensors):
    x, cond, uncond = tensors
    plan = diffusion.euler_ancestral(VP, 6, prediction=prediction, eta=0.5)
    guided = diffusion.guided_plus_plus(plan, 0.6)
    for i, (here, there) in enumerate(zip(plan.points, [*plan.points[1:], VP.clean()], strict=True)):
        mixed = 0.6 * cond + 0.4 * uncond
        p, q = diffusion.convert(prediction, "x0", here.alpha, here.sigma)
        r, s = diffusion.convert(prediction, "epsilon", here.alpha, here.sigma)
        up = 0.5 * there.ratio * math.sqrt(1 - (there.ratio / here.ratio) ** 2)
        down = math.sqrt(there.ratio**2 - up**2)
        noise = plan.draw(i, SEEDS, SHAPE, dtype=torch.float64)
        expected = there.alpha * (p * x + q * mixed + down * (r * x + s * uncond) + up * noise)
        result = guided.step(x, [cond, uncond], torch.tensor([i]), seeds=SEEDS)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-10 * expected.abs().max().item())


RATIOS = [9.0, 6.0, 2.5, 1.0, 0.4, 0.15]
ONE_EVALUATION = {
    "ddim": partial(diffusion.ddim, eta=0.5, clip=None),
    "euler": diffusion.euler,
    "euler, flow frame": partial(diffusion.euler, frame="flow"),
    "dpmpp_multistep": diffusion.dpmpp_multistep,
    "dpmpp_multistep 3, noisy": partial(diffusion.dpmpp_multistep, order=3, eta=0.7),
    "dpm_multistep": diffusion.dpm_multistep,
    "res_multistep": partial(diffusion.res_multistep, eta=0.5),
    "deis": diffusion.deis,
    "lms": diffusion.lms,
    "ipndm": partial(diffusion.ipndm, frame="flow"),
    "gradient_estimation": diffusion.gradient_estimation,
    "unipc": diffusion.unipc,
    "unipc, epsilon": partial(diffusion.unipc, interpolated="epsilon"),
    "sa_solver": diffusion.sa_solver,
    "er_sde": diffusion.er_sde,
}


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
@pytest.mark.parametrize("name", ONE_EVALUATION)
def test_cfg_plus_plus_in_multistep_samplers(name, prediction, generator):
    """Beside the guided sampler: each step differs by its part of epsilon times (unconditional - guided)."""
    plan = ONE_EVALUATION[name](VP, prediction=prediction, spacing=spacings.at_ratios(VP, RATIOS))
    guided, plus = diffusion.guided(plan, 0.6), diffusion.guided_plus_plus(plan, 0.6)
    x = torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64)
    histories = [], []
    for i, (row, here) in enumerate(zip(plan.rows, plan.points, strict=True)):
        cond, uncond = (torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))
        expected, result = (
            p.step(x, [cond, uncond], torch.tensor([i]), history=history, seeds=SEEDS)
            for p, history in zip((guided, plus), histories, strict=True)
        )
        # The part of epsilon: what a state of x0 = 0 and epsilon = 1 keeps.
        kept = row.get("a", 0.0) * here.sigma
        if not row.get("t"):
            kept += sum(row.get(c, 0.0) for c in ("c_u", "b1", "b2", "b3", "b4"))
        s = diffusion.convert(prediction, "epsilon", here.alpha, here.sigma)[1]
        expected = expected + kept * s * (uncond - (0.6 * cond + 0.4 * uncond))
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-10 * max(1.0, expected.abs().max().item()))
        for a, b in zip(*histories, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        x = result


@pytest.mark.parametrize("sampler", [diffusion.dpmpp_multistep, diffusion.dpm_multistep, diffusion.deis])
def test_cfg_plus_plus_of_order_1_is_ddim(sampler, tensors):
    """Chung et al.'s algorithm, from three formulas that are one at order 1."""
    x, cond, uncond = tensors
    points = spacings.at_ratios(VP, RATIOS)
    plan = diffusion.guided_plus_plus(sampler(VP, order=1, spacing=points), 0.6)
    for i, (here, there) in enumerate(pairwise(points)):
        x0 = (x - here.sigma * (0.6 * cond + 0.4 * uncond)) / here.alpha
        expected = there.alpha * x0 + there.sigma * uncond
        result = plan.step(x, [cond, uncond], torch.tensor([i]), history=[], seeds=SEEDS)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-10 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cfg_plus_plus_in_the_loop(dtype):
    """Of two equal outputs it is the plain sampler, with noise and a model in low precision, too."""
    plan = diffusion.dpmpp_multistep(VP, 8, prediction="v", eta=0.5)
    unguided = diffusion.sample(lambda x, t: torch.sin(x), plan, SHAPE, SEEDS, dtype=dtype)
    plus = diffusion.guided_plus_plus(plan, 0.6)
    both = diffusion.sample(lambda x, t: (torch.sin(x), torch.sin(x)), plus, SHAPE, SEEDS, dtype=dtype)
    # In bfloat16 a last bit of the state may round the model's input to the next value.
    torch.testing.assert_close(both, unguided, rtol=0, atol=1e-5 if dtype == torch.float32 else 2e-2)
    other = diffusion.sample(lambda x, t: (torch.sin(x), torch.cos(x)), plus, SHAPE, SEEDS, dtype=dtype)
    assert torch.isfinite(other).all() and (other - unguided).abs().max() > 0.05


def test_cfg_plus_plus_from_pure_noise(tensors):
    """There the state is the noise, whatever the model says of it: only x0 is the model's."""
    x, cond, uncond = tensors
    flow = diffusion.flow()
    plan = diffusion.flow_euler(flow, prediction="x0", spacing=spacings.at_sigmas(flow, [1.0, 0.6, 0.2]))
    plus, ends = diffusion.guided_plus_plus(plan, 0.6), [1.0, 0.6, 0.2, 0.0]
    for i, (s, s2) in enumerate(pairwise(ends)):
        epsilon = (x - (1 - s) * uncond) / s
        expected = (1 - s2) * (0.6 * cond + 0.4 * uncond) + s2 * epsilon
        result = plus.step(x, [cond, uncond], torch.tensor([i]), history=[])
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-10 * expected.abs().max().item())


def test_cfg_plus_plus_needs_a_simple_plan():
    from_noise = diffusion.euler(diffusion.flow(), 4, frame="flow", prediction="flow")
    for plan, message in (
        (diffusion.heun(VP, 5), "one evaluation a step"),
        (diffusion.ddpm(VP, 5, variance="learned", clip=None), "learned variance"),
        (diffusion.ddim(VP, 5), "without clip"),
        (replace(from_noise, prediction="epsilon"), "pure noise"),
    ):
        with pytest.raises(ValueError, match=message):
            diffusion.guided_plus_plus(plan, 0.5)
    plan = diffusion.guided_plus_plus(diffusion.euler_ancestral(VP, 5), 0.5)
    zero = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="noise must come from seeds"):
        plan.step(zero, [zero, zero], torch.tensor([0]), noise=zero)


def test_rescale(tensors):
    x, cond, uncond = tensors
    mixed = 4 * cond - 3 * uncond
    whole = mixed * (cond.std((1, 2), keepdim=True) / mixed.std((1, 2), keepdim=True))
    unguided = diffusion.ddim(VP, 5)
    expected = unguided.step(x, 0.7 * whole + 0.3 * mixed, torch.tensor([2]))
    plan = diffusion.guided(unguided, 4.0)
    result = plan.step(x, [cond, uncond], torch.tensor([2]), adapt=[diffusion.rescale(0.7)])
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("adaptation", [diffusion.rescale(0.7), diffusion.renorm(0.5)], ids=["rescale", "renorm"])
def test_adaptations_scale_all_that_is_mixed(adaptation, tensors):
    """A row that mixes three outputs does as one that takes their mixture for the second."""
    x, cond, uncond = tensors
    other, unguided, i = cond.flip(-1), diffusion.ddim(VP, 5), torch.tensor([2])
    three = replace(unguided, rows=tuple({**row, "g1": 3.0, "g2": -1.5, "g3": -0.5} for row in unguided.rows))
    two = replace(unguided, rows=tuple({**row, "g1": 3.0, "g2": -2.0} for row in unguided.rows))
    result = three.step(x, [cond, uncond, other], i, adapt=[adaptation])
    expected = two.step(x, [cond, (1.5 * uncond + 0.5 * other) / 2], i, adapt=[adaptation])
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def test_renorm(tensors):
    x, cond, uncond = tensors
    uncond[0] = cond[0] * 0.9
    unguided = diffusion.ddim(VP, 5)
    mixed = 4 * cond - 3 * uncond
    length, most = mixed.flatten(1).norm(dim=1), 1.5 * cond.flatten(1).norm(dim=1)
    factor = torch.where(length > most, most / length, 1.0)
    assert (factor < 1).any() and (factor == 1).any()
    expected = unguided.step(x, column(factor) * mixed, torch.tensor([2]))
    result = diffusion.guided(unguided, 4.0).step(x, [cond, uncond], torch.tensor([2]), adapt=[diffusion.renorm(1.5)])
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler", [diffusion.ddpm, diffusion.ddim, diffusion.dpmpp_multistep])
def test_dynamic_threshold(sampler, tensors):
    """As diffusers' _threshold_sample: clip to the quantile, at least 1 and at most a maximum, and divide."""
    x, cond, _ = tensors
    plan = sampler(VP, 5, clip=None)
    point = plan.points[2]
    x0 = (x - point.sigma * cond) / point.alpha
    bound = torch.quantile(x0.abs().flatten(1), 0.9, dim=1).clamp(1, 4)
    clipped = x0.clamp(-column(bound), column(bound)) / column(bound)
    row = plan.rows[2]
    noise = plan.draw(2, SEEDS, SHAPE, dtype=torch.float64)
    u = row.get("r", 0.0) * x + row.get("s", 0.0) * cond + row.get("t", 0.0) * clipped
    past = torch.ones_like(x)
    expected = row["a"] * x + row["c_x0"] * clipped + row["c_u"] * u + row.get("d1", 0.0) * noise + row.get("b1", 0.0) * past
    adapt = [diffusion.dynamic_threshold(0.9, 1.0, 4.0)]
    result = plan.step(x, cond, torch.tensor([2]), history=[past], seeds=SEEDS, adapt=adapt)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0", "flow", "score"])
def test_energy_shifts_the_score(prediction, tensors):
    x, m, _ = tensors
    energy = lambda x: (x**4 / 4).flatten(1).sum(1)  # noqa: E731
    unguided = diffusion.dpmpp_multistep(VP, 5, prediction=prediction)
    plan = diffusion.guided_by_energy(unguided, VP, prediction, weight=0.3)
    point, index = unguided.points[1], torch.tensor([1])
    r, s = diffusion.convert(prediction, "score", point.alpha, point.sigma)
    score = r * x + s * m - 0.3 * x**3
    r, s = diffusion.convert("score", prediction, point.alpha, point.sigma)
    past = torch.ones_like(x)
    # A step writes its u over the oldest entry.
    expected = unguided.step(x, r * x + s * score, index, history=[past.clone()])
    outputs = diffusion.with_gradient(lambda x, t: m, energy)(x, None)
    result = plan.step(x, outputs, index, history=[past])
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9 * expected.abs().max().item())


def test_energy_conditions_gaussian_data():
    """p(x) exp(-U) of two Gaussians is one: with the noised energy exact, sampling finds its mean and variance."""
    schedule, count = diffusion.edm(sigma_min=0.01, sigma_max=80.0), 20_000
    variance, centre, width = 0.5, 1.0, 0.25
    unguided = diffusion.euler_ancestral(schedule, 400, prediction="epsilon", spacing="exponential")
    plan = diffusion.guided_by_energy(unguided, schedule, "epsilon")
    points = iter(plan.points)
    state = {}

    def energy(x):
        """-log of what the product's noised density is beside p's."""
        v = state["point"].sigma ** 2
        both, at = 1 / (1 / variance + 1 / width), centre * variance / (variance + width)
        x = x / schedule.input_scale(1.0, state["point"].sigma)
        return ((x - at) ** 2 / (2 * (both + v)) - x**2 / (2 * (variance + v))).sum(1)

    def model(x, t):
        state["point"] = p = next(points)
        scale = schedule.input_scale(1.0, p.sigma)
        return p.sigma * x / scale / (variance + p.sigma**2)

    guided = diffusion.with_gradient(model, energy)

    def scaled(x, t):
        """grad in the model's scaled input is grad U times that scale."""
        m, gradient = guided(x, t)
        return m, gradient * schedule.input_scale(1.0, state["point"].sigma)

    x = diffusion.sample(scaled, plan, (count,), [4], dtype=torch.float64)
    both = 1 / (1 / variance + 1 / width)
    assert abs(x.mean().item() - centre * variance / (variance + width)) < 5 * math.sqrt(both / count)
    assert abs(x.var().item() - both) < 5 * both * math.sqrt(2 / count)


def test_energy_beside_guidance(tensors):
    """A third model output beside two, and no room for a fourth."""
    x, cond, uncond = tensors
    plan = diffusion.guided_by_energy(diffusion.guided(diffusion.ddim(VP, 5), 2.0), VP, "epsilon")
    gradient = torch.full_like(x, 0.1)
    result = plan.step(x, [cond, uncond, gradient], torch.tensor([0]))
    mixed = 2 * cond - uncond + plan.points[0].sigma * gradient
    torch.testing.assert_close(result, diffusion.ddim(VP, 5).step(x, mixed, torch.tensor([0])), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="at most 2"):
        diffusion.guided_by_energy(plan, VP, "epsilon")
    with pytest.raises(ValueError, match="pure noise"):
        diffusion.guided_by_energy(diffusion.flow_euler(diffusion.flow(), 4), diffusion.flow(), "flow")


def test_inpainting(generator):
    plan = diffusion.dpmpp_multistep(VP, 12, prediction="v")
    original = torch.randn(3, *SHAPE, generator=generator)
    mask = torch.tensor([[True, True, False, False, False], [False] * 5])
    states = []

    def callback(stage, x):
        diffusion.inpaint(plan, original, mask, SEEDS)(stage, x)
        states.append(x.clone())

    x = diffusion.sample(lambda x, t: torch.sin(x), plan, SHAPE, SEEDS, callback=callback)
    assert torch.equal(x[:, mask], original[:, mask])
    free = diffusion.sample(lambda x, t: torch.sin(x), plan, SHAPE, SEEDS)
    assert torch.equal(x[:, ~mask], free[:, ~mask])
    # In between it is noised to the next point.
    eps = pyfold.randn(SEEDS, SHAPE)
    expected = plan.points[4].alpha * original + plan.points[4].sigma * eps
    torch.testing.assert_close(states[3][:, mask], expected[:, mask], rtol=0, atol=1e-6)


def test_learned_range_against_diffusers(generator, monkeypatch):
    from diffusers import DDPMScheduler
    from diffusers.schedulers import scheduling_ddpm

    scheduler = DDPMScheduler(variance_type="learned_range")
    scheduler.set_timesteps(10)
    scheduler.alphas_cumprod = torch.from_numpy(VP.alphas**2)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    plan = diffusion.ddpm(VP, 10, variance="learned_range")

    def network(x, i):
        return torch.cat([0.7 * torch.sin(x + i), torch.tanh(x)], 1)

    steps = iter(range(10))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: plan.draw(next(steps), SEEDS, SHAPE).double())
    x = torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64)
    expected = x
    for i, t in enumerate(scheduler.timesteps):
        expected = scheduler.step(network(expected, i), t, expected).prev_sample
    calls = iter(range(10))

    result = diffusion.sample(lambda x, t: network(x, next(calls)), plan, SHAPE, SEEDS, x=x, dtype=torch.float64)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9)


def test_learned_log_variance(tensors):
    """sigma^2 = exp(log_variance), and none in the last step."""
    x, m, log_variance = tensors
    plan, mean = diffusion.ddpm(VP, 2, variance="learned"), diffusion.ddpm(VP, 2)
    states = []
    diffusion.sample(
        lambda x, t: torch.cat([m, log_variance], 1), plan, SHAPE, SEEDS, x=x, dtype=torch.float64,
        callback=lambda i, x: states.append(x.clone()),
    )  # fmt: skip
    zero = torch.zeros_like(x)
    noise = plan.draw(0, SEEDS, SHAPE, dtype=torch.float64)
    first = mean.step(x, m, torch.tensor([0]), noise=zero) + (log_variance / 2).exp() * noise
    torch.testing.assert_close(states[0], first, rtol=0, atol=1e-12)
    torch.testing.assert_close(states[1], mean.step(first, m, torch.tensor([1]), noise=zero), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("state", ["float32", "half"])
@pytest.mark.parametrize("what", ["rescale", "renorm", "threshold", "learned", "learned_range"])
def test_outputs_in_half_types_are_reduced_in_float32(what, state, dtype, generator):
    """A model in a half type gives what the same values in float32 give, to the bit."""
    learned = what.startswith("learned")
    plan = diffusion.ddpm(VP, 4, variance=what) if learned else diffusion.guided(diffusion.ddim(VP, 4, clip=None), 4.3)
    made = {"rescale": diffusion.rescale(0.7), "renorm": diffusion.renorm(0.5), "threshold": diffusion.dynamic_threshold(0.9)}
    adapt = [] if learned else [made[what]]
    values = [torch.randn(2, 3, 16, 16, generator=generator).to(dtype) for _ in range(3)]
    x, m, other = (values[0] if state == "half" else values[0].float()), *values[1:]
    outputs = torch.cat([m, other.tanh()], 1) if learned else (m, other)
    wide = outputs.float() if learned else tuple(v.float() for v in outputs)
    run = lambda outputs: diffusion.sample(  # noqa: E731
        lambda x, t: outputs, plan, (3, 16, 16), torch.tensor([3, 1]), x=x, dtype=x.dtype, adapt=adapt
    )
    assert torch.equal(run(outputs), run(wide))
    if adapt:
        rows = plan.on("cpu")[0][torch.tensor([2, 2])]
        assert torch.equal(adapt[0](rows, x, outputs), adapt[0](rows, x.float(), wide))


BAD = {
    "rescale": (lambda: diffusion.rescale(1.5), "strength.*1.5"),
    "renorm": (lambda: diffusion.renorm(0.0), "limit.*0"),
    "quantile": (lambda: diffusion.dynamic_threshold(math.nan), "quantile.*nan"),
    "quantile in percent": (lambda: diffusion.dynamic_threshold(1.5), "quantile.*1.5"),
    "bounds": (lambda: diffusion.dynamic_threshold(0.9, 3.0, 2.0), "least.*3.0 and 2.0"),
    "cfg++": (lambda: diffusion.guided_plus_plus(diffusion.euler_ancestral(VP, 5), math.inf), "scale.*inf"),
    "energy": (lambda: diffusion.guided_by_energy(diffusion.ddim(VP, 5), VP, "epsilon", math.nan), "weight.*nan"),
    "variance": (lambda: diffusion.ddpm(VP, 5, variance="mine"), "variance.*'mine'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_guidance(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("schedule", [diffusion.edm(), diffusion.vp_linear(), diffusion.flow()], ids=lambda s: s.name)
def test_the_energy_is_of_the_state(schedule):
    """Where the model sees a scaled input, the gradient is still with respect to the state, not to what the model sees."""
    seen = []

    def energy(x):
        seen.append(x.detach())
        return (x**2).flatten(1).sum(1)

    point = schedule.at(schedule.t_max / 3 if not schedule.steps else 400)
    state = torch.linspace(-2, 2, 6, dtype=torch.float64).reshape(2, 3)
    scale = schedule.input_scale(point.alpha, point.sigma)
    time = torch.full((2,), schedule.model_time(*point), dtype=torch.float64)
    model = diffusion.with_gradient(lambda x, t: 0 * x, energy, schedule)
    _, gradient = model(state * scale, time)
    torch.testing.assert_close(seen[0], state, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, 2 * state, rtol=1e-12, atol=1e-12)
