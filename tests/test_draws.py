"""A draw's address is its place on the trajectory: a run in parts, chained or resumed has the unbroken run's bits."""

import struct

import numpy as np
import pytest
import torch

import pyfold
from pyfold import diffusion
from pyfold._vectors import OPTIONS, SCHEDULE_OF
from pyfold.diffusion import SAMPLERS, spacings
from pyfold.diffusion.draws import Addresses, address, stream_and_step
from pyfold.ops import _noise_reference

NAMES = [name for name, made in SAMPLERS.items() if not made.alias_of]
#: Those whose steps do not look back take points one after another.
ON_POINTS = [name for name in NAMES if "before" in SAMPLERS[name].__signature__.parameters]
SHAPE, SEEDS = (7,), [3, 2**64 - 1]


def schedule_of(name):
    return diffusion.SCHEDULES["flow" if name.startswith("flow_") else SCHEDULE_OF.get(name, "vp_linear")]()


def plan_of(name, steps=7, **options):
    return SAMPLERS[name](schedule_of(name), steps, **{**OPTIONS.get(name, {}), **options})


def halves(x, t):
    return 0.5 * x


def states(plan, **options):
    """The states before each stage, and the last."""
    seen = []
    end = diffusion.sample(halves, plan, SHAPE, SEEDS, callback=lambda i, x: seen.append(x.clone()), **options)
    return [None, *seen[:-1], end]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_in_parts_has_the_unbroken_runs_bits(name):
    plan = plan_of(name)
    whole = states(plan)
    for cut in plan.step_starts[1:]:
        history = []
        first = diffusion.sample(halves, plan[:cut], SHAPE, SEEDS, history=history)
        assert torch.equal(first, whole[cut])
        assert torch.equal(diffusion.sample(halves, plan[cut:], SHAPE, SEEDS, x=first, history=history), whole[-1])
    parts = [plan[a:b] for a, b in zip(plan.step_starts, [*plan.step_starts[1:], len(plan)], strict=True)]
    x, history = None, []
    for part in parts:
        x = diffusion.sample(halves, part, SHAPE, SEEDS, x=x, history=history)
    assert torch.equal(x, whole[-1])
    assert parts[0].draws[:-1] == plan.draws[: len(parts[0])] and plan[:].draws == plan.draws


@pytest.mark.parametrize("name", ON_POINTS)
def test_points_from_the_middle_draw_what_the_whole_draws(name):
    schedule, options = schedule_of(name), dict(OPTIONS.get(name, {}))
    if name == "edm_stochastic":
        options["churn"] = 1e9  # the greatest, whatever the number of steps
    points = spacings.exponential(schedule, 7, **({"sigma_max": 0.99} if schedule.is_flow else {}))
    plan = SAMPLERS[name](schedule, spacing=points, **options)
    for k in range(1, len(points) - 1):
        tail = SAMPLERS[name](schedule, spacing=points[k:], **options)
        start = len(plan) - len(tail)
        churned = tail.start_churn is not None
        if plan.noisy:
            assert tail.draws[:-1] == plan.draws[start:-1]
        # A churn before the part is the one at the end of the step before.
        assert not churned or tail.draws[-1] == plan.draws[start - 1]
        if not plan.history and not churned:
            x = states(plan)[start]
            assert torch.equal(diffusion.sample(halves, tail, SHAPE, SEEDS, x=x), states(plan)[-1])


@pytest.mark.parametrize("name", NAMES)
def test_no_two_draws_of_a_run_share_an_address(name):
    plan = plan_of(name, 40)
    used = plan.draws if plan.start_churn is not None else plan.draws[:-1]
    assert len(set(used)) == len(used) and all(0 <= n < 2**53 for n in used)
    assert {int(row[f"n{k}"]) for row in plan.rows for k in (1, 2, 3) if row.get(f"d{k}")} <= set(used)


def by_the_page(ratio, visit, draw, seed, size):
    """docs/noise.md, "A sampler's draws", in NumPy."""
    (level,) = struct.unpack("<I", struct.pack("<f", np.float32(ratio)))
    k = draw if visit == 0 else 2**20 + 2**11 * (visit - 1) + draw
    return _noise_reference.randn([seed], (size,), stream=1 + 2048 * k, step=level)[0]


def test_an_address_to_the_bit():
    assert address(1.0) == 0x3F800000 and address(0.0) == 0 and address(float("inf")) == 0x7F800000
    assert address(1.0 + 2**-30) == address(1.0)
    assert address(0.5, visit=0, draw=3) == 3 << 32 | 0x3F000000
    assert address(0.5, visit=2, draw=3) == (2**20 + 2**11 + 3) << 32 | 0x3F000000
    assert stream_and_step(address(0.5, 1)) == {"stream": 1 + 2048 * 2**20, "step": 0x3F000000}
    last = address(0.5, visit=512, draw=2**11 - 1)
    assert last < 2**53 and stream_and_step(last)["stream"] < 2**32
    for visit, draw in ((513, 0), (-1, 0), (0, 2**20), (1, 2**11), (0, -1)):
        with pytest.raises(ValueError, match=r"visit|draw"):
            address(0.5, visit, draw)
    for visit, draw in ((0, 0), (0, 2), (3, 1)):
        drawn = pyfold.randn([9], (6,), **stream_and_step(address(0.37, visit, draw)))[0]
        assert np.array_equal(drawn.numpy(), by_the_page(0.37, visit, draw, 9, 6))


def test_a_step_draws_by_the_page():
    plan = diffusion.euler_ancestral(diffusion.edm(), 5, prediction="x0", spacing="karras")
    x, i = torch.zeros(1, 6), torch.tensor([2])
    step = plan.step(x, x, i, seeds=torch.tensor([9])) / plan.rows[2]["d1"]
    expected = by_the_page(plan.points[3].ratio, 0, 0, 9, 6)
    torch.testing.assert_close(step[0], torch.from_numpy(expected), rtol=1e-6, atol=1e-6)
    assert torch.equal(plan.draw(2, [9], (6,))[0], torch.from_numpy(expected))


def test_returns_to_a_level_draw_anew():
    """A restart: down to 0.5, noised up to 2 again, down again; the second part is told of the first."""
    ve = diffusion.ve()
    down = [ve.at_ratio(r) for r in (4.0, 2.0, 1.0, 0.5)]
    again = down[1:]
    first = diffusion.euler_ancestral(ve, spacing=down)
    blind = diffusion.euler_ancestral(ve, spacing=again)
    informed = diffusion.euler_ancestral(ve, spacing=again, before=down)
    assert blind.draws == first.draws[1:]
    assert not {*informed.draws[:-1]} & {*first.draws[:-1]}
    assert [n & 0xFFFFFFFF for n in informed.draws] == [n & 0xFFFFFFFF for n in blind.draws]
    third = diffusion.euler_ancestral(ve, spacing=again, before=[*down, *again])
    assert len({*first.draws[:-1], *informed.draws[:-1], *third.draws[:-1]}) == 7
    # The middle of the second pass, told of all before it, draws as the second pass does.
    assert diffusion.euler_ancestral(ve, spacing=again[1:], before=[*down, again[0]]).draws == informed.draws[1:]
    with pytest.raises(TypeError, match="before"):
        diffusion.euler_ancestral(ve, spacing=again, before=[1.0])


def test_levels_that_meet_in_float32_are_visits():
    at = Addresses()
    points = [diffusion.Point(0.0, 1.0, ratio) for ratio in (1.0, 0.5 * (1 + 1e-12), 0.5)]
    first = at.step(points[0], points[1], [None])
    second = at.step(points[1], points[2], [None])
    assert first == [address(0.5)] and second == [address(0.5, visit=1)]
    # A churned level that is another's.
    assert at.step(points[2], points[0], [points[1]])[0] not in (*first, *second)


def test_parts_of_a_plan_are_whole_steps():
    plan = diffusion.heun(diffusion.vp_linear(), 4)
    for wrong in (slice(1, 4), slice(0, 3), slice(2, 2), slice(0, 4, 2), slice(4, 2)):
        with pytest.raises(ValueError, match="part of heun"):
            plan[wrong]
    with pytest.raises(TypeError, match="slices"):
        plan[2]
    with pytest.raises(ValueError, match="x must be given"):
        diffusion.sample(halves, plan[2:], SHAPE, SEEDS)
    assert len(plan[2:]) == 5 and len(plan[-1:]) == 1


@pytest.mark.parametrize("seeds", [[2**64 - 1], [-1], [np.uint64(2**64 - 1)], np.array([-1]), -1, 2**64 - 1])
def test_any_64_bit_number_is_a_seed(seeds):
    plan = diffusion.euler_ancestral(diffusion.vp_linear(), 4)
    expected = diffusion.sample(halves, plan, SHAPE, torch.tensor([-1]))
    assert torch.equal(diffusion.sample(halves, plan, SHAPE, seeds), expected)
    assert torch.equal(plan.draw(1, seeds, SHAPE), plan.draw(1, [-1], SHAPE))
    path = diffusion.BrownianPath(seeds, SHAPE, 0.1, 1.0)
    assert torch.equal(path(0.5), diffusion.BrownianPath(torch.tensor([-1]), SHAPE, 0.1, 1.0)(0.5))


@pytest.mark.parametrize("shape", [(0, 4), (2, 4)])
def test_sizes_may_be_numpys(shape):
    plan, sizes = diffusion.euler_ancestral(diffusion.vp_linear(), 4), tuple(np.int64(size) for size in shape)
    assert torch.equal(diffusion.sample(halves, plan, sizes, [5]), diffusion.sample(halves, plan, shape, [5]))
    assert torch.equal(pyfold.randn([5], sizes), pyfold.randn([5], shape))


def test_one_seed_for_all():
    plan = diffusion.euler_ancestral(diffusion.vp_linear(), 4)
    x = pyfold.randn([1, 2, 3], SHAPE)
    result = diffusion.sample(halves, plan, SHAPE, 5, x=x)
    assert torch.equal(result, diffusion.sample(halves, plan, SHAPE, [5, 5, 5], x=x))
