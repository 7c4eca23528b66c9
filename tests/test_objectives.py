"""Objectives of two times: closed forms for Gaussian data, dropout, the compiler, and their samplers."""

import math

import pytest
import torch
from torch import nn

import pyfold
from pyfold import diffusion
from pyfold.diffusion import AnyFlowLoss, ECMLoss, MeanFlowLoss, SCMLoss, ShortcutLoss
from pyfold.diffusion.objectives import mean_flow
from pyfold.models import MLPDenoiser, UNet
from pyfold.nn import Fold

#: Gaussian data.
MEAN, STD = 0.7, 0.6
SEEDS = torch.arange(400)


def column(value):
    return value.reshape(-1, *[1] * 2)


def noise_of(seeds):
    return pyfold.randn(seeds, (3, 2), stream=2, dtype=torch.float64)


def pairs_whose_residuals_cancel(alpha, sigma):
    """x0 [400, 3, 2] so that samples 2 i and 2 i + 1 are noised to one state, their noises' mean the expected one there.

    With data N(MEAN, STD^2) the noise's expectation at x is ``sigma (x - alpha MEAN) / V``, ``V = alpha^2 STD^2 + sigma^2``.
    """
    eps = noise_of(SEEDS)
    middle = eps.reshape(200, 2, 3, 2).mean(1).repeat_interleave(2, 0)
    variance = alpha**2 * STD**2 + sigma**2
    x = alpha * MEAN + variance / sigma * middle
    return (x - sigma * eps) / alpha


# --- MeanFlow


def spread(t):
    """Standard deviation of the state at t."""
    return ((1 - t) ** 2 * STD**2 + t**2).sqrt()


class MeanVelocity(nn.Module):
    """``factor u + slope t x + shift``: the mean velocity of Gaussian data's flow at (1, 0, 0), and others."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))

    def forward(self, x, t, r):
        t, r = column(t), column(r)
        centred = x - (1 - t) * MEAN
        # (x_t - x_r) / (t - r) with the flow's map x_r = (1 - r) MEAN + s(r) / s(t) (x_t - (1 - t) MEAN); at r = t its limit.
        change = ((1 - t) ** 2 - (1 - r) ** 2) * STD**2 + t**2 - r**2
        over = torch.where(t == r, 2 * (t - (1 - t) * STD**2), change / torch.where(t == r, 1.0, t - r))
        u = -MEAN + centred * over / (spread(t) * (spread(t) + spread(r)))
        factor, slope, shift = self.weights
        return factor * u + slope * t * x + shift


def dyadic_times(generator):
    t, r = (torch.randint(1, 64, (200,), generator=generator).repeat_interleave(2) / 64 for _ in range(2))
    t, r = torch.maximum(t, r).double(), torch.minimum(t, r).double()
    r[:100] = t[:100]
    return t, r


@pytest.mark.parametrize(
    "loss",
    [*(MeanFlowLoss(power=power) for power in (0.0, 1.0, 0.75)), AnyFlowLoss(step=1e-5)],
    ids=["squares", "power 1", "power 0.75", "anyflow"],
)
def test_no_gradient_at_the_mean_velocity(loss, generator):
    t, r = dyadic_times(generator)
    r[300:] = 0  # to the data
    x0 = pairs_whose_residuals_cancel(column(1 - t), column(t))
    model = MeanVelocity()
    interval = loss.noise(x0, SEEDS, t, r)
    torch.testing.assert_close(interval.x_t[::2], interval.x_t[1::2], rtol=0, atol=1e-12)
    losses = loss(model, interval)
    losses.mean().backward()
    assert model.weights.grad.abs().max() < 1e-9
    assert losses.min() > (1e-5 if isinstance(loss, AnyFlowLoss) else 1e-3)
    model.weights.data += torch.tensor([0.01, 0.02, 0.03])
    model.weights.grad = None
    loss(model, interval).mean().backward()
    assert model.weights.grad.abs().min() > 1e-4


def test_mean_flows_defaults_are_the_papers():
    """Geng et al. 2025: both times logit-normal (-0.4, 1), in a quarter of the samples r < t."""
    loss, seeds = MeanFlowLoss(), torch.arange(64)
    t, r = loss.times(seeds)
    u = [pyfold.randn(seeds, (), stream=3, step=step, dtype=torch.float64) for step in (0, mean_flow.SECOND_TIME)]
    torch.testing.assert_close(t, torch.sigmoid(torch.maximum(*u) - 0.4), rtol=0, atol=1e-12)
    assert loss.different == 0.25 and torch.equal(r < t, loss.coin(seeds) < 0.25)


def test_mean_flow_is_its_formula(generator):
    """Targets of r = t are velocities; of r < t, with the derivative of u along the path."""
    x0 = torch.randn(400, 3, 2, generator=generator, dtype=torch.float64)
    t, r = dyadic_times(generator)
    loss, model = MeanFlowLoss(power=0), MeanVelocity()
    interval = loss.noise(x0, SEEDS, t, r)
    assert torch.equal(interval.t, t) and torch.equal(interval.r, r)
    velocity = noise_of(SEEDS) - x0
    torch.testing.assert_close(interval.velocity, velocity, rtol=0, atol=1e-14)
    h = 1e-5
    x = column(1 - t) * x0 + column(t) * noise_of(SEEDS)
    along = (model(x + h * velocity, t + h, r) - model(x - h * velocity, t - h, r)) / (2 * h)
    # Where r = t the derivative has the factor 0.
    along = torch.where(column(t == r), 0.0, along)
    expected = ((model(x, t, r) - velocity + column(t - r) * along) ** 2).sum((1, 2))
    torch.testing.assert_close(loss(model, interval), expected, rtol=1e-6, atol=0)
    weighted = MeanFlowLoss(power=0.75, constant=0.1)
    torch.testing.assert_close(weighted(model, interval), expected / (expected + 0.1) ** 0.75, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "loss",
    [*(MeanFlowLoss(power=0, tangent=tangent, step=1e-3) for tangent in ("jvp", "difference")), AnyFlowLoss(step=1e-3)],
    ids=["jvp", "difference", "anyflow"],
)
def test_training_reaches_the_mean_velocity(loss, generator):
    """Full batches whose residuals cancel: what training converges to is the minimiser itself."""
    t, r = dyadic_times(generator)
    x0 = pairs_whose_residuals_cancel(column(1 - t), column(t))
    model = MeanVelocity()
    model.weights.data = torch.tensor([0.2, 0.5, -0.4], dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), 0.05, betas=(0.8, 0.9))
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 400) ** 2
        optimizer.zero_grad()
        loss(model, loss.noise(x0, SEEDS, t, r)).mean().backward()
        optimizer.step()
    torch.testing.assert_close(model.weights.data, torch.tensor([1.0, 0.0, 0.0]).double(), rtol=0, atol=1e-4)


# --- AnyFlow


def test_any_flow_is_its_formula(generator):
    """Velocities are weighted by their time; a map's gradient has the size that the velocities' losses have on average."""
    x0 = torch.randn(400, 3, 2, generator=generator, dtype=torch.float64)
    t, r = dyadic_times(generator)
    model = MeanVelocity()
    interval = MeanFlowLoss(power=0).noise(x0, SEEDS, t, r)
    square = MeanFlowLoss(power=0, tangent="difference", step=0.01)(model, interval).detach() / 6
    equal = t == r
    weighted = square[equal] * 15 / 4 * t[equal] * (1 - t[equal]) ** 0.5
    found = AnyFlowLoss(step=0.01)(model, interval)
    torch.testing.assert_close(found[equal], weighted, rtol=1e-12, atol=0)
    least = square[~equal] / (square[~equal] + 1e-5)
    torch.testing.assert_close(found[~equal], weighted.mean() * least, rtol=1e-12, atol=0)
    unweighted = AnyFlowLoss(step=0.01, weighting=None)
    torch.testing.assert_close(unweighted(model, interval)[equal], square[equal], rtol=1e-12, atol=0)
    maps = AnyFlowLoss(step=0.01)(model, interval.of((~equal).nonzero()[:, 0]))
    torch.testing.assert_close(maps, least, rtol=1e-12, atol=0)  # nothing to be as large as


def test_times_of_any_flow():
    loss = AnyFlowLoss(diffusion.flow(5.0))
    t, r = loss.times(torch.arange(20_000))
    for chosen, share in ((r == t, 0.5), (r == 0, 0.25), ((r > 0) & (r < t), 0.25)):
        assert chosen.double().mean().item() == pytest.approx(share, abs=0.01)
    # Two uniform numbers, the larger one first, and the flow's shift on both.
    first, second = (pyfold.diffusion.training.uniform_of_seeds(torch.arange(20_000), n) for n in (0, 2))
    shifted = [5 * u / (1 + 4 * u) for u in (torch.maximum(first, second), torch.minimum(first, second))]
    torch.testing.assert_close(t, shifted[0], rtol=1e-12, atol=0)
    between = (r > 0) & (r < t)
    torch.testing.assert_close(r[between], shifted[1][between], rtol=1e-12, atol=0)


def test_the_weight_of_a_time_has_mean_one():
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    assert diffusion.any_flow_weighting(t).mean().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_mean_flow_samples_gaussian_data_in_any_number_of_steps(steps):
    """Exactly: the noise's state is mapped to MEAN + STD noise."""
    plan = diffusion.flow_map(diffusion.flow(), steps)
    assert len(plan) == steps
    seeds = torch.arange(50)
    x = diffusion.sample(diffusion.with_next_time(MeanVelocity(), plan), plan, (3, 2), seeds, dtype=torch.float64)
    start = pyfold.randn(seeds, (3, 2), stream=0, dtype=torch.float64)
    torch.testing.assert_close(x, MEAN + STD * start, rtol=0, atol=1e-6)


def test_the_next_time_is_the_plans():
    plan = diffusion.flow_map(diffusion.flow(3.0), 4)
    seen = []

    def model(x, t, r):
        seen.append((t, r))
        return torch.zeros_like(x)

    both = diffusion.with_next_time(model, plan)
    diffusion.sample(both, plan, (2,), [1, 2])
    t, r = (torch.stack([pair[i][0] for pair in seen]) for i in (0, 1))
    torch.testing.assert_close(t, torch.tensor(plan.times, dtype=torch.float32), rtol=0, atol=0)
    torch.testing.assert_close(r, torch.cat([t[1:], torch.zeros(1)]), rtol=0, atol=1e-7)
    both(torch.zeros(2, 2), t[[2, 0]])
    assert torch.equal(seen[-1][1], r[[2, 0]])
    for other in (diffusion.ddim(diffusion.vp_linear()), diffusion.flow_heun(diffusion.flow())):
        with pytest.raises(ValueError, match="plan must be of steps"):
            diffusion.with_next_time(model, other)


# --- easy consistency tuning


class Consistency(nn.Module):
    """x0 = MEAN + a(t) (x - MEAN) on ``edm``-like points with a table of a(t), the model's prediction being "flow"."""

    def __init__(self, times, factors):
        super().__init__()
        self.times, self.factors = times, nn.Parameter(factors.clone())

    def forward(self, x, t):
        place = (self.times - t[:, None]).abs().argmin(1)
        a, t = column(self.factors[place]), column(t)
        x0 = MEAN + a * (x - (1 - t) * MEAN)
        # x0 = x - t u.
        return (x - x0) / t


def chain(loss, stage):
    """Times of the flow whose noise-to-signal ratios follow each other under the mapping down to 0, and each one's factor.

    One step of the probability flow's Euler method in x0 and noise takes x - alpha MEAN to ``(alpha_r g + sigma_r h)`` of it,
    g and h the regressions of x0 and noise; at ratio 0 the factor is that of x0 itself.
    """
    ratios = [torch.tensor([6.0], dtype=torch.float64)]
    while ratios[-1] > 0:
        ratios.append(loss.earlier_ratio(ratios[-1], stage))
    ratio = torch.cat(ratios)
    t = ratio / (1 + ratio)
    variance = (1 - t) ** 2 * STD**2 + t**2
    factors = torch.ones_like(t)
    for i in reversed(range(len(t) - 1)):
        down = ((1 - t[i + 1]) * (1 - t[i]) * STD**2 + t[i + 1] * t[i]) / variance[i]
        factors[i] = down * factors[i + 1]
    return t[:-1], factors[:-1]


@pytest.mark.parametrize("stage", [-1, 1])
@pytest.mark.parametrize("huber", [None, 0.3])
def test_ecm_has_no_gradient_at_its_minimiser(stage, huber):
    """Stage -1: the denoiser. Later stages: x0 of the step to r, and so on down to no noise. Training reaches it."""
    loss = ECMLoss(diffusion.flow(), "flow", huber=huber, b=0.7)
    times, factors = chain(loss, stage)
    assert len(times) == 1 if stage < 0 else len(times) > 3
    model = Consistency(times, factors)
    t = times[torch.arange(200).repeat_interleave(2) % len(times)]
    x0 = pairs_whose_residuals_cancel(column(1 - t), column(t))
    pair = loss.noise(x0, SEEDS, t, stage=stage)
    losses = loss(model, pair)
    losses.mean().backward()
    assert model.factors.grad.abs().max() < 1e-9
    assert losses.min() > 1e-5
    start = model.factors.detach() * 0.5
    model.factors.data, model.factors.grad = start, None
    optimizer = torch.optim.Adam(model.parameters(), 0.03, betas=(0.8, 0.9))
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / 300) ** 2
        optimizer.zero_grad()
        loss(model, pair).mean().backward()
        optimizer.step()
    torch.testing.assert_close(model.factors.data, factors, rtol=0, atol=1e-4)


def test_ecm_is_its_formula(generator):
    x0 = torch.randn(400, 3, 2, generator=generator, dtype=torch.float64)
    loss = ECMLoss(huber=0.05)
    pair = loss.noise(x0, SEEDS, stage=2)
    eps = noise_of(SEEDS)
    t = loss.times(SEEDS)
    r = (t * (1 - (1 + 8 / (1 + t.exp())) / 8)).clamp(min=0)
    assert (r == 0).sum() == 0 and (r < t).all()
    for at, noised in ((t, pair.at_t), (r, pair.at_r)):
        scale = (at**2 + 0.25).rsqrt()
        torch.testing.assert_close(noised.x_t, column(scale) * (x0 + column(at) * eps), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(noised.t, at.log() / 4, rtol=1e-12, atol=1e-12)
    model = lambda x, t: torch.sin(3 * x) + column(t)  # noqa: E731

    def x0_of(at):
        norm = column((at**2 + 0.25).sqrt())
        x = x0 + column(at) * eps
        return 0.25 / norm**2 * x + column(at) * 0.5 / norm * model(x / norm, at.log() / 4)

    square = ((x0_of(t) - x0_of(r)) ** 2).sum((1, 2))
    expected = ((square + 0.0025).sqrt() - 0.05) / (t - r)
    torch.testing.assert_close(loss(model, pair), expected, rtol=1e-7, atol=1e-12)
    # r = 0 for every sample: the target is x0, and a model that cannot be asked at no noise is not.
    diffusions = loss.noise(x0, SEEDS, stage=-1)
    square = ((x0_of(t) - x0) ** 2).sum((1, 2))
    torch.testing.assert_close(loss(model, diffusions), ((square + 0.0025).sqrt() - 0.05) / t, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_consistency_samples_gaussian_data(steps):
    """The flow's own consistency function x0 = MEAN + STD / s(t) (x - MEAN) gives data's moments after any number of steps."""
    schedule = diffusion.edm()

    def model(x, t):
        sigma = column((4 * t.double()).exp())
        norm = (sigma**2 + 0.25).sqrt()
        state = x * norm
        x0 = MEAN + STD / (STD**2 + sigma**2).sqrt() * (state - MEAN)
        return (x0 - 0.25 / norm**2 * state) * norm / (0.5 * sigma)

    plan = diffusion.consistency(schedule, steps, prediction="F")
    x = diffusion.sample(model, plan, (3, 2), torch.arange(20_000), dtype=torch.float64)
    # The start is noise without data: 80 against STD, so their spread is STD 80 / sqrt(80^2 + STD^2).
    assert x.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert x.std().item() == pytest.approx(STD, rel=0.01)


# --- consistency in continuous time

#: Of the noise at t = pi / 2.
DATA_STD = 0.8


class OwnConsistency(nn.Module):
    """``factor F + slope x + shift``: the output at (1, 0, 0) that means the flow's own x0 of Gaussian data."""

    def __init__(self, posterior=False):
        super().__init__()
        self.posterior = posterior
        self.weights = nn.Parameter(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))

    def forward(self, x, t):
        cos, sin = column(t).cos(), column(t).sin() * DATA_STD
        variance = cos**2 * STD**2 + sin**2
        centred = x - cos * MEAN
        x0 = MEAN + (STD**2 * cos / variance if self.posterior else STD / variance.sqrt()) * centred
        factor, slope, shift = self.weights
        return factor * (cos * x - x0) / sin + slope * x + shift


def angles(generator):
    """Of [0, pi / 2], which float32 holds."""
    return (torch.randint(8, 98, (200,), generator=generator).repeat_interleave(2) / 64).double()


@pytest.mark.parametrize("warmup", [0.0, 1.0])
@pytest.mark.parametrize("constant", [0.1, 0.0])
def test_scm_has_no_gradient_at_its_minimiser(warmup, constant, generator):
    """The flow's own x0, whose derivative along the mean path is 0; without the derivative, the mean of x0."""
    t = angles(generator)
    x0 = pairs_whose_residuals_cancel(column(t.cos()), column(t.sin()) * DATA_STD)
    loss, model = SCMLoss(DATA_STD, constant=constant), OwnConsistency(posterior=warmup == 0)
    noised = loss.noise(x0, SEEDS, t)
    torch.testing.assert_close(noised.x_t[::2], noised.x_t[1::2], rtol=0, atol=1e-12)
    losses = loss(model, noised, warmup=warmup)
    losses.mean().backward()
    assert model.weights.grad.abs().max() < 1e-9
    assert losses.min() > 1e-4
    model.weights.data += torch.tensor([0.01, 0.02, 0.03])
    model.weights.grad = None
    loss(model, noised, warmup=warmup).mean().backward()
    assert model.weights.grad.abs().min() > 1e-5


def test_training_reaches_the_flows_own_consistency(generator):
    t = angles(generator)
    x0 = pairs_whose_residuals_cancel(column(t.cos()), column(t.sin()) * DATA_STD)
    loss, model = SCMLoss(DATA_STD), OwnConsistency()
    noised = loss.noise(x0, SEEDS, t)
    model.weights.data = torch.tensor([0.7, 0.2, -0.3], dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), 0.05, betas=(0.8, 0.9))
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 400) ** 2
        optimizer.zero_grad()
        loss(model, noised).mean().backward()
        optimizer.step()
    torch.testing.assert_close(model.weights.data, torch.tensor([1.0, 0.0, 0.0]).double(), rtol=0, atol=1e-4)


def test_scm_of_float16_is_computed_in_float32():
    """Lengths of 1.3e5, and targets nearer to the output than float16 resolves."""
    loss, seeds = SCMLoss(DATA_STD), torch.arange(2)
    steep = torch.tensor(1500.0, requires_grad=True)
    gradients = []
    for dtype in (torch.float16, torch.float32):
        x0 = pyfold.randn(seeds, (1 << 16,), dtype=dtype)
        noised = loss.noise(x0, seeds, torch.full((2,), math.pi / 4, dtype=torch.float64))
        value = loss(lambda x, t: (steep * t[:, None] + 0 * x).to(x.dtype), noised)
        gradients += torch.autograd.grad(value.sum(), steep)
    assert gradients[1].abs() > 1e-3
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.05, atol=0)


def test_scm_is_its_formula(generator):
    """cos(t) times the derivative of x0 along the sample's own path, by differences; the noise is of data_std."""
    t, x0 = angles(generator), torch.randn(400, 3, 2, generator=generator, dtype=torch.float64)
    loss = SCMLoss(DATA_STD, constant=0.2)
    noised, eps = loss.noise(x0, SEEDS, t), DATA_STD * noise_of(SEEDS)
    model = lambda x, t: torch.sin(2 * x) + column(t) * x  # noqa: E731
    x = lambda t: column(t.cos()) * x0 + column(t.sin()) * eps  # noqa: E731
    torch.testing.assert_close(noised.x_t, x(t), rtol=0, atol=1e-14)
    velocity = column(t.cos()) * eps - column(t.sin()) * x0
    torch.testing.assert_close(noised.target * DATA_STD, velocity, rtol=0, atol=1e-14)

    def mean(t):
        return column(t.cos()) * x(t) - column(t.sin()) * DATA_STD * model(x(t), t)

    h = 1e-6
    g = column(t.cos()) * (mean(t + h) - mean(t - h)) / (2 * h)
    size = g.flatten(1).norm(dim=1)
    torch.testing.assert_close(loss(model, noised), (size / (size + 0.2)) ** 2 / 6, rtol=1e-5, atol=0)
    tangent = loss(model, noised, warmup=0.0)
    g = -(column(t.cos()) ** 2) * (DATA_STD * model(x(t), t) - velocity)
    size = g.flatten(1).norm(dim=1)
    torch.testing.assert_close(tangent, (size / (size + 0.2)) ** 2 / 6, rtol=1e-10, atol=0)
    # The density is of sigma / alpha.
    drawn = loss.times(torch.arange(20_000))
    logs = (drawn.tan() * DATA_STD).log()
    assert logs.mean().item() == pytest.approx(-1, abs=0.05) and logs.std().item() == pytest.approx(1.4, rel=0.05)


def test_scm_samples_gaussian_data():
    plan = diffusion.consistency(diffusion.trigflow(DATA_STD), 2, prediction="trigflow")
    x = diffusion.sample(
        lambda x, t: OwnConsistency()(x, t.double()).detach(), plan, (3, 2), torch.arange(20_000), dtype=torch.float64
    )
    assert x.mean().item() == pytest.approx(MEAN, abs=0.02) and x.std().item() == pytest.approx(STD, rel=0.02)


# --- shortcuts


class Shortcuts(nn.Module):
    """u = -MEAN + a (x - (1 - t) MEAN), with a table of a, one for each step (t, r)."""

    def __init__(self, factors):
        super().__init__()
        self.places = {step: i for i, step in enumerate(factors)}
        self.factors = nn.Parameter(torch.tensor([*factors.values()], dtype=torch.float64))

    def forward(self, x, t, r):
        which = torch.tensor([self.places[step] for step in zip(t.tolist(), r.tolist(), strict=True)])
        return -MEAN + column(self.factors[which]) * (x - (1 - column(t)) * MEAN)


def slope(t):
    """Of the velocity of Gaussian data."""
    return (t - (1 - t) * STD**2) / ((1 - t) ** 2 * STD**2 + t**2)


def shortcuts(levels):
    """Each step's factor: two of half its length, of Euler's two where these are the least. A step scales what is centred."""
    factors = {}
    for level in reversed(range(levels)):
        length = 0.5**level
        for k in range(2**level):
            t, r = (k + 1) * length, k * length
            middle = (t + r) / 2
            least = level == levels - 1
            first = slope(t) if least else factors[t, middle]
            second = slope(middle) if least else factors[middle, r]
            factors[t, r] = (first + second * (1 - length / 2 * first)) / 2
    points = [k * 0.5**levels for k in range(1, 2**levels + 1)]
    return factors | {(t, t): slope(t) for t in points}


def test_shortcuts_have_no_gradient_at_their_minimiser_and_training_reaches_it():
    """Velocities from the samples whose residuals cancel, and steps from the velocities; that of pure noise is given."""
    levels = 3
    factors = shortcuts(levels)
    model, loss = Shortcuts(factors), ShortcutLoss(levels=levels)
    steps = [step for step in factors if step != (1.0, 1.0)]
    which = [steps[i % len(steps)] for i in range(200)]
    t, r = (torch.tensor([step[i] for step in which], dtype=torch.float64).repeat_interleave(2) for i in (0, 1))
    x0 = pairs_whose_residuals_cancel(column(1 - t), column(t))
    interval = loss.noise(torch.where(column(t) < 1, x0, 0.0), SEEDS, t, r)
    losses = loss(model, interval)
    losses.mean().backward()
    assert model.factors.grad.abs().max() < 1e-9
    assert losses[t == r].min() > 1e-3 and losses[t > r].max() < 1e-20
    minimiser = model.factors.detach().clone()
    model.factors.data = minimiser * 0.5
    model.factors.data[model.places[1.0, 1.0]] *= 2
    optimizer = torch.optim.Adam(model.parameters(), 0.05, betas=(0.8, 0.9))
    for step in range(500):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 500) ** 2
        optimizer.zero_grad()
        loss(model, interval).mean().backward()
        optimizer.step()
    torch.testing.assert_close(model.factors.data, minimiser, rtol=0, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_shortcuts_are_eulers_many_steps(steps):
    """One, two or four steps of the minimiser end where 2^levels of the velocity do."""
    levels = 4
    model, plan = Shortcuts(shortcuts(levels)), diffusion.flow_map(diffusion.flow(), steps)
    seeds = torch.arange(20)
    x = diffusion.sample(diffusion.with_next_time(model, plan), plan, (3, 2), seeds, dtype=torch.float64)
    long = diffusion.flow_euler(diffusion.flow(), 2**levels)
    velocity = lambda x, t: -MEAN + column(slope(t)) * (x - (1 - column(t)) * MEAN)  # noqa: E731
    torch.testing.assert_close(x, diffusion.sample(velocity, long, (3, 2), seeds, dtype=torch.float64), rtol=0, atol=1e-6)


def test_steps_of_shortcuts_start_at_multiples_of_their_length():
    loss = ShortcutLoss(levels=3, longer=0.5)
    t, r = loss.times(torch.arange(20_000))
    longer = t > r
    assert longer.double().mean().item() == pytest.approx(0.5, abs=0.02)
    length = (t - r)[longer]
    assert set(length.tolist()) == {1.0, 0.5, 0.25}
    assert ((r[longer] / length) % 1 == 0).all() and t.max() <= 1 and r.min() >= 0
    for each in (1.0, 0.5, 0.25):
        of_length = r[longer][length == each]
        assert len(of_length) / len(length) == pytest.approx(1 / 3, abs=0.02)
        assert set(of_length.tolist()) == {k * each for k in range(round(1 / each))}
    assert t[~longer].mean().item() == pytest.approx(0.5, abs=0.02)


def test_a_compiled_shortcut_has_no_dropout(generator):
    loss, model = ShortcutLoss(), Dropped()
    noised = loss.noise(torch.randn(8, 1, generator=generator), SEEDS[:8])
    with pytest.raises(Exception, match="dropout must be False"):
        torch.compile(lambda: loss(model, noised), fullgraph=True, backend="aot_eager")()


# --- all


def objective(name, **options):
    """(loss, inputs of its model) of a name."""
    if name in ("ecm", "scm"):
        return (ECMLoss if name == "ecm" else SCMLoss)(**options), 2
    if name == "shortcut":
        return ShortcutLoss(longer=0.5, **options), 3
    if name == "anyflow":
        return AnyFlowLoss(**options), 3
    return MeanFlowLoss(tangent="difference" if name == "difference" else "jvp", **options), 3


def network(inputs, seed=0, fold="maxmin"):
    torch.manual_seed(seed)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(
                nn.Linear(4 + inputs - 1, 16), Fold(fold, 16), nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 4)
            )

        def forward(self, x, *times):
            return self.body(torch.cat([x, *(t[:, None].to(x.dtype) for t in times)], 1))

    return Network()


class Dropped(nn.Module):
    """Samples of one number, each kept doubled or dropped: nothing but a mask."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, *times):
        return nn.functional.dropout(self.scale * x, 0.5)


@pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in ("ecm", "jvp", "difference", "scm", "shortcut") for how in ("eager", "compiled")][:-1],
)
def test_dropout_is_the_same_in_every_forward(name, how, generator):
    """Each sample's loss is that of one mask, all dropped or all kept; other masks in the target would be a third value."""
    loss, _ = objective(name)
    x0 = torch.randn(400, 1, generator=generator)
    noised = loss.noise(x0, SEEDS, **({"stage": 1} if name == "ecm" else {}))
    model = Dropped()

    def call(model, noised):
        return loss(model, noised)

    if how == "compiled":
        call = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.manual_seed(5)
    value = call(model, noised)
    value.mean().backward()
    assert model.scale.grad.isfinite() and model.scale.grad
    dropped, kept = (loss(lambda x, *_, factor=factor: factor * x, noised) for factor in (0.0, 2.0))
    near = [(value - each).abs() <= 1e-3 * (1 + each.abs()) for each in (dropped, kept)]
    assert (near[0] | near[1]).all()
    assert all(n.float().mean() > 0.3 for n in near)
    if how == "eager":
        torch.manual_seed(5)
        pyfold_state = torch.get_rng_state()
        model(noised.at_t.x_t if name == "ecm" else noised.x_t)
        moved = torch.get_rng_state()
        torch.set_rng_state(pyfold_state)
        loss(model, noised)
        assert torch.equal(moved, torch.get_rng_state()), "the generator has moved by one forward"


def test_without_dropout_the_generator_is_left_alone(generator):
    """dropout=False: the masks of the forwards differ, as is said."""
    loss = ECMLoss(dropout=False)
    noised = loss.noise(torch.randn(400, 1, generator=generator), SEEDS, stage=1)
    torch.manual_seed(5)
    value = loss(Dropped(), noised)
    alike = [loss(lambda x, *_, factor=factor: factor * x, noised) for factor in (0.0, 2.0)]
    assert not ((value - alike[0]).abs().minimum((value - alike[1]).abs()) < 1e-3).all()


@pytest.mark.parametrize("name", ["ecm", "jvp", "difference", "scm", "shortcut", "anyflow"])
def test_noise_and_times_depend_on_the_seeds_alone(name, generator):
    loss, _ = objective(name)
    x0 = torch.randn(8, 4, generator=generator)
    whole, part = loss.noise(x0, SEEDS[:8]), loss.noise(x0[3:5], SEEDS[3:5])
    if name == "ecm":
        assert torch.equal(whole.at_t.x_t[3:5], part.at_t.x_t) and torch.equal(whole.at_r.x_t[3:5], part.at_r.x_t)
    else:
        assert torch.equal(whole.x_t[3:5], part.x_t) and torch.equal(whole.t[3:5], part.t)
        assert name == "scm" or torch.equal(whole.r[3:5], part.r)
    if name == "jvp":
        t, r = loss.times(torch.arange(20_000))
        assert (r <= t).all() and (r < t).double().mean().item() == pytest.approx(0.25, abs=0.02)


def gradients(loss, model, noised):
    model.zero_grad()
    value = loss(model, noised)
    value.mean().backward()
    return value.detach(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(
    ("name", "fold"),
    [(name, fold) for name in ("ecm", "jvp", "difference") for fold in ("maxmin", "householder")] + [("scm", "maxmin")],
)
def test_compiled_is_eager(name, fold, generator):
    """The whole loss as one graph: values and gradients, folds' derivatives among them, of two batch sizes."""
    loss, inputs = objective(name, dropout=False)
    model = network(inputs, fold=fold)
    compiled = torch.compile(lambda model, noised: loss(model, noised), fullgraph=True, dynamic=True, backend="aot_eager")
    for samples in (6, 9):
        x0 = torch.randn(samples, 4, generator=generator)
        noised = loss.noise(x0, SEEDS[:samples])
        expected, found = (gradients(call, model, noised) for call in (loss, compiled))
        torch.testing.assert_close(found[0], expected[0], rtol=2e-5, atol=1e-6)
        for a, b in zip(found[1], expected[1], strict=True):
            torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-5)
        assert all(g.abs().max() > 0 for g in expected[1])


def test_a_compiled_loss_with_dropout_has_no_other_target(generator):
    loss, model = MeanFlowLoss(), Dropped()
    noised = loss.noise(torch.randn(8, 1, generator=generator), SEEDS[:8])
    with pytest.raises(Exception, match="target_model must be None"):
        torch.compile(lambda: loss(model, noised, target_model=model), fullgraph=True, backend="aot_eager")()


def test_another_model_for_the_target(generator):
    x0 = torch.randn(8, 4, generator=generator)
    for name in ("ecm", "jvp", "scm", "shortcut"):
        loss, inputs = objective(name)
        model, other = network(inputs), network(inputs, 1)
        noised = loss.noise(x0, SEEDS[:8])
        assert torch.equal(loss(model, noised), loss(model, noised, target_model=model))
        assert not torch.equal(loss(model, noised), loss(model, noised, target_model=other))


def test_networks_of_pyfold_take_both(generator):
    """Second order through folds, GroupNorm, attention to memory format: finite and differentiable."""
    x0 = torch.randn(4, 1, 8, 8, generator=generator)
    for name in ("ecm", "jvp", "difference", "scm", "shortcut"):
        loss, inputs = objective(name)
        model = UNet(1, 8, 8, "maxmin", second_time=inputs == 3)
        loss(model, loss.noise(x0, SEEDS[:4])).mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    points = MLPDenoiser(2, 16, activation="abs", second_time=True)
    loss, _ = objective("jvp")
    loss(points, loss.noise(torch.randn(4, 2, generator=generator), SEEDS[:4])).mean().backward()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SCMLoss(constant=-1.0), "constant must be finite and from 0, got -1.0"),
        (lambda: SCMLoss(0.0), "data_std"),
        (lambda: SCMLoss()(Dropped(), SCMLoss().noise(torch.zeros(1, 2), SEEDS[:1]), warmup=2.0), "warmup must be in"),
        (lambda: ShortcutLoss(longer=1.5), "longer must be in"),
        (lambda: ShortcutLoss(levels=0), "levels must be an int from 1 to 20, got 0"),
        (lambda: ShortcutLoss(diffusion.edm()), "schedule must be a flow schedule, got edm"),
        (lambda: ECMLoss(q=1.0), "q must be finite and above 1, got 1.0"),
        (lambda: ECMLoss(huber=-1.0), "huber must be finite and from 0, got -1.0"),
        (lambda: ECMLoss(prediction="noise"), "prediction must be one of"),
        (lambda: ECMLoss().noise(torch.zeros(1, 2), SEEDS[:1], stage=-2), "stage must be finite and from -1, got -2"),
        (lambda: MeanFlowLoss(diffusion.edm()), "schedule must be a flow schedule, got edm"),
        (lambda: MeanFlowLoss(different=2.0), r"different must be in \[0, 1\], got 2.0"),
        (lambda: MeanFlowLoss(power=-1.0), "power must be finite and from 0, got -1.0"),
        (lambda: MeanFlowLoss(constant=0.0), "constant must be finite and above 0, got 0.0"),
        (lambda: MeanFlowLoss(tangent="vjp"), "tangent must be 'jvp' or 'difference', got 'vjp'"),
        (lambda: AnyFlowLoss(to_data=0.6), "to_data must be from 0 to different, 0.5, got 0.6"),
        (lambda: AnyFlowLoss(to_data=-0.1), "to_data must be from 0 to different, 0.5, got -0.1"),
        (lambda: AnyFlowLoss(diffusion.edm()), "schedule must be a flow schedule, got edm"),
        (lambda: MeanFlowLoss(density="normal"), "density must be one of"),
        (lambda: MeanFlowLoss().noise(torch.zeros(1, 2), SEEDS[:1], torch.ones(1)), "t and r must be given both or none"),
        (
            lambda: MeanFlowLoss()(lambda x, t, r: x[:, :1], MeanFlowLoss().noise(torch.zeros(1, 2), SEEDS[:1])),
            r"model must return the shape of its input, \(1, 2\), got \(1, 1\)",
        ),
    ],
)
def test_bad_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_each_consistency_step_brings_samples_nearer_to_the_data():
    """Of a model that says the mean of x0, for Gaussian data; from the least noise it changes next to nothing."""
    schedule = diffusion.edm()

    def mean(x, t):
        variance = (4 * t.double()).exp().reshape(-1, 1).float() ** 2  # the model is told log(sigma) / 4
        return 0.25 / (0.25 + variance) ** 0.5 * x  # x is scaled by the root

    def spread(steps, **options):
        plan = diffusion.consistency(schedule, steps, prediction="x0", **options)
        return diffusion.sample(mean, plan, (4000,), [1]).std().item()

    one, two, four = (spread(steps) for steps in (1, 2, 4))
    # std 0.25 / (0.25 + sigma^2) (std + sigma z) of each step, from sigma 80, then 0.99.
    sigma = math.tan(math.atan(80) / 2)
    assert one == pytest.approx(0.25 / 80, rel=0.1)
    assert two == pytest.approx(0.25 / (0.25 + sigma**2) * (one**2 + sigma**2) ** 0.5, rel=0.1)
    assert one < two < four < 0.5
    assert spread(2, spacing="karras") < 0.1 * two
