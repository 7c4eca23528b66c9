"""Policies that are samplers: steps against their papers' formulas, log-probabilities, replay from seeds."""

import math

import pytest
import torch

from pyfold import diffusion
from pyfold.diffusion import rl

FLOW, SHAPE = diffusion.flow(), (3, 8)
PLANS = {
    "flow_grpo": lambda n: rl.policy_sde(FLOW, n),
    "dance_grpo": lambda n: rl.policy_sde(FLOW, n, rate="dance_grpo", noise_level=0.3),
    "cps": lambda n: rl.policy_cps(FLOW, n),
    "flow_sde": lambda n: diffusion.flow_sde(FLOW, n),
    "ddpm": lambda n: diffusion.ddpm(diffusion.vp_linear(), n, clip=None),
}


def model(x, t):
    return torch.tanh(x) + 0.1 * t.reshape(-1, 1, 1)


@pytest.mark.parametrize("name", ["flow_grpo", "dance_grpo", "cps"])
def test_steps_against_the_papers(name):
    plan, generator = PLANS[name](6), torch.Generator().manual_seed(1)
    x, v = (torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))
    ends = [p.sigma for p in plan.points] + [0.0]
    for i, (t, t2) in enumerate(zip(ends, ends[1:], strict=False)):
        e = plan.draw(i, [4, 5], SHAPE, dtype=torch.float64)
        if name == "cps":
            x0, x1 = x - t * v, x + (1 - t) * v
            angle = 0.7 * math.pi / 2
            expected = (1 - t2) * x0 + t2 * math.cos(angle) * x1 + t2 * math.sin(angle) * e
        else:
            safe = t if t < 1 else t2
            s = 0.7 * math.sqrt(t / (1 - safe)) if name == "flow_grpo" else 0.3
            dt = t2 - t
            expected = x + (v + s**2 / (2 * t) * (x + (1 - t) * v)) * dt + s * math.sqrt(-dt) * e
        result = plan.step(x, v, torch.tensor([i]), seeds=torch.tensor([4, 5]))
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PLANS)
def test_log_prob_is_the_normal_density(name):
    plan = PLANS[name](6)
    seeds, i = torch.tensor([4, 5]), torch.tensor([2])
    x = torch.randn(2, *SHAPE, dtype=torch.float64)
    m = torch.randn(2, *SHAPE, dtype=torch.float64, requires_grad=True)
    after = plan.step(x, m.detach(), i, seeds=seeds)
    mean = plan.step(x, m, i, noise=torch.zeros_like(x))
    density = torch.distributions.Normal(mean, plan.rows[2]["d1"]).log_prob(after).flatten(1)
    for reduce, expected in (("mean", density.mean(1)), ("sum", density.sum(1))):
        found = rl.log_prob(plan, x, m, i, after, reduce=reduce)
        assert torch.equal(found, rl.log_prob(plan, x, m, i, after)) == (reduce == "mean")  # the papers' convention
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        grads = [torch.autograd.grad(v.sum(), m, retain_graph=True)[0] for v in (found, expected)]
        torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", PLANS)
def test_the_ratio_of_an_unchanged_policy_is_one(name):
    """Exactly, over splits and order, with and without a gradient."""
    plan, seeds = PLANS[name](6), [3, -1, 2**64 - 9, 7]

    def values(some, gradient):
        found = []
        for i, x, models, after in rl.replay(model, plan, SHAPE, some):
            with torch.set_grad_enabled(gradient):
                models = models.clone().requires_grad_(gradient)
                if plan.rows[i].get("d1"):
                    found.append(rl.log_prob(plan, x, models, torch.tensor([i]), after).detach())
        return torch.stack(found, 1)

    whole = values(seeds, False)
    assert whole.isfinite().all() and whole.shape[1] >= 5
    again = torch.cat([values([seed], True) for seed in reversed(seeds)]).flip(0)
    assert torch.equal((again - whole).exp(), torch.ones_like(whole))


def test_a_replay_is_the_run():
    plan = PLANS["flow_grpo"](5)
    *_, (_, _, _, end) = rl.replay(model, plan, SHAPE, [1, 2])
    assert torch.equal(end, diffusion.sample(model, plan, SHAPE, [1, 2]))


def test_half_precision_states_are_summed_wide():
    plan, i = PLANS["cps"](6), torch.tensor([1])
    x, m = (torch.randn(2, 4096, dtype=torch.bfloat16) for _ in range(2))
    after = (0.9 * x).to(torch.bfloat16)
    found = rl.log_prob(plan, x, m, i, after)
    exact = rl.log_prob(plan, x.double(), m.double(), i, after.double())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


def test_what_is_refused():
    plan, x = PLANS["cps"](4), torch.zeros(1, *SHAPE)
    with pytest.raises(ValueError, match="reduce.*max"):
        rl.log_prob(plan, x, x, torch.tensor([0]), x, reduce="max")
    multistep = diffusion.unipc(FLOW, 4, prediction="flow")
    with pytest.raises(ValueError, match="no history"):
        rl.log_prob(multistep, x, x, torch.tensor([0]), x)
    with pytest.raises(ValueError, match="no history"):
        next(rl.replay(model, multistep, SHAPE, [0]))
    assert rl.log_prob(plan, x, x, torch.tensor([3]), x).isnan().all()
