"""A batch of different requests: each has the bits of running alone."""

import random

import pytest
import torch

from pyfold import diffusion
from pyfold.diffusion import SAMPLERS, serve

SHAPE = (3, 5)
SCHEDULES = {name: diffusion.SCHEDULES[name]() for name in ("vp_linear", "edm", "flow")}


def model(x, t):
    """A sample's output depends on the sample alone."""
    t = t.reshape(-1, 1, 1).to(x.dtype)
    return 0.5 * x + 0.01 * t, 0.25 * x - 0.01 * t


def alone(x, t):
    return model(x, t)[0]


def plans(count, rng):
    """Plans of random samplers, step counts and guidance."""
    found = []
    names = [name for name, made in SAMPLERS.items() if not made.alias_of]
    while len(found) < count:
        name, schedule = rng.choice(names), SCHEDULES[rng.choice(list(SCHEDULES))]
        try:
            plan = SAMPLERS[name](schedule, rng.randint(2, 9))
            kind = rng.random()
            plan = diffusion.guided_plus_plus(plan, 0.6) if kind < 0.2 else plan
            plan = diffusion.guided(plan, rng.choice([1.5, 7.0])) if kind > 0.6 else plan
        except (ValueError, ZeroDivisionError):
            continue
        found.append(plan)
    return found


def expected(plan, seed):
    of = model if " guidance" in plan.name or "CFG++" in plan.name else alone
    return diffusion.sample(of, plan, SHAPE, [seed])[0]


def test_hundreds_of_requests_have_their_own_bits():
    """They join and leave at any step; some are cancelled."""
    rng = random.Random(5)
    choice = plans(60, rng)
    assert len({p.name for p in choice}) > 25
    waiting = [(rng.choice(choice), rng.randrange(2**64)) for _ in range(300)]
    batch = serve.Batch(12, SHAPE, rows=64)
    running, ended, cancelled = {}, 0, 0
    while waiting or running:
        while waiting and len(batch) < 12 and rng.random() < 0.7:
            plan, seed = waiting.pop()
            running[batch.join(plan, seed)] = plan, seed
        if running and rng.random() < 0.05:
            slot = rng.choice(list(running))
            batch.leave(slot)
            del running[slot]
            cancelled += 1
        for slot in batch.step(model):
            plan, seed = running.pop(slot)
            assert torch.equal(batch.take(slot), expected(plan, seed)), plan.name
            ended += 1
    assert ended + cancelled == 300 and cancelled > 5 and len(batch) == 0


@pytest.mark.parametrize("name", [name for name, made in SAMPLERS.items() if not made.alias_of])
def test_every_sampler_beside_another(name):
    schedule = SCHEDULES["flow" if name.startswith("flow_") else "vp_linear"]
    plan, other = SAMPLERS[name](schedule, 6), diffusion.unipc(SCHEDULES["vp_linear"], 9)
    batch = serve.Batch(3, SHAPE)
    beside = batch.join(other, 1)
    batch.step(model)
    slot = batch.join(plan, 2**63 + 5)
    ended = [slot for _ in range(len(plan)) for slot in batch.step(model)]
    assert slot in ended and torch.equal(batch.take(slot), expected(plan, 2**63 + 5))
    while beside not in ended:
        ended += batch.step(model)
    assert torch.equal(batch.take(beside), expected(other, 1))


def test_a_model_sees_slots_up_to_the_highest_that_is_taken():
    batch, seen = serve.Batch(4, SHAPE), []

    def counted(x, t):
        seen.append((len(x), len(t)))
        return alone(x, t)

    slots = [batch.join(diffusion.euler(SCHEDULES["edm"], 5), seed) for seed in range(3)]
    for slot in slots[::-1]:
        batch.step(counted)
        batch.leave(slot)
    assert slots == [0, 1, 2] and seen == [(3, 3), (2, 2), (1, 1)]


def test_a_model_in_bfloat16():
    plan = diffusion.dpmpp_multistep(SCHEDULES["edm"], 6, order=3)
    batch = serve.Batch(2, SHAPE, dtype=torch.bfloat16)
    slots = [batch.join(plan, seed) for seed in (3, 4)]
    while not (ended := batch.step(alone)):
        pass
    assert ended == slots
    whole = diffusion.sample(alone, plan, SHAPE, [3, 4], dtype=torch.bfloat16)
    assert torch.equal(torch.stack([batch.take(slot) for slot in slots]), whole)


def test_keys_of_requests():
    """The noise of a key alone, beside seeds; a slot's last key does not stay."""
    plan, words = diffusion.euler_ancestral(SCHEDULES["edm"], 4), torch.tensor([[5, 2**40 + 1], [-5, -1]])
    keys = words.view(torch.uint64)
    batch = serve.Batch(3, SHAPE)
    slots = [batch.join(plan, keys[0]), batch.join(plan, keys[1:]), batch.join(plan, torch.tensor(-5))]
    while not batch.step(alone):
        pass
    found = torch.stack([batch.take(slot) for slot in slots])
    assert torch.equal(found[:2], diffusion.sample(alone, plan, SHAPE, keys))
    assert torch.equal(found[2], expected(plan, -5)) and not torch.equal(found[1], found[2])
    slot = batch.join(plan, 5)
    while not batch.step(alone):
        pass
    assert torch.equal(batch.take(slot), expected(plan, 5))


def test_starting_from_a_state():
    plan = diffusion.ddim(SCHEDULES["vp_linear"], 5, eta=1.0)
    x = torch.randn(1, *SHAPE)
    batch = serve.Batch(1, SHAPE)
    slot = batch.join(plan, 9, x=x)
    while not batch.step(alone):
        pass
    assert torch.equal(batch.take(slot), diffusion.sample(alone, plan, SHAPE, [9], x=x)[0])


def test_plans_share_one_table_whose_rows_in_use_stay():
    batch = serve.Batch(4, SHAPE, rows=16)
    a, b = diffusion.euler(SCHEDULES["edm"], 5), diffusion.euler(SCHEDULES["edm"], 8)
    first = batch.join(a, 1)
    second = batch.join(a, 2)
    memory = batch.table.coefficients.data_ptr()
    assert batch.index[first] == batch.index[second] == 1
    third = batch.join(b, 3)
    assert batch.index[third] == 7 and batch.table.coefficients.data_ptr() == memory
    batch.leave(third)
    # Nobody's rows give way before the table grows.
    fourth = batch.join(diffusion.euler(SCHEDULES["edm"], 7), 4)
    assert batch.index[fourth] == 7 and len(batch.table.times) == 16
    batch.join(diffusion.euler(SCHEDULES["edm"], 30), 5)
    assert len(batch.table.times) > 16 and batch.index[first] == 1


def test_what_a_batch_refuses():
    batch = serve.Batch(1, SHAPE)
    batch.join(diffusion.euler(SCHEDULES["edm"], 3), 0)
    with pytest.raises(RuntimeError, match="all 1 slots"):
        batch.join(diffusion.euler(SCHEDULES["edm"], 3), 0)
    batch.leave(0)
    with pytest.raises(ValueError, match="slot.*0"):
        batch.leave(0)
    with pytest.raises(ValueError, match="learned"):
        batch.join(diffusion.ddpm(SCHEDULES["vp_linear"], 4, variance="learned"), 0)
    for seed in (torch.zeros(2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64).view(torch.uint64)):
        with pytest.raises(ValueError, match="seed"):
            batch.join(diffusion.euler(SCHEDULES["edm"], 3), seed)
    with pytest.raises(ValueError, match="slots.*0"):
        serve.Batch(0, SHAPE)
    with pytest.raises(TypeError, match="dtype.*float64"):
        serve.Batch(1, SHAPE, dtype=torch.float64)
    assert batch.step(model) == []


def test_a_model_that_fails_loses_nothing():
    """A wrong output is refused; the batch then goes on as if it had not been asked."""
    schedule = diffusion.vp_linear()
    plan = diffusion.unipc(schedule, 5)
    batch, alone = serve.Batch(2, (3, 4)), diffusion.sample(lambda x, t: x * 0.5, plan, (3, 4), [7])
    slot = batch.join(plan, 7)
    ended = []
    for _ in range(5):
        with pytest.raises((TypeError, ValueError)):
            batch.step(lambda x, t: x[:, :2])
        ended += batch.step(lambda x, t: x * 0.5)
    assert ended == [slot] and torch.equal(batch.take(slot), alone[0])
