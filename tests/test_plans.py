"""A plan has one truth: its rows; and a loop one state, whoever runs it. Each of these was silently wrong once."""

import dataclasses
import gc
import inspect

import pytest
import torch

from pyfold import diffusion
from pyfold.diffusion import SAMPLERS

SEEDS = [3, 1]
SCHEDULE = diffusion.vp_linear()


def half(x, t):
    return 0.5 * x


def test_replaced_rows_are_the_ones_that_run():
    plan = diffusion.euler(SCHEDULE, 4, prediction="x0")
    first = diffusion.sample(half, plan, (5,), SEEDS)
    scaled = tuple({**row, "a": 2 * row["a"]} for row in plan.rows)
    other = dataclasses.replace(plan, rows=scaled)
    made = diffusion.sample(half, other, (5,), SEEDS)
    by_hand = diffusion.sample(
        half, diffusion.Plan(**{f.name: getattr(other, f.name) for f in dataclasses.fields(other) if f.init}), (5,), SEEDS
    )
    assert torch.equal(made, by_hand) and not torch.equal(made, first)
    assert torch.equal(diffusion.sample(half, plan, (5,), SEEDS), first)


def test_a_plan_does_not_change():
    plan = diffusion.euler(SCHEDULE, 4, prediction="x0")
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.rows = ()
    with pytest.raises(TypeError):
        plan.rows[0]["a"] = 2.0
    with pytest.raises(ValueError, match="read-only"):
        plan.times[0] = 1.0


def test_a_plan_holds_no_more_for_every_batch_size():
    """Servers see batches of all sizes: tensors that are alive after 1,500 of them are as many as after ten."""
    plan = diffusion.dpmpp_multistep(diffusion.vp_linear(), 3)

    def held(sizes):
        for size in sizes:
            diffusion.sample(lambda x, t: x, plan, (1,), list(range(size)))
            history = []
            for stage in range(len(plan)):
                x = torch.zeros(size, 1)
                plan.step(x, x, torch.full((size,), stage), history=history)
        del x, history
        gc.collect()
        return sum(type(thing) is torch.Tensor for thing in gc.get_objects())

    few = held(range(1, 11))
    assert held(range(11, 1501)) <= few


def test_each_stage_raises_the_version_of_the_state():
    """So that a graph over the state is refused, not differentiated at values that were overwritten."""
    seen, kept = [], []
    weight = torch.tensor(1.5, requires_grad=True)

    def model(x, t):
        seen.append(x._version)
        with torch.enable_grad():
            kept.append((weight * x * x).sum())
        return 0.5 * x.detach()

    diffusion.sample(model, diffusion.euler(SCHEDULE, 4, prediction="x0"), (5,), SEEDS)
    assert seen == sorted(set(seen)) and len(seen) == 4
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept[0].backward()


@pytest.mark.parametrize("name", ["dpmpp_multistep", "lms", "unipc", "deis", "sa_solver"])
def test_an_own_loop_that_forgets_its_history_raises(name):
    plan = SAMPLERS[name](SCHEDULE, 5, prediction="x0")
    x = torch.ones(2, 3)
    seeds = torch.tensor(SEEDS) if plan.noisy else None

    def stage(i, history):
        return plan.step(x, half(x, None), torch.tensor([i]), history=history, seeds=seeds, stage=i)

    looking_back = next(i for i, row in enumerate(plan.rows) if row.get("b1"))
    with pytest.raises(ValueError, match=rf"history must hold \d earlier values at stage {looking_back} .*got 0"):
        stage(looking_back, [])
    history = []
    for i in range(len(plan)):
        stage(i, history)


@pytest.mark.parametrize("name", ["dpmpp_sde", "seeds_2", "seeds_3", "euler_ancestral"])
def test_noise_is_asked_for_once(name):
    asked = []

    def noise(n):
        asked.append(n)
        return torch.zeros(2, 3)

    diffusion.sample(half, SAMPLERS[name](SCHEDULE, 4, prediction="x0"), (3,), SEEDS, noise=noise)
    assert len(asked) == len(set(asked)) > 0


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if sampler.alias_of])
def test_aliases_are_their_samplers(name):
    alias = SAMPLERS[name]
    sampler = SAMPLERS[alias.alias_of]
    defaults = {
        p: v.default for p, v in inspect.signature(alias).parameters.items() if v.default is not inspect.Parameter.empty
    }
    options = {k: v for k, v in defaults.items() if k not in ("steps",)}
    assert getattr(diffusion, name) is alias
    a, b = alias(SCHEDULE, 6), sampler(SCHEDULE, 6, **options)
    assert [dict(row) for row in a.rows] == [dict(row) for row in b.rows]


@pytest.mark.parametrize("name", SAMPLERS)
def test_help_is_complete(name):
    """Every argument, what comes back, what is refused, and where the formula is published."""
    sampler = SAMPLERS[name]
    text = inspect.getdoc(sampler)
    for argument in inspect.signature(sampler).parameters:
        assert f"\n    {argument}: " in text, argument
    for part in ("Source: ", "Returns:", "Raises:"):
        assert part in text, part


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_log_prob_of_half_precision_states_sees_the_policy(dtype):
    """flow_grpo#104: summed in a half type, a change of the model's output of 1 % changed nothing."""
    plan = diffusion.ddpm(SCHEDULE, 50, prediction="x0", clip=None)
    generator = torch.Generator().manual_seed(0)
    x, after, output = (torch.randn(2, 4096, generator=generator).to(dtype) for _ in range(3))
    index = torch.tensor([30])
    found = plan.log_prob(x, output, index, after)
    exact = plan.log_prob(x.double(), output.double(), index, after.double())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0.05)
    moved = plan.log_prob(x, 1.01 * output.float(), index, after) - found
    expected = plan.log_prob(x.double(), 1.01 * output.double(), index, after.double()) - exact
    torch.testing.assert_close(moved.double(), expected, rtol=0.02, atol=0.05)
