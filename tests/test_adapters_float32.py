"""keep_float32: a half-precision pipeline whose state stays float32 between the steps."""

import copy
import inspect
import pickle
import subprocess
import sys

import pytest
import torch

import pyfold.adapters.diffusers as ours

STEPS = 12
#: With noise, a history, an upcast of their own, two evaluations a step.
CLASSES = [
    "DDIMScheduler", "DDPMScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler", "HeunDiscreteScheduler", "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler", "LCMScheduler",
]  # fmt: skip


def start(dtype=torch.bfloat16):
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)


def model(x):
    return (0.3 * x.float() + 0.1).to(torch.bfloat16)


def made(name, seeded=True):
    scheduler = getattr(ours, name)()
    scheduler.set_timesteps(STEPS)
    if seeded:
        scheduler.set_seeds([1, 2])
    return scheduler


@pytest.mark.parametrize("name", CLASSES)
def test_is_the_loop_that_rounds_only_for_the_model(name):
    by_hand, kept = made(name), made(name)
    kept.keep_float32()
    state, x = start().float(), start()
    for t in by_hand.timesteps:
        state = by_hand.step(model(state.bfloat16()).float(), t, state).prev_sample
        x = kept.step(model(x), t, x, return_dict=False)[0]
        assert x.dtype == torch.bfloat16
        assert torch.equal(x, state.bfloat16())
    reference, y = made(name), start()
    for t in reference.timesteps:
        y = reference.step(model(y), t, y, return_dict=False)[0]
    # In all of these some value moves by more than the last rounding.
    assert (y.float() - state).abs().max() > (x.float() - state).abs().max()


def test_rounds_less_than_a_bfloat16_state():
    """Fifty small steps: their roundings add up in a bfloat16 state, and not in a float32 one."""
    ends = {}
    for keep in (None, False, True):
        scheduler = ours.FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(50)
        if keep:
            scheduler.keep_float32()
        x = start() if keep is not None else start().double()
        for t in scheduler.timesteps:
            output = 0.3 * x.double() + 0.1
            x = scheduler.step(output.to(x.dtype), t, x, return_dict=False)[0]
        ends[keep] = x.double()
    error = {keep: (ends[keep] - ends[None]).abs().median() for keep in (False, True)}
    assert error[False] > 4 * error[True]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("change", ["replaced", "in place"])
def test_a_state_that_a_pipeline_changed_is_taken_as_it_is(change, mode):
    scheduler, by_hand = made("DDIMScheduler"), made("DDIMScheduler")
    scheduler.keep_float32()
    t = scheduler.timesteps
    with mode():
        x = scheduler.step(model(start()), t[0], start()).prev_sample
        x = x * 0.5 if change == "replaced" else x.mul_(0.5)
        result = scheduler.step(model(x), t[1], x).prev_sample
        expected = by_hand.step(model(x).float(), t[1], x.float()).prev_sample
        assert torch.equal(result, expected.bfloat16())


def test_goes_on_and_off_and_is_copied():
    scheduler = made("EulerAncestralDiscreteScheduler", seeded=False)
    before = inspect.signature(scheduler.step)
    scheduler.keep_float32()
    assert inspect.signature(scheduler.step) == before
    for other in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        assert other.step._scheduler is other
    scheduler.keep_float32(False)
    assert "step" not in vars(scheduler)


def test_a_float32_pipeline_is_left_alone():
    scheduler, reference = made("DDIMScheduler"), made("DDIMScheduler")
    scheduler.keep_float32()
    x, t = start(torch.float32), reference.timesteps[0]
    assert torch.equal(scheduler.step(x * 0.1, t, x).prev_sample, reference.step(x * 0.1, t, x).prev_sample)


def test_a_step_of_other_arguments_is_refused():
    with pytest.raises(TypeError, match="keep_float32 needs a step of .*, which KarrasVeScheduler has not"):
        ours.KarrasVeScheduler().keep_float32()


def test_classes_that_diffusers_lacks_are_not_here():
    """As under an older diffusers: nothing else is missing."""
    code = (
        "from diffusers import schedulers\n"
        "import sys, types\n"
        "class Older(types.ModuleType):\n"
        "    def __getattr__(self, name):\n"
        "        if name in ('SCMScheduler', 'LTXEulerAncestralRFScheduler'):\n"
        "            raise AttributeError(name)\n"
        "        return getattr(schedulers, name)\n"
        "import diffusers\n"
        "diffusers.schedulers = Older(schedulers.__name__)\n"
        "import pyfold.adapters.diffusers as ours\n"
        "print(len(ours.__all__), hasattr(ours, 'SCMScheduler'), hasattr(ours, 'DDIMScheduler'), len(dir(ours)) > 40)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(len(ours.__all__) - 2), "False", "True", "True"]
