"""diffusers' classes draw at the addresses of docs/noise.md: a run from its middle or pyfold's own has the same noise."""

import inspect

import numpy as np
import pytest
import torch

import pyfold
from pyfold import diffusion
from pyfold.diffusion.draws import address, stream_and_step

pytest.importorskip("diffusers")
from pyfold.adapters import diffusers as ours

SHAPE, SEEDS, STEPS = (2, 3, 4, 4), [7, 2**62 + 1], 6
SDE = {"algorithm_type": "sde-dpmsolver++"}
PROTEINA = {"tsr_k": 1.3, "tsr_sigma": 0.7, "schedule_mode": "log", "noise_mode": "1/t"}


def of_sigmas(scheduler, i):
    return float(scheduler.sigmas[i + 1])


def of_pairs(scheduler, i):
    """Two stages a step, which stand at 0 and 1, 2 and 3, ... of the table."""
    return float(scheduler.sigmas[i // 2 * 2 + 1])


def of_flow(scheduler, i):
    sigma = np.float64(scheduler.sigmas[i + 1])
    return sigma / (1 - sigma)


def ratio_of(abar):
    return float(((1 - np.float64(abar)) ** 0.5) / np.float64(abar) ** 0.5)


def of_stride(scheduler, i):
    t = int(scheduler.timesteps[i]) - scheduler.config.num_train_timesteps // STEPS
    return ratio_of(scheduler.alphas_cumprod[t] if t >= 0 else 1.0)


def of_next(scheduler, i):
    return ratio_of(scheduler.alphas_cumprod[int(scheduler.timesteps[i + 1])] if i + 1 < len(scheduler.timesteps) else 1.0)


def of_angle(scheduler, i):
    return float(np.tan(np.float64(scheduler.timesteps[i + 1]))) * scheduler.config.sigma_data


def of_time(scheduler, i):
    there = float(scheduler._times[i + 1])
    return (1 - there) / there


#: By class: configuration, options of a step, the level that step i leads to, the draw of a stage.
CASES = {
    "DDIMScheduler": ({}, {"eta": 0.5}, of_stride),
    "DDPMScheduler": ({}, {}, of_next),
    "UnCLIPScheduler": ({}, {}, lambda scheduler, i: ratio_of(scheduler.alphas_cumprod[int(scheduler.timesteps[i]) - 1])),
    "LCMScheduler": ({}, {}, of_next),
    "TCDScheduler": ({}, {}, of_next),
    "EulerAncestralDiscreteScheduler": ({}, {}, of_sigmas),
    "KDPM2AncestralDiscreteScheduler": ({}, {}, of_pairs),
    "CMStochasticIterativeScheduler": ({}, {}, of_sigmas),
    "DPMSolverMultistepScheduler": (SDE, {}, of_sigmas),
    "DPMSolverSinglestepScheduler": (SDE, {}, of_sigmas),
    "EDMDPMSolverMultistepScheduler": (SDE, {}, of_sigmas),
    "SASolverScheduler": ({"tau_func": lambda t: 0.7}, {}, of_sigmas),
    "FlowMatchEulerDiscreteScheduler": ({"stochastic_sampling": True}, {}, of_flow),
    "FlowMatchLCMScheduler": ({}, {}, of_flow),
    "LTXEulerAncestralRFScheduler": ({}, {}, of_flow),
    "SCMScheduler": ({}, {}, of_angle),
    "RFD4ProteinaScheduler": (PROTEINA, {}, of_time),
}


def made(name, config, begin=0):
    scheduler = getattr(ours, name)(**config)
    if name == "LTXEulerAncestralRFScheduler":
        scheduler.set_timesteps(sigmas=list(np.linspace(1, 0, STEPS + 1)))
    else:
        steps = 30 if name == "RFD4ProteinaScheduler" else STEPS
        scheduler.set_timesteps(steps, **({"intermediate_timesteps": None} if name == "SCMScheduler" else {}))
    if begin and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    return scheduler


def times_of(scheduler):
    return scheduler.timesteps[:-1] if isinstance(scheduler, ours.SCMScheduler) else scheduler.timesteps


def from_zero(scheduler, place, options, seeds=SEEDS):
    """A step of the state 0 under a model that says 0: its noise times a number."""
    zero = torch.zeros(len(seeds), *SHAPE[1:])
    extra = [torch.ones(SHAPE[1])] if "emit_mask" in inspect.signature(scheduler.step).parameters else []
    if extra:
        zero = zero[..., 0]
    if hasattr(scheduler, "last_sample"):
        scheduler.last_sample = None  # a corrector would go on from it
    return scheduler.step(zero, times_of(scheduler)[place], zero, *extra, **options, seeds=seeds, return_dict=False)[0]


def unit(x):
    return x.double() / x.double().norm()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_a_draw_is_named_by_the_level_that_it_leads_to(name):
    config, options, level = CASES[name]
    scheduler, seen = made(name, config), set()
    for place in range(len(times_of(scheduler))):
        second = place % 2 if name == "KDPM2AncestralDiscreteScheduler" else 0
        step = from_zero(scheduler, place, options)
        if not step.any():
            continue
        n = address(level(scheduler, place), draw=second)
        seen.add(n)
        expected = pyfold.randn(SEEDS, step.shape[1:], **stream_and_step(n))
        torch.testing.assert_close(unit(step), unit(expected), rtol=1e-4, atol=1e-6)
    assert len(seen) >= 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n for n in CASES if n not in ("SASolverScheduler", "RFD4ProteinaScheduler")])
def test_a_run_from_the_middle_draws_what_the_whole_draws(name):
    config, options, _ = CASES[name]
    whole, begin = made(name, config), 2
    drawn = [from_zero(whole, i, options) for i in range(len(times_of(whole)))]
    part = made(name, config, begin)
    for i in range(begin, len(drawn)):
        step = from_zero(part, i, options)
        # A part's first steps may be of a lower order, with the same noise.
        assert step.any() == drawn[i].any()
        if step.any():
            torch.testing.assert_close(unit(step), unit(drawn[i]), rtol=1e-4, atol=1e-6)


def test_steps_draw_what_pyfolds_own_runs_draw():
    """On the same levels: plans on the table of betas, on sigmas, and of a flow."""
    scheduler = made("DDPMScheduler", {"clip_sample": False})
    table = diffusion.from_alpha_bar("theirs", scheduler.alphas_cumprod.double().numpy())
    points = [table.at(float(t)) for t in scheduler.timesteps] + [table.clean()]
    plan = diffusion.ddpm(table, spacing=points, clip=None)
    for i in range(STEPS - 1):
        drawn = plan.draw(i, SEEDS, SHAPE[1:])
        torch.testing.assert_close(unit(from_zero(scheduler, i, {})), unit(drawn), rtol=1e-4, atol=1e-6)

    flow = diffusion.flow()
    scheduler = made("LTXEulerAncestralRFScheduler", {})
    plan = diffusion.flow_ancestral(flow, spacing=[flow.at(float(s)) for s in scheduler.sigmas])
    for i in range(STEPS - 1):
        drawn = plan.draw(i, SEEDS, SHAPE[1:])
        torch.testing.assert_close(unit(from_zero(scheduler, i, {})), unit(drawn), rtol=1e-4, atol=1e-6)

    from pyfold.adapters import k_diffusion

    scheduler = made("EulerAncestralDiscreteScheduler", {})
    x = 3 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    ended = k_diffusion.sample_euler_ancestral(lambda x, sigma: 0.5 * x, x, scheduler.sigmas, seeds=SEEDS)
    for i, t in enumerate(scheduler.timesteps):
        epsilon = 0.5 * x / scheduler.sigmas[i]
        x = scheduler.step(epsilon, t, x, seeds=SEEDS).prev_sample
    torch.testing.assert_close(x, ended, rtol=1e-5, atol=1e-5)


def test_churn_draws_at_the_churned_level():
    """Once a stage: Heun's second churns the state in the middle anew."""
    scheduler = made("EulerDiscreteScheduler", {})
    scheduler.set_begin_index(1)
    step = from_zero(scheduler, 1, {"s_churn": 2.0})
    hat = float(scheduler.sigmas[1]) * (1 + min(2.0 / STEPS, 2**0.5 - 1))
    drawn = pyfold.randn(SEEDS, SHAPE[1:], **stream_and_step(address(hat)))
    torch.testing.assert_close(unit(step), unit(drawn), rtol=1e-4, atol=1e-6)

    scheduler = made("FlowMatchHeunDiscreteScheduler", {}, begin=2)
    x = torch.zeros(SHAPE)
    sigma = np.float64(scheduler.sigmas[2])
    hat = sigma * (1 + min(2.0 / (len(scheduler.sigmas) - 1), 2**0.5 - 1))
    for stage in range(2):
        churned, _ = scheduler._churn(x, 2, x, 2.0, 0.0, float("inf"), 1.0, None, SEEDS, stage=stage, stages=2)
        drawn = pyfold.randn(SEEDS, SHAPE[1:], **stream_and_step(address(hat / (1 - hat), draw=stage)))
        torch.testing.assert_close(unit(churned), unit(drawn), rtol=1e-4, atol=1e-6)


def test_a_level_that_stands_twice_is_visited_twice():
    scheduler = ours.DPMSolverMultistepScheduler(**SDE, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(STEPS)
    scheduler.sigmas = torch.tensor([9.0, 4.0, 2.0, 4.0, 2.0, 1.0, 0.5])
    assert [scheduler._visit(i) for i in range(7)] == [0, 0, 0, 1, 1, 0, 0]
    scheduler.sigmas = torch.tensor([9.0, 4.0, 4.0, 2.0, 2.0, 4.0, 4.0, 0.0])
    assert [scheduler._visit(i, stages=2) for i in (1, 3, 5, 7)] == [0, 0, 1, 0]


def test_repaint_draws_anew_at_every_return():
    scheduler, zero = ours.RePaintScheduler(eta=1.0), torch.zeros(SHAPE)
    scheduler.set_timesteps(10, jump_length=2, jump_n_sample=3)
    scheduler.set_seeds(SEEDS)

    def drawn():
        seen, last = [], int(scheduler.timesteps[0]) + 1
        for t in map(int, scheduler.timesteps):
            if t < last:
                seen.append(scheduler.step(zero, t, zero, zero, zero)[0])
            else:
                seen.append(scheduler.undo_step(zero, last))
            last = t
        return [unit(x).flatten() for x in seen if x.any()]

    first = torch.stack(drawn())
    assert len(first) > 30
    alike = (first @ first.T).fill_diagonal_(0).abs()
    assert alike.max() < 0.7  # of 96 elements; equal noise has 1
    scheduler.set_timesteps(10, jump_length=2, jump_n_sample=3)
    assert torch.equal(first, torch.stack(drawn()))


def test_score_sdes_correct_at_the_level_of_the_predictor():
    scheduler = ours.ScoreSdeVeScheduler()
    scheduler.set_timesteps(STEPS)
    scheduler.set_sigmas(STEPS)
    zero, one = torch.zeros(SHAPE), torch.ones(SHAPE)
    level = float(scheduler.discrete_sigmas[-1])
    for i, t in enumerate(scheduler.timesteps):
        for draw in (1, 2):
            step = scheduler.step_correct(one, zero, seeds=SEEDS)[0]
            noise = pyfold.randn(SEEDS, SHAPE[1:], **stream_and_step(address(level, draw=draw)))
            size = 2 * (scheduler.config.snr * noise.flatten(1).norm(dim=1).mean() / one[0].norm()) ** 2
            torch.testing.assert_close(step, size + (2 * size) ** 0.5 * noise, rtol=1e-4, atol=1e-5)
        step = scheduler.step_pred(zero, t, zero, seeds=SEEDS)[0]
        level = float(scheduler.discrete_sigmas[STEPS - 2 - i]) if i < STEPS - 1 else 0.0
        drawn = pyfold.randn(SEEDS, SHAPE[1:], **stream_and_step(address(level)))
        torch.testing.assert_close(unit(step), unit(drawn), rtol=1e-4, atol=1e-6)


def test_tokens_at_levels_of_their_own_draw_as_samples_of_their_own():
    scheduler = ours.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    scheduler.set_timesteps(STEPS)
    zero = torch.zeros(2, 5, 8)
    places = torch.tensor([0, 1, 2, 2, 3])
    tokens = (scheduler.sigmas[places] * 1000).expand(2, 5)
    step = scheduler.step(zero, scheduler.timesteps[0], zero, per_token_timesteps=tokens, seeds=SEEDS).prev_sample
    for token, place in enumerate(places):
        n = address(of_flow(scheduler, int(place)), draw=token)
        drawn = pyfold.randn(SEEDS, (8,), **stream_and_step(n))
        torch.testing.assert_close(unit(step[:, token]), unit(drawn), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
def test_samples_at_timesteps_of_their_own_draw_for_them(variance):
    """Two at the same timestep too."""
    scheduler = ours.DDPMScheduler(variance_type=variance)
    scheduler.set_timesteps(STEPS)
    seeds, times = [7, 8, 9], scheduler.timesteps[[1, 3, 1]]
    zero = torch.zeros(3, *SHAPE[1:])
    output = zero.repeat(1, 2, 1, 1) if variance.startswith("learned") else zero
    together = scheduler.step(output, times, zero, seeds=seeds).prev_sample
    for k in range(3):
        alone = scheduler.step(output[k : k + 1], times[k], zero[k : k + 1], seeds=[seeds[k]]).prev_sample
        assert alone.any() and torch.equal(together[k : k + 1], alone)


def words(*values):
    return torch.tensor([v - 2**64 if v >= 2**63 else v for v in values])


@pytest.mark.parametrize(
    "name", ["EulerAncestralDiscreteScheduler", "DPMSolverSDEScheduler", "FlowMatchEulerDiscreteScheduler"]
)
@pytest.mark.parametrize(
    ("seeds", "same"),
    [
        ([2**64 - 1, -(2**63)], words(2**64 - 1, 2**63)),
        ([np.int64(-4), np.uint64(2**63 + 1)], words(2**64 - 4, 2**63 + 1)),
        (2**63 - 1, words(2**63 - 1, 2**63)),
        (2**64 - 1, words(2**64 - 1, 0)),
        (-1, words(2**64 - 1, 0)),
        (words(5, 6), torch.stack([words(5, 6), words(0, 0)], 1).view(torch.uint64)),
    ],
    ids=["list", "numpy", "count over 2^63", "count over 2^64", "negative", "keys"],
)
def test_seeds_of_any_64_bits(name, seeds, same):
    """Signed or not, in a list or counted from one; and keys."""
    if not hasattr(ours, name):
        pytest.skip(f"this diffusers has no {name}")
    ends = []
    for given in (seeds, same):
        scheduler = getattr(ours, name)(**({"stochastic_sampling": True} if name.startswith("Flow") else {}))
        scheduler.set_timesteps(3)
        scheduler.set_seeds(given)
        x = torch.ones(SHAPE)
        for t in scheduler.timesteps:
            x = scheduler.step(0.5 * x, t, x).prev_sample
        ends.append(x)
    assert torch.equal(*ends) and not torch.equal(ends[0][0], ends[0][1])


def test_what_is_no_seed():
    scheduler = ours.EulerAncestralDiscreteScheduler()
    for seeds in (True, 1.5, [1.5], [True], "ab", torch.ones(2), np.float64(1)):
        with pytest.raises(TypeError, match="seeds must be an int, a list of ints"):
            scheduler.set_seeds(seeds)
    for seeds in (2**64, [-(2**63) - 1]):
        with pytest.raises(ValueError, match="64-bit"):
            scheduler.set_seeds(seeds)
