"""The virtual Brownian path: its law, and that it does not depend on who asks for what."""

import math
from functools import partial

import pytest
import torch

import pyfold
from pyfold import diffusion
from pyfold.diffusion import BrownianPath, spacings

SEEDS = torch.tensor([3, 1, 4])


@pytest.fixture(autouse=True)
def _one_thread():
    """Loops of small steps: threads that wait for each other on a busy machine would be all of their time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_it_is_a_function():
    """Of the seed and the time: in any order, batch and company."""
    path = BrownianPath(SEEDS, (50,), 0.0, 10.0)
    times = [0.0, 0.3, 7.7, 10.0, 5.0]
    values = {t: path(t) for t in times}
    again = BrownianPath(SEEDS[1:2], (50,), 0.0, 10.0)
    for t in reversed(times):
        assert torch.equal(again(t)[0], values[t][1])
    assert not values[0.0].any()
    # Its end is the first draw alone.
    end = pyfold.randn(SEEDS, (50,), stream=diffusion.BROWNIAN_STREAM) * math.sqrt(10)
    torch.testing.assert_close(values[10.0], end, rtol=1e-6, atol=1e-6)


def test_one_seed_is_one_sample_of_any_shape():
    for shape in ((), (0, 2), (2,)):
        whole = BrownianPath(torch.tensor([7]), shape, 0.0, 1.0)(0.5)
        assert whole.shape == (1, *shape)
        for seed in (7, torch.tensor(7)):
            assert torch.equal(BrownianPath(seed, shape, 0.0, 1.0)(0.5), whole)


def test_its_law():
    """Increments over disjoint intervals: variance their length, no correlation; within 5 standard errors."""
    count = 40_000
    path = BrownianPath(torch.tensor([9]), (count,), 1.0, 9.0, dtype=torch.float64)
    times = [1.0, 1.7, 2.0, 4.9, 5.1, 9.0]
    values = [path(t)[0] for t in times]
    increments = torch.stack(
        [(b - a) / math.sqrt(t - s) for a, b, s, t in zip(values, values[1:], times, times[1:], strict=False)]
    )
    covariance = increments @ increments.T / count
    expected = torch.eye(5, dtype=torch.float64)
    assert (covariance - expected).abs().max() < 5 * math.sqrt(2 / count)


@pytest.mark.parametrize(("low", "high"), [(0.0292, 14.6), (0.3, 500.0)], ids=["Karras", "EDM"])
def test_small_steps_have_the_law_of_large_ones(low, high):
    """A thousand Karras steps: unit variance and no correlation of neighbours, within 5 standard errors."""
    ramp = torch.linspace(high ** (1 / 7), low ** (1 / 7), 1001, dtype=torch.float64) ** 7
    times = [high, *ramp[1:-1].tolist(), low]
    path = BrownianPath(torch.tensor([9]), (64,), low, high, dtype=torch.float64)
    normals = torch.stack([path.normal(a, b)[0] for a, b in zip(times, times[1:], strict=False)])
    for quarter in normals.chunk(4):
        assert abs(quarter.square().mean() - 1) < 5 * math.sqrt(2 / quarter.numel())
        assert abs((quarter[1:] * quarter[:-1]).mean()) < 5 / math.sqrt(quarter.numel())


def test_steps_below_the_resolution_are_refused():
    path = BrownianPath(SEEDS, (2,), 0.0, 1.0, depth=3)
    assert path.resolution == 0.125
    assert path.normal(0.5, 0.25).shape == (3, 2)
    with pytest.raises(ValueError, match=r"start and end.*0\.125 apart"):
        path.normal(0.5, 0.4)


@pytest.mark.parametrize(
    "sampler",
    [
        diffusion.euler_ancestral,
        diffusion.dpmpp_sde,
        partial(diffusion.dpmpp_multistep, eta=1.0),
        partial(diffusion.seeds_2, eta=1.0),
    ],
    ids=["euler_ancestral", "dpmpp_sde", "dpmpp_multistep", "seeds"],
)
def test_more_steps_refine_the_same_sample(sampler):
    """With the path the difference between step numbers is the method's error; with fresh noise it is another sample."""
    schedule, variance = diffusion.edm(), 0.5
    start = pyfold.randn(SEEDS, (400,), dtype=torch.float64) * 5

    def run(steps, path):
        points = spacings.exponential(schedule, steps, sigma_min=0.05, sigma_max=5.0)
        plan = sampler(schedule, prediction="x0", spacing=points)
        levels = iter(plan.points)

        def model(x, t):
            p = next(levels)
            x = x / schedule.input_scale(1.0, p.sigma)
            return torch.tanh(3 * variance / (variance + p.sigma**2) * x)

        noise = diffusion.brownian_noise(plan, SEEDS, (400,), 0.01, 10.0, dtype=torch.float64) if path else None
        return diffusion.sample(model, plan, (400,), SEEDS, x=start, noise=noise, dtype=torch.float64)

    def distance(path):
        return (run(40, path) - run(80, path)).pow(2).mean().sqrt().item()

    fresh, same = distance(path=False), distance(path=True)
    assert same < 0.5 * fresh, (same, fresh)


def test_bad_paths():
    with pytest.raises(ValueError, match="low and high"):
        BrownianPath(SEEDS, (2,), 1.0, 1.0)
    with pytest.raises(ValueError, match=r"depth.*40"):
        BrownianPath(SEEDS, (2,), 0.0, 1.0, depth=40)
    with pytest.raises(ValueError, match="t must be"):
        BrownianPath(SEEDS, (2,), 0.0, 1.0)(math.nan)
    plan = diffusion.heun(diffusion.vp_linear(), 5)
    noise = diffusion.brownian_noise(plan, SEEDS, (2,), 100.0, 200.0)
    with pytest.raises(ValueError, match="less noise at stage 3"):
        noise(3)
